"""A sweep: the trials that answer one question. No torch."""

from itertools import pairwise
from typing import Self

from pydantic import model_validator

from var_scaling.config import SomeTokenizer, TrainedTokenizer
from var_scaling.datasets import DataRecord
from var_scaling.experiment.scoring import ReconstructionFloor, ScoredSet, Scoring
from var_scaling.experiment.trial import ImportedModel, Trial
from var_scaling.record import Name, Record, difference


class Sweep(Record):
    """A question and the trials that answer it."""

    name: Name
    question: str
    trials: tuple[Trial, ...]
    imported: tuple[ImportedModel, ...] = ()  # points of the same law, trained elsewhere
    scorings: tuple[Scoring, ...] = ()  # samples that are drawn of the trials, and scored

    @property
    def tokenizers(self) -> tuple[SomeTokenizer, ...]:
        return tuple({trial.tokenizer.name: trial.tokenizer for trial in self.trials}.values())

    @property
    def token_sets(self) -> tuple[tuple[SomeTokenizer, DataRecord], ...]:
        """Each (tokenizer, data) whose tokens some trial reads."""
        pairs = {(t.tokenizer.name, t.data.name): (t.tokenizer, t.data) for t in self.trials}
        return tuple(pairs.values())

    @property
    def scored_sets(self) -> tuple[ScoredSet, ...]:
        """Every set of samples that is drawn and scored."""
        return tuple(
            one
            for scoring in self.scorings
            for trial in self.trials
            for one in scoring.scored_sets(trial)
        )

    @property
    def floors(self) -> tuple[ReconstructionFloor, ...]:
        """Of each tokenizer, for each extractor and number of samples that is used with it."""
        found = {}
        for one in self.scored_sets:
            trial, scoring = one.trial, one.scoring
            floor = ReconstructionFloor(
                tokenizer=trial.tokenizer,
                data=trial.data,
                images=scoring.count * trial.classes,
                extractor=one.extractor,
                cache=trial.family.reads(trial.model),
            )
            found[floor.name] = floor
        return tuple(found.values())

    @model_validator(mode="after")
    def _scorings_have_names_of_their_own(self) -> Self:
        names = [one.name for one in self.scorings]
        if len(set(names)) < len(names):
            raise ValueError(f"scorings: {', '.join(names)}: each needs a name of its own")
        known = {trial.name for trial in self.trials}
        for one in self.scorings:
            if missing := [name for name in one.only if name not in known]:
                raise ValueError(f"scorings: {one.name} is only of {', '.join(missing)}: no trial")
        return self

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not self.trials and not self.imported:
            raise ValueError("trials: at least one is needed")
        return self

    @model_validator(mode="after")
    def _one_name_one_thing(self) -> Self:
        names = sorted(one.name for one in (*self.trials, *self.imported))
        twice = sorted({name for name, following in pairwise(names) if name == following})
        if twice:
            raise ValueError(
                f"trials must have names of their own; given twice: {', '.join(twice)}"
            )
        trained = [t for t in self.tokenizers if isinstance(t, TrainedTokenizer)]
        datasets = [trial.data for trial in self.trials] + [t.data for t in trained]
        for kind, things in (
            ("tokenizer", [trial.tokenizer for trial in self.trials]),
            ("data", datasets),
        ):
            first: dict[str, Record] = {}
            for thing in things:
                known = first.setdefault(thing.name, thing)
                if known != thing:
                    lines = difference(known.model_dump(mode="json"), thing.model_dump(mode="json"))
                    raise ValueError(
                        f"two different {kind}s are named {thing.name}: {'; '.join(lines)}"
                    )
        return self
