"""The runs that a sweep could make next: its own trials, their other seeds and lengths, new depths.

A new depth needs a rule: it is offered where the trials agree in all but depth, seed and peak rate,
and the rate is one for all or falls as 1 / width.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import FLOOR, LAWS, PURE, SURFACE, Law
from analysis.forecasting.forecast import OBJECTIVE, quoted_law
from analysis.forecasting.planner import Candidate, Plan, plan
from analysis.selection.select import choose
from pipelines.planning.cost import Price
from pipelines.planning.forecasts import finished_runs
from pipelines.planning.targets import find_target, like_target, rate_rule, sizes_of
from pipelines.workspace.store import Home
from var_scaling.experiment import Sweep, Trial


@dataclass(frozen=True)
class PlanOptions:
    """What to choose among, and for what."""

    at: str
    budget: float  # FLOPs
    metric: str = "val_loss"
    variable: str = "params_blocks"
    law: str | None = None  # None: surface for several lengths, else the one a forecast would quote
    depths: tuple[int, ...] | None = None  # None: those of the sweep
    lengths: tuple[float, ...] = (1.0,)  # of a trial of the sweep
    seeds: int = 3  # runs of a kind at most


@dataclass(frozen=True)
class Advice:
    """The plan, and what it rests on."""

    fit: Fit
    target: tuple[float, ...]
    plan: Plan
    notes: tuple[str, ...]


def advise(home: Home, sweep: Sweep, wishes: PlanOptions, price: Price | None = None) -> Advice:
    """Which runs narrow the interval at the target most. Raises ValueError, in words."""
    ends = finished_runs(home, sweep).finals
    _, goal = find_target(sweep, wishes.at)
    alike = {one.name for one in like_target([*sweep.trials, *sweep.imported], goal)}
    sweep = sweep.model_copy(
        update={"trials": tuple(trial for trial in sweep.trials if trial.name in alike)}
    )
    ends = ends[ends.trial.isin(alike)]
    law = _law(wishes, ends)
    variables = _variables(law, wishes.variable)
    known = ends.dropna(subset=[*variables, wishes.metric])
    columns = tuple(known[name].to_numpy(dtype=float) for name in variables)
    y = known[wishes.metric].to_numpy(dtype=float)
    fit = fit_law(law, columns if len(columns) > 1 else columns[0], y, OBJECTIVE)
    target = tuple(sizes_of(goal)[name] for name in variables)
    trials = candidate_trials(sweep, frozenset(ends["trial"]), wishes)
    candidates = [_candidate(trial, variables, price) for trial in trials]
    return Advice(fit, target, plan(fit, target, candidates, wishes.budget), _notes(trials))


def _law(wishes: PlanOptions, ends: Any) -> Law:
    if any(length != 1 for length in wishes.lengths):
        if wishes.law not in (None, SURFACE.name):
            raise ValueError(
                f"--lengths: L({wishes.variable}) alone knows no length; --law surface"
            )
        return SURFACE
    if wishes.law is not None:
        if wishes.law not in (PURE.name, FLOOR.name, SURFACE.name):
            raise ValueError(f"--law {wishes.law}: one of pure, floor, surface")
        return LAWS[wishes.law]
    known = ends.dropna(subset=[wishes.variable, wishes.metric])
    x, y = (known[name].to_numpy(dtype=float) for name in (wishes.variable, wishes.metric))
    return LAWS[quoted_law(choose(x, y, OBJECTIVE))]


def _variables(law: Law, variable: str) -> tuple[str, ...]:
    if law is not SURFACE:
        return (variable,)
    if not variable.startswith("params_"):
        raise ValueError(f"--variable {variable}: a surface is one of parameters and tokens")
    return variable, "tokens_seen"


def _candidate(trial: Trial, variables: Sequence[str], price: Price | None) -> Candidate:
    sizes = sizes_of(trial)
    flops = sizes["train_flops"]
    return Candidate(
        trial.name, tuple(sizes[name] for name in variables), flops, trial.seed,
        price.hours(flops) if price else None, price.money(flops) if price else None,
    )  # fmt: skip


# What could be run --------------------------------------------------------------------------------


def candidate_trials(sweep: Sweep, finished: frozenset[str], wishes: PlanOptions) -> list[Trial]:
    """Runs not made yet, `wishes.seeds` of each depth and length; the sweep's own come first."""
    if not sweep.trials:
        raise ValueError(f"{sweep.name}: models that were trained elsewhere are no runs to repeat")
    if any(not length > 0 for length in wishes.lengths):
        raise ValueError("--lengths: each must be above zero")
    there = {trial.model.depth for trial in sweep.trials}
    wanted = there if wishes.depths is None else set(wishes.depths)
    templates = [trial for trial in sweep.trials if trial.model.depth in wanted]
    templates += [_of_depth(sweep, depth) for depth in wanted - there]
    kinds: dict[str, Trial] = {}
    for template in sorted(templates, key=lambda trial: trial.model.depth):
        for length in wishes.lengths:
            long = _lengthened(template, length)
            kinds.setdefault(_kind(long), long)
    return [run for long in kinds.values() for run in _runs(sweep, finished, long, wishes.seeds)]


def _lengthened(template: Trial, length: float) -> Trial:
    """`template`, `length` times as long, named without its seed."""
    named = template.name.removesuffix(f"-s{template.seed}")
    name = named if length == 1 else f"{named}-x{length:g}"
    steps = max(1, round(template.steps * length))
    return template.model_copy(update={"name": name, "steps": steps})


def _runs(sweep: Sweep, finished: frozenset[str], long: Trial, seeds: int) -> list[Trial]:
    """`seeds` runs that are like `long` but for their seeds, and not finished."""
    same = [trial for trial in sweep.trials if _kind(trial) == _kind(long)]
    runs = [trial for trial in same if trial.name not in finished]
    taken = {trial.seed for trial in same}
    free = [seed for seed in range(len(taken) + seeds) if seed not in taken]
    runs += [
        long.model_copy(update={"name": f"{long.name}-s{seed}", "seed": seed}) for seed in free
    ]
    return runs[:seeds]


def _kind(trial: Trial) -> str:
    """Equal for trials that differ in seed alone."""
    return trial.model_copy(update={"name": "any", "seed": 0}).fingerprint()


def _of_depth(sweep: Sweep, depth: int) -> Trial:
    """A trial of another depth, by the rule of the sweep's. Raises ValueError without one."""
    first, rule = sweep.trials[0], rate_rule(list(sweep.trials))
    unlike = [
        trial.name for trial in sweep.trials if _recipe_of(trial, 1, 1) != _recipe_of(first, 1, 1)
    ]
    if unlike:
        raise ValueError(
            f"--depths {depth}: {first.name} and {unlike[0]} differ in more than depth, seed and "
            "peak rate, so there is no rule for a depth that the sweep has not"
        )
    if rule is None:
        raise ValueError(f"--depths {depth}: the peak rates of the trials follow no one rule")
    width = first.model.at_depth(depth).width
    return _recipe_of(first, depth, rule[1] / width if rule[0] == "rate x width" else rule[1])


def _recipe_of(trial: Trial, depth: int, rate: float) -> Trial:
    model = trial.model.at_depth(depth)
    optimiser = trial.optimiser.model_copy(update={"learning_rate": float(rate)})
    changes = {"name": f"d{depth}", "model": model, "optimiser": optimiser, "seed": 0}
    return trial.model_copy(update=changes)


def _notes(trials: list[Trial]) -> tuple[str, ...]:
    repeating = []
    for trial in trials:
        data, images = trial.data, trial.data.train_images
        crops = data.views("train")
        if images is not None and trial.images_seen > images * crops:
            repeating.append(trial.name)
    if not repeating:
        return ()
    names = ", ".join(repeating[:4]) + (", …" if len(repeating) > 4 else "")
    return (f"{names}: longer than one pass over the tokens; repeats are worth less than new ones",)


def whole_numbers(text: str) -> tuple[int, ...]:
    """`1-4,6` as (1, 2, 3, 4, 6). Raises ValueError."""
    found: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise ValueError(f"{text!r}: depths are written like 1-4,6")
        found += range(int(low), int(high or low) + 1)
    if not found or min(found) < 1:
        raise ValueError(f"{text!r}: depths start at 1 and rise")
    return tuple(dict.fromkeys(found))


def numbers(text: str) -> tuple[float, ...]:
    """`0.5,1,2` as floats. Raises ValueError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r}: lengths are written like 0.5,1,2") from None


def as_json(advice: Advice) -> dict[str, Any]:
    """Plain JSON: the fit, the interval now, each kind of run alone, the plan."""

    def step(one: Any) -> dict[str, Any]:
        return {**asdict(one), "narrowing_per_flop": one.narrowing_per_flop}

    made = advice.plan
    return {
        "law": advice.fit.law.name,
        "target": list(advice.target),
        "predicted": made.predicted,
        "now": {"low": made.low, "high": made.high},
        "level": made.level,
        "ranking": [step(one) for one in made.ranking],
        "plan": [step(one) for one in made.runs],
        "flops": made.flops,
        "method": made.method,
        "notes": list(advice.notes),
    }
