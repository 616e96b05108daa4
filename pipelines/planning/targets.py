"""The target of a forecast: find it by name, and check that the finished runs are comparable."""

import math
from collections.abc import Sequence
from typing import Any

from pipelines.execution.status import state_of
from pipelines.workspace.store import Home, raise_if_mismatch, record_differences
from pipelines.workspace.sweeps import SweepError, find_sweep, select_trials
from var_scaling.disk import is_done
from var_scaling.experiment import ImportedModel, Sweep, Trial
from var_scaling.experiment.ledger import trial_ledger
from var_scaling.metrics import read_metrics
from var_scaling.record import difference

AnyModelOfSweep = Trial | ImportedModel
SIZES = ("params_blocks", "params_total", "train_flops", "tokens_seen")


def find_target(sweep: Sweep, at: str) -> tuple[str, Trial]:
    """(sweep name, trial) for `at`: a trial of `sweep`, or OTHER/TRIAL with a sweep name or path.

    Raises SweepError.
    """
    other, _, name = at.rpartition("/")
    try:
        owner = find_sweep(other) if other else sweep
        return owner.name, select_trials(owner, [name]).trials[0]
    except SweepError as error:
        raise SweepError(f"--at {at}: {error}") from error


def sizes_of(trial: Trial) -> dict[str, float]:
    """The variables of scaling laws, which are known before training."""
    ledger = trial_ledger(trial)
    return {name: float(ledger[name]) for name in SIZES}


def reached_step(home: Home, sweep: str, trial: Trial) -> int | None:
    """The step that a trial has reached; None before its first attempt.

    Raises ValueError if its final result is known, because that is no prediction. A run that has
    begun is allowed: no law is fitted to its intermediate rows. But the user may have seen its
    curve, so the forecast records the step.
    """
    folder = home.trial(sweep, trial.name)
    raise_if_mismatch(folder / "trial.json", record_differences(folder / "trial.json", trial))
    lines = read_metrics(folder / "metrics.jsonl")
    scored = {line["step"] for line in lines if line["kind"] == "validation"}
    if is_done(folder) or trial.steps in scored:
        state = state_of(folder)[0] if is_done(folder) else "evaluated at its end"
        raise ValueError(
            f"{sweep}/{trial.name} is {state}: its results are known, so there is nothing to "
            "predict; name a run that has not finished"
        )
    if not lines and not (folder / "provenance.json").exists():
        return None
    return max((int(line["step"]) for line in lines), default=0)


def comparable_models(models: Sequence[AnyModelOfSweep], target: Trial) -> list[AnyModelOfSweep]:
    """The models of the target's family; if any of them use its tokenizer too, only those.

    A law describes one family. Raises ValueError if no model is of the target's family.
    """
    family = [model for model in models if model.model.family == target.model.family]
    if models and not family:
        present = sorted({model.family.name for model in models})
        raise ValueError(
            f"{target.name} is of the family {target.family.name}, and the finished runs are "
            f"{', '.join(present)}: a law describes one family"
        )
    same_tokenizer = [model for model in family if model.tokenizer == target.tokenizer]
    return same_tokenizer or family


def check_comparable(used: list[Trial | ImportedModel], scored_on: set[str], target: Trial) -> None:
    """Raise ValueError if losses of `target` and of `used` are of different tokens or images.

    `scored_on`: the names of the data on which the models were evaluated.
    """
    differences: list[str] = []
    for model in used:
        recorded = model.tokenizer.model_dump(mode="json")
        lines = difference(recorded, target.tokenizer.model_dump(mode="json"))
        differences += [f"tokenizer.{line}" for line in lines]
        if isinstance(model, Trial):
            images = difference(model.data.validation_content(), target.data.validation_content())
            differences += [f"held-out images, {line}" for line in images]
            if _without_name(model) == _without_name(target):
                raise ValueError(
                    f"{target.name} is {model.name} by another name, which is finished: its "
                    "results are known"
                )
    if any(isinstance(model, ImportedModel) for model in used) and scored_on != {target.data.name}:
        differences.append(f"scored on {', '.join(sorted(scored_on))}, not {target.data.name}")
    if lines := list(dict.fromkeys(differences)):
        more = f"\n  and {len(lines) - 6} more" if len(lines) > 6 else ""
        raise ValueError(
            f"the loss of {target.name} is of other tokens or images than the losses of the runs, "
            "so one law cannot describe both:\n  " + "\n  ".join(lines[:6]) + more
        )


def _without_name(trial: Trial) -> dict[str, Any]:
    return trial.model_dump(mode="json", exclude={"name", "evaluations"})


def caveats(used: list[Trial], target: Trial, begun: int | None) -> tuple[str, ...]:
    """Differences between `target` and the runs that a law in size does not take into account."""
    messages = []
    if begun is not None:
        messages.append(f"{target.name} had begun: it was at step {begun:,} of {target.steps:,}")
    run_settings = [_settings(trial) for trial in used]
    for name, value in _settings(target).items():
        values = list(dict.fromkeys(settings.get(name) for settings in run_settings))
        listed = ", ".join(map(_format, values[:4]))
        if values and value not in values:
            listed += ", …" if len(values) > 4 else ""
            messages.append(f"{name} is {_format(value)}, but {listed} in the runs")
        elif len(values) > 1:
            messages.append(f"the runs differ in {name} ({listed}): the law mixes them")
    return (*messages, *_rate_caveat(used, target))


def rate_rule(trials: list[Trial]) -> tuple[str, float] | None:
    """The rule for the peak learning rate.

    ("rate", value) if it is constant, ("rate x width", value) if it is proportional to 1 / width,
    None if it follows neither.
    """
    rates = {trial.optimiser.learning_rate for trial in trials}
    if len(rates) == 1:
        return "rate", rates.pop()
    products = [trial.optimiser.learning_rate * trial.model.width for trial in trials]
    if all(math.isclose(product, products[0], rel_tol=1e-6) for product in products):
        return "rate x width", products[0]
    return None


def _rate_caveat(used: list[Trial], target: Trial) -> tuple[str, ...]:
    if not used:
        return ()
    rate, rule = target.optimiser.learning_rate, rate_rule(used)
    if rule is None:
        return ("the peak learning rates of the runs follow no common rule",)
    value = rate * target.model.width if rule[0] == "rate x width" else rate
    if math.isclose(value, rule[1], rel_tol=1e-6):
        return ()
    return (f"{rule[0]} is {value:.4g}, but {rule[1]:.4g} in the runs",)


def _settings(trial: Trial) -> dict[str, Any]:
    """The settings besides size and peak rate that can change the loss. Values are hashable."""
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


def _format(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
