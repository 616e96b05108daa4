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
    imported: tuple[ImportedModel, ...] = ()  # models trained elsewhere, points of the same law
    scorings: tuple[Scoring, ...] = ()  # sets of samples to draw from the trials and score

    @property
    def tokenizers(self) -> tuple[SomeTokenizer, ...]:
        # By name: `_names_are_unique` refuses two different records with one name.
        return tuple({trial.tokenizer.name: trial.tokenizer for trial in self.trials}.values())

    @property
    def token_sets(self) -> tuple[tuple[SomeTokenizer, DataRecord], ...]:
        """Each (tokenizer, data) whose token cache a trial reads."""
        pairs = {(t.tokenizer.name, t.data.name): (t.tokenizer, t.data) for t in self.trials}
        return tuple(pairs.values())

    @property
    def scored_sets(self) -> tuple[ScoredSet, ...]:
        """Every set of samples that is drawn and scored."""
        return tuple(
            scored
            for scoring in self.scorings
            for trial in self.trials
            for scored in scoring.scored_sets(trial)
        )

    @property
    def floors(self) -> tuple[ReconstructionFloor, ...]:
        """One for each tokenizer, extractor and number of samples among the scored sets."""
        floors = {}
        for scored in self.scored_sets:
            trial, scoring = scored.trial, scored.scoring
            floor = ReconstructionFloor(
                tokenizer=trial.tokenizer,
                data=trial.data,
                # As many as samples: the bias of a Fréchet distance depends on their number.
                images=scoring.count * trial.classes,
                extractor=scored.extractor,
                cache=trial.family.cache_kind(trial.model),
            )
            floors[floor.name] = floor
        return tuple(floors.values())

    @model_validator(mode="after")
    def _scorings_are_valid(self) -> Self:
        names = [scoring.name for scoring in self.scorings]
        if len(set(names)) < len(names):
            raise ValueError(f"scorings: {', '.join(names)}: names must be unique")
        trials = {trial.name for trial in self.trials}
        for scoring in self.scorings:
            if missing := [name for name in scoring.only if name not in trials]:
                raise ValueError(
                    f"scorings: {scoring.name}: only: no trial is named {', '.join(missing)}"
                )
        return self

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if not self.trials and not self.imported:
            raise ValueError("trials: at least one trial or imported model is needed")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = sorted(model.name for model in (*self.trials, *self.imported))
        repeated = sorted({name for name, following in pairwise(names) if name == following})
        if repeated:
            raise ValueError(f"trials: names must be unique; repeated: {', '.join(repeated)}")
        trained = [t for t in self.tokenizers if isinstance(t, TrainedTokenizer)]
        datasets = [trial.data for trial in self.trials] + [t.data for t in trained]
        # The name is the address of the results on disk, so two records must not share it.
        for kind, records in (
            ("tokenizer", [trial.tokenizer for trial in self.trials]),
            ("data", datasets),
        ):
            first: dict[str, Record] = {}
            for record in records:
                earlier = first.setdefault(record.name, record)
                if earlier != record:
                    lines = difference(
                        earlier.model_dump(mode="json"), record.model_dump(mode="json")
                    )
                    raise ValueError(
                        f"two different {kind}s are named {record.name}: {'; '.join(lines)}"
                    )
        return self
