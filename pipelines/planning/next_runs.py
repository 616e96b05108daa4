"""Choose the next runs of a sweep: its own trials, other seeds, other lengths and other depths.

Another depth needs a rule for the learning rate. So it is offered only if the trials differ in
nothing but depth, seed and peak rate, and the rate is constant or proportional to 1 / width.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import FLOOR, LAWS, PURE, SURFACE, Law
from analysis.forecasting.planner import Candidate, Plan, plan
from analysis.forecasting.prediction import OBJECTIVE, quoted_law
from analysis.selection.select import choose
from pipelines.planning.cost import Price
from pipelines.planning.forecasts import finished_runs
from pipelines.planning.targets import comparable_models, find_target, rate_rule, sizes_of
from pipelines.workspace.store import Home
from var_scaling.experiment import Sweep, Trial


@dataclass(frozen=True)
class PlanOptions:
    """The candidates, the budget and the target of a plan."""

    at: str
    budget: float  # FLOPs
    metric: str = "val_loss"
    variable: str = "params_blocks"
    law: str | None = None  # None: surface for several lengths, else the forecast's law
    depths: tuple[int, ...] | None = None  # None: the depths of the sweep
    lengths: tuple[float, ...] = (1.0,)  # as factors of a trial's steps
    seeds: int = 3  # most runs of one depth and length


@dataclass(frozen=True)
class NextRuns:
    """The plan and the fit that it is based on."""

    fit: Fit
    target: tuple[float, ...]
    plan: Plan
    notes: tuple[str, ...]


def plan_next_runs(
    home: Home, sweep: Sweep, options: PlanOptions, price: Price | None = None
) -> NextRuns:
    """Choose the runs that narrow the prediction interval at the target most. Raises ValueError."""
    ends = finished_runs(home, sweep).finals
    _, target_trial = find_target(sweep, options.at)
    models = comparable_models([*sweep.trials, *sweep.imported], target_trial)
    names = {model.name for model in models}
    sweep = sweep.model_copy(
        update={"trials": tuple(trial for trial in sweep.trials if trial.name in names)}
    )
    ends = ends[ends.trial.isin(names)]
    law = _law(options, ends)
    variables = _variables(law, options.variable)
    known = ends.dropna(subset=[*variables, options.metric])
    columns = tuple(known[name].to_numpy(dtype=float) for name in variables)
    y = known[options.metric].to_numpy(dtype=float)
    fit = fit_law(law, columns if len(columns) > 1 else columns[0], y, OBJECTIVE)
    target = tuple(sizes_of(target_trial)[name] for name in variables)
    trials = candidate_trials(sweep, frozenset(ends["trial"]), options)
    candidates = [_candidate(trial, variables, price) for trial in trials]
    return NextRuns(fit, target, plan(fit, target, candidates, options.budget), _notes(trials))


def _law(options: PlanOptions, ends: Any) -> Law:
    if any(length != 1 for length in options.lengths):
        if options.law not in (None, SURFACE.name):
            raise ValueError(
                f"--lengths: L({options.variable}) does not depend on length; use --law surface"
            )
        return SURFACE
    if options.law is not None:
        if options.law not in (PURE.name, FLOOR.name, SURFACE.name):
            raise ValueError(f"--law {options.law}: allowed are pure, floor, surface")
        return LAWS[options.law]
    known = ends.dropna(subset=[options.variable, options.metric])
    x, y = (known[name].to_numpy(dtype=float) for name in (options.variable, options.metric))
    return LAWS[quoted_law(choose(x, y, OBJECTIVE))]


def _variables(law: Law, variable: str) -> tuple[str, ...]:
    if law is not SURFACE:
        return (variable,)
    if not variable.startswith("params_"):
        raise ValueError(
            f"--variable {variable}: a surface needs a parameter count, such as params_blocks"
        )
    return variable, "tokens_seen"


def _candidate(trial: Trial, variables: Sequence[str], price: Price | None) -> Candidate:
    sizes = sizes_of(trial)
    flops = sizes["train_flops"]
    hours = price.rate(trial).hours(flops) if price else None
    return Candidate(
        trial.name, tuple(sizes[name] for name in variables), flops, trial.seed, hours,
        None if price is None or hours is None else price.money(hours),
    )  # fmt: skip


# Candidates ---------------------------------------------------------------------------------------


def candidate_trials(sweep: Sweep, finished: frozenset[str], options: PlanOptions) -> list[Trial]:
    """Unfinished runs, `options.seeds` per depth and length; the sweep's trials come first."""
    if not sweep.trials:
        raise ValueError(f"{sweep.name}: has only imported models, which cannot be run again")
    if any(not length > 0 for length in options.lengths):
        raise ValueError("--lengths: each length must be greater than 0")
    sweep_depths = {trial.model.depth for trial in sweep.trials}
    depths = sweep_depths if options.depths is None else set(options.depths)
    templates = [trial for trial in sweep.trials if trial.model.depth in depths]
    templates += [_trial_of_depth(sweep, depth) for depth in depths - sweep_depths]
    kinds: dict[str, Trial] = {}
    for template in sorted(templates, key=lambda trial: trial.model.depth):
        for length in options.lengths:
            kind = _with_length(template, length)
            kinds.setdefault(_kind(kind), kind)
    return [run for kind in kinds.values() for run in _runs(sweep, finished, kind, options.seeds)]


def _with_length(template: Trial, length: float) -> Trial:
    """`template` with `length` times as many steps, and a name without the seed."""
    base = template.name.removesuffix(f"-s{template.seed}")
    name = base if length == 1 else f"{base}-x{length:g}"
    steps = max(1, round(template.steps * length))
    return template.model_copy(update={"name": name, "steps": steps})


def _runs(sweep: Sweep, finished: frozenset[str], kind: Trial, seeds: int) -> list[Trial]:
    """`seeds` unfinished runs that differ from `kind` in the seed only."""
    same = [trial for trial in sweep.trials if _kind(trial) == _kind(kind)]
    runs = [trial for trial in same if trial.name not in finished]
    taken = {trial.seed for trial in same}
    free = [seed for seed in range(len(taken) + seeds) if seed not in taken]
    runs += [
        kind.model_copy(update={"name": f"{kind.name}-s{seed}", "seed": seed}) for seed in free
    ]
    return runs[:seeds]


def _kind(trial: Trial) -> str:
    """A key that is equal for trials that differ in name and seed only."""
    return trial.model_copy(update={"name": "any", "seed": 0}).fingerprint()


def _trial_of_depth(sweep: Sweep, depth: int) -> Trial:
    """A trial of another depth, by the sweep's rule. Raises ValueError if there is no rule."""
    first, rule = sweep.trials[0], rate_rule(list(sweep.trials))
    different = [
        trial.name for trial in sweep.trials if _at_depth(trial, 1, 1) != _at_depth(first, 1, 1)
    ]
    if different:
        raise ValueError(
            f"--depths {depth}: {first.name} and {different[0]} differ in more than depth, seed "
            "and peak learning rate, so there is no rule for a new depth"
        )
    if rule is None:
        raise ValueError(
            f"--depths {depth}: the peak learning rates of the trials follow no common rule"
        )
    width = first.model.at_depth(depth).width
    return _at_depth(first, depth, rule[1] / width if rule[0] == "rate x width" else rule[1])


def _at_depth(trial: Trial, depth: int, rate: float) -> Trial:
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
    return (f"{names}: more than one pass over the tokens; repeated tokens help less than new",)


def parse_integers(text: str) -> tuple[int, ...]:
    """Parse `1-4,6` to (1, 2, 3, 4, 6). Raises ValueError."""
    integers: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise ValueError(f"--depths {text}: depths are written like 1-4,6")
        integers += range(int(low), int(high or low) + 1)
    if not integers or min(integers) < 1:
        raise ValueError(
            f"--depths {text}: depths are at least 1, and a range goes from low to high"
        )
    return tuple(dict.fromkeys(integers))


def parse_numbers(text: str) -> tuple[float, ...]:
    """Parse `0.5,1,2` to floats. Raises ValueError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--lengths {text}: lengths are written like 0.5,1,2") from None


def as_json(next_runs: NextRuns) -> dict[str, Any]:
    """JSON: the law, the current interval, the effect of each run alone, and the plan."""

    def row(step: Any) -> dict[str, Any]:
        return {**asdict(step), "narrowing_per_flop": step.narrowing_per_flop}

    plan = next_runs.plan
    return {
        "law": next_runs.fit.law.name,
        "target": list(next_runs.target),
        "predicted": plan.predicted,
        "now": {"low": plan.low, "high": plan.high},
        "level": plan.level,
        "ranking": [row(step) for step in plan.ranking],
        "plan": [row(step) for step in plan.runs],
        "flops": plan.flops,
        "method": plan.method,
        "notes": list(next_runs.notes),
    }
