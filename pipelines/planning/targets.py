"""The run that is asked about: found by its name, comparable or not, and in what it is unlike."""

import math
from collections.abc import Sequence
from typing import Any

from pipelines.execution.status import state_of
from pipelines.workspace.store import Home, drift, refuse
from pipelines.workspace.sweeps import choose, find_sweep
from var_scaling.disk import is_done
from var_scaling.experiment import ImportedModel, Sweep, Trial
from var_scaling.experiment.ledger import trial_ledger
from var_scaling.metrics import read_metrics
from var_scaling.record import difference

AnyModelOfSweep = Trial | ImportedModel
SIZES = ("params_blocks", "params_total", "train_flops", "tokens_seen")


def find_target(sweep: Sweep, at: str) -> tuple[str, Trial]:
    """(sweep's name, trial) of `at`: a trial of `sweep`, or OTHER/TRIAL, OTHER a name or a path.

    Raises SweepError.
    """
    other, _, name = at.rpartition("/")
    owner = find_sweep(other) if other else sweep
    return owner.name, choose(owner, [name]).trials[0]


def sizes_of(trial: Trial) -> dict[str, float]:
    """The sizes that laws are in, known before any training."""
    ledger = trial_ledger(trial)
    return {name: float(ledger[name]) for name in SIZES}


def begun_at(home: Home, sweep: str, trial: Trial) -> int | None:
    """The step that a trial has reached, None before its first attempt.

    Raises ValueError where its end is known: what was measured cannot be predicted. A run that has
    only begun can: none of its rows is an end, so no law rests on it; but the user may have
    seen its curve, which a reader of the forecast must know.
    """
    folder = home.trial(sweep, trial.name)
    refuse(folder / "trial.json", drift(folder / "trial.json", trial))
    lines = read_metrics(folder / "metrics.jsonl")
    scored = {line["step"] for line in lines if line["kind"] == "validation"}
    if is_done(folder) or trial.steps in scored:
        state = state_of(folder)[0] if is_done(folder) else "evaluated at its end"
        raise ValueError(
            f"{sweep}/{trial.name} is {state}: its numbers are known, so there is nothing to "
            "predict; name a run that is still to come"
        )
    if not lines and not (folder / "provenance.json").exists():
        return None
    return max((int(line["step"]) for line in lines), default=0)


def like_target(things: Sequence[AnyModelOfSweep], target: Trial) -> list[AnyModelOfSweep]:
    """Those of the target's family, and where there are such, on its tokenizer and images too.

    A law is of one family. Raises ValueError where there is none of it.
    """
    family = [one for one in things if one.model.family == target.model.family]
    if things and not family:
        there = sorted({one.family.name for one in things})
        raise ValueError(
            f"{target.name} is of the family {target.family.name}, and the finished runs are "
            f"{', '.join(there)}: a law is of one family"
        )
    same = [one for one in family if one.tokenizer == target.tokenizer]
    return same or family


def refuse_unlike(used: list[Trial | ImportedModel], scored_on: set[str], target: Trial) -> None:
    """Raise ValueError where losses of `target` and of the runs `used` are of different things.

    `scored_on`: the names of the data that the runs were scored on.
    """
    found: list[str] = []
    for one in used:
        theirs = one.tokenizer.model_dump(mode="json")
        lines = difference(theirs, target.tokenizer.model_dump(mode="json"))
        found += [f"tokenizer.{line}" for line in lines]
        if isinstance(one, Trial):
            images = difference(one.data.held_out(), target.data.held_out())
            found += [f"held-out images, {line}" for line in images]
            if _anonymous(one) == _anonymous(target):
                raise ValueError(
                    f"{target.name} is {one.name} by another name, and that is finished: its "
                    "numbers are known"
                )
    if any(isinstance(one, ImportedModel) for one in used) and scored_on != {target.data.name}:
        found.append(f"scored on {', '.join(sorted(scored_on))}, not {target.data.name}")
    if lines := list(dict.fromkeys(found)):
        more = f"\n  and {len(lines) - 6} more" if len(lines) > 6 else ""
        raise ValueError(
            f"losses of {target.name} will be of other tokens or images than those of the runs, "
            "which no law compares:\n  " + "\n  ".join(lines[:6]) + more
        )


def _anonymous(trial: Trial) -> dict[str, Any]:
    return trial.model_dump(mode="json", exclude={"name", "evaluations"})


def caveats(used: list[Trial], target: Trial, begun: int | None) -> tuple[str, ...]:
    """What a law in size does not see, and in which `target` is unlike the runs."""
    said = []
    if begun is not None:
        said.append(f"{target.name} had begun: it was at step {begun:,} of {target.steps:,}")
    wanted = _settings(target)
    known = [_settings(trial) for trial in used]
    for name, value in wanted.items():
        values = list(dict.fromkeys(settings.get(name) for settings in known))
        if values and value not in values:
            theirs = ", ".join(map(_shown, values[:4])) + (", …" if len(values) > 4 else "")
            said.append(f"{name} is {_shown(value)}, of the runs {theirs}")
        elif len(values) > 1:
            theirs = ", ".join(map(_shown, values[:4]))
            said.append(f"the runs themselves differ in {name} ({theirs}): the law mixes them")
    return (*said, *_rate_caveat(used, target))


def rate_rule(trials: list[Trial]) -> tuple[str, float] | None:
    """How the peak rate follows from the width: ("rate x width", that), ("rate", it), or None."""
    rates = {trial.optimiser.learning_rate for trial in trials}
    if len(rates) == 1:
        return "rate", rates.pop()
    products = [trial.optimiser.learning_rate * trial.model.width for trial in trials]
    if all(math.isclose(each, products[0], rel_tol=1e-6) for each in products):
        return "rate x width", products[0]
    return None


def _rate_caveat(used: list[Trial], target: Trial) -> tuple[str, ...]:
    if not used:
        return ()
    rate, rule = target.optimiser.learning_rate, rate_rule(used)
    if rule is None:
        return ("the peak rates of the runs follow no one rule",)
    theirs = rate * target.model.width if rule[0] == "rate x width" else rate
    if math.isclose(theirs, rule[1], rel_tol=1e-6):
        return ()
    return (f"{rule[0]} is {theirs:.4g}, of the runs {rule[1]:.4g}",)


def _settings(trial: Trial) -> dict[str, Any]:
    """What can change a loss besides size and peak rate, by name; hashable values."""
    optimiser = trial.optimiser.model_dump(exclude={"learning_rate"})
    model = trial.model.model_dump(exclude={"depth"})
    data = trial.data.model_dump(exclude={"name", "kind"})
    return {
        "tokens_seen": trial.images_seen * trial.family.sequence_length(trial.spec),
        "batch_size": trial.batch_size,
        "precision": trial.precision,
        "class_dropout_prob": trial.class_dropout_prob,
        **{f"optimiser.{name}": value for name, value in optimiser.items()},
        **{f"model.{name}": value for name, value in model.items()},
        **{f"data.{name}": value for name, value in data.items()},
    }


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
