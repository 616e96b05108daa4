"""C_min(L): the least compute that reached a loss, over runs and steps, with censored points.

Before the learning rate has decayed, a run's loss is higher than its compute could reach. Points
inside a run therefore count only under a constant learning rate. A frontier point that is only an
upper bound, for example at the smallest or largest size tried, is censored
(analysis.compute_optimal.censoring).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.compute_optimal.censoring import censoring_reasons
from analysis.compute_optimal.cost import count_sizes
from analysis.table.runs import run_names
from var_scaling.text import counted

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

CONSTANT = "constant"  # suffix of the names of schedules whose learning rate does not decay
UNRECORDED = "not recorded"
SMOOTHING = 0.05  # decades of compute; it averages noise without changing the curve's shape
WARM_UP = 0.05  # share of a run; warm-up takes 1-3 % (VAR: 2 %), the loss recovers in as long
SAME_COMPUTE = 1e-3  # relative: runs whose FLOPs differ by less have one budget
_LAW_POINTS, _LAW_SIZES = (
    6,
    3,
)  # the least number of uncensored points, and of their sizes, for a law
PER_DECADE = 10  # points per decade of compute; closer points of a run are not independent


class FrontierError(ValueError):
    """The points have no frontier, or not enough runs; the message says why."""


class MixedSchedules(FrontierError):
    """The runs have several schedules with incomparable losses; the caller must select one."""


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Candidates:
    """All points that the frontier was selected from, in order of compute, (n,) each."""

    flops: Array
    loss: Array  # smoothed and interpolated where points inside runs count
    tokens: Array  # NaN where not recorded
    size: Array
    step: Array  # NaN where not recorded
    run: NDArray[np.intp]  # index in `runs`
    runs: tuple[str, ...]
    best: Mask  # whether it is on the frontier: no other point has as little compute and loss
    why: tuple[str, ...]  # why a point is censored; "" if it is not


@dataclass(frozen=True)
class Frontier:
    """The non-dominated points in order of compute, and how they were selected."""

    metric: str
    params: str  # the column that sizes are counted by
    trial: tuple[str, ...]
    flops: Array
    loss: Array
    tokens: Array
    size: Array
    step: Array
    why: tuple[str, ...]  # why a point is censored; "" if it is not
    schedule: str
    within_runs: bool  # whether points inside runs count
    smoothing: float  # decades of compute; 0: none
    warm_up: float  # share of a run
    least_flops: float
    per_decade: int | None  # None: only the ends of runs
    dropped: tuple[str, ...]
    candidates: Candidates = field(repr=False)

    @property
    def censored(self) -> Mask:
        """(n,) whether a point is only an upper bound of C_min."""
        return np.array([bool(reason) for reason in self.why])

    @property
    def of_law(self) -> Mask:
        """(n,) the points that a law is fitted to: the uncensored ones, or all where they are few.

        Upper bounds bend a law: with them the exponent of noise-free curves was .173 where .154 is
        true, without them .154 (docs/coverage.md).
        """
        exact = ~self.censored
        enough = exact.sum() >= _LAW_POINTS and count_sizes(self.size[exact]) >= _LAW_SIZES
        return exact if enough else np.ones(len(exact), dtype=bool)

    def rows(self) -> pd.DataFrame:
        """One row per point, with its trial and the reason for censoring."""
        names = ("trial", "step", "flops", "tokens", "size", "loss", "why")
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def checklist(self) -> dict[str, Any]:
        """How the points were selected, for the report's checklist."""
        excluded = {"trial", "flops", "loss", "tokens", "size", "step", "why", "candidates"}
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in excluded}
        counts = {"points": len(self.flops), "censored": int(self.censored.sum())}
        return {**settings, **counts, "runs": len(self.candidates.runs)}


def frontier(
    points: pd.DataFrame,
    metric: str,
    *,
    params: str = "params_blocks",
    schedule: str | None = None,
    within_runs: bool | None = None,
    smoothing: float = SMOOTHING,
    warm_up: float = WARM_UP,
    least_flops: float = 0.0,
    per_decade: int = PER_DECADE,
) -> Frontier:
    """The frontier of `metric` in training FLOPs from a table of evaluations, one row per step.

    `schedule` selects the runs of one value of the column `schedule`; MixedSchedules is raised if
    there are several and None is given. `within_runs`: points inside runs count, by default only
    under a constant schedule. They are smoothed over `smoothing` decades of compute, without the
    first `warm_up` share of each run, and interpolated at `per_decade` computes per decade that all
    runs share. Otherwise only the unsmoothed ends of runs count. Rows below `least_flops` are left
    out. Raises FrontierError where no point is left.
    """
    dropped: list[str] = []
    rows = _usable(points, metric, params, dropped)
    rows, schedule = _of_schedule(rows, schedule, dropped)
    within = schedule.endswith(CONSTANT) if within_runs is None else within_runs
    if within:
        # Before the smoothing: a warm-up loss would otherwise raise the points after it.
        early = (rows.share < warm_up) | (rows.flops < least_flops)
        rows = _drop_rows(rows, early, "in the warm-up", dropped)
        rows = _smoothed(rows, smoothing) if smoothing > 0 else rows
        # Thinning the frontier itself to k points a decade bends it: the exponent was .476 where
        # .452 is true. Runs read at common computes, smoothed, gave .4475 (LOG.md).
        rows = _interpolated(rows, per_decade)
    else:
        rows = _drop_rows(rows, rows.flops < least_flops, "below the least FLOPs", dropped)
        rows = _at_equal_compute(_ends(rows, dropped))
    if rows.empty:
        raise FrontierError(f"no point of {metric} is left: " + "; ".join(dropped[:5]))
    candidates = _candidates(rows)
    kept = candidates.best
    return Frontier(
        metric, params, tuple(candidates.runs[run] for run in candidates.run[kept]),
        candidates.flops[kept], candidates.loss[kept], candidates.tokens[kept],
        candidates.size[kept], candidates.step[kept],
        tuple(why for why, chosen in zip(candidates.why, kept, strict=True) if chosen),
        schedule, within, smoothing if within else 0.0, warm_up if within else 0.0, least_flops,
        per_decade if within else None, tuple(dropped), candidates,
    )  # fmt: skip


def non_dominated(points: pd.DataFrame, metric: str, flops: str = "train_flops") -> pd.DataFrame:
    """The rows that no other equals or beats in both `flops` and `metric`, in order of `flops`."""
    known = points.dropna(subset=[flops, metric])
    by = [flops, metric, *(["trial"] if "trial" in known else [])]
    # Of equal points the first counts; the trial's name makes that independent of the row order.
    ordered = known.sort_values(by, kind="stable")
    return ordered[_non_dominated(ordered[metric].to_numpy(dtype=float))]


def run_ends(points: pd.DataFrame, metric: str, params: str = "params_blocks") -> pd.DataFrame:
    """The last row of each finished run in `points`: the data of approaches 2 and 3."""
    return points.iloc[_ends(_usable(points, metric, params, []), []).place.to_numpy()]


def _non_dominated(loss: Array) -> Mask:
    """(n,) whether each loss, in order of compute, is below all before it; never true for inf."""
    # Shifted by one, so that a loss is compared with those before it and not with itself.
    before = np.concatenate([[np.inf], np.minimum.accumulate(loss)[:-1]])
    return np.asarray(loss < before)


def _usable(points: pd.DataFrame, metric: str, params: str, dropped: list[str]) -> pd.DataFrame:
    """The rows with usable numbers, under short column names, sorted by FLOPs.

    `place` is the index of the row in `points`, `share` how far the run had progressed, 0 to 1.
    """
    missing = [n for n in ("trial", "train_flops", params, metric) if n not in points.columns]
    if missing:
        raise FrontierError(f"columns missing: {', '.join(missing)}")
    rows = pd.DataFrame({"run": run_names(points).to_numpy(), "place": np.arange(len(points))})
    source = {"flops": "train_flops", "loss": metric, "size": params, "tokens": "tokens_seen"}
    for name, column in (source | {"step": "step", "steps": "steps"}).items():
        values = points.get(column, pd.Series(np.nan, index=points.index))
        rows[name] = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
    schedules = points.get("schedule", pd.Series(None, index=points.index, dtype=object))
    rows["schedule"] = (
        schedules.astype(object).where(schedules.notna(), UNRECORDED).astype(str).to_numpy()
    )
    for name in ("flops", "loss", "size"):
        bad = ~(np.isfinite(rows[name]) & (rows[name] > 0))
        rows = _drop_rows(rows, bad, f"{source[name]} is not a positive number", dropped)
    # Ties are ordered by loss, run and step, so that the order of rows has no effect.
    rows = rows.sort_values(["flops", "loss", "run", "step"], kind="stable", ignore_index=True)
    # Where the steps are unknown, progress is measured in FLOPs against the run's last row.
    largest = rows.groupby("run").flops.transform("max")
    rows["share"] = (rows.step / rows.steps).fillna(rows.flops / largest)
    return rows


def _drop_rows(
    rows: pd.DataFrame, bad: Iterable[bool], reason: str, dropped: list[str]
) -> pd.DataFrame:
    """`rows` without the bad ones; adds a line per run with the reason to `dropped`."""
    bad = np.asarray(bad, dtype=bool)
    for run, count in rows[bad].groupby("run").size().items():
        dropped.append(f"{run}: {count} row{'s' if count > 1 else ''}: {reason}")
    return rows[~bad]


def _of_schedule(
    rows: pd.DataFrame, schedule: str | None, dropped: list[str]
) -> tuple[pd.DataFrame, str]:
    """The rows of one schedule, and its name. Raises MixedSchedules or FrontierError."""
    counts = rows.groupby("schedule").run.nunique()
    if schedule is None:
        if len(counts) > 1:
            listed = ", ".join(f"{name} ({counted(runs, 'run')})" for name, runs in counts.items())
            raise MixedSchedules(
                f'several schedules: {listed}; select one, as by --where "schedule == '
                f"'{counts.index[0]}'\""
            )
        return rows, str(counts.index[0]) if len(counts) else UNRECORDED
    if schedule not in counts:
        raise FrontierError(
            f"no run has the schedule {schedule}; the schedules are {list(counts.index)}"
        )
    return _drop_rows(rows, rows.schedule != schedule, "another schedule", dropped), schedule


def _ends(rows: pd.DataFrame, dropped: list[str]) -> pd.DataFrame:
    """The last row of each finished run; a run of unknown length counts as finished."""
    last = rows[~rows.duplicated("run", keep="last")]
    # A comparison with NaN is False, so a run whose steps are unknown is kept.
    return _drop_rows(last, last.step < last.steps, "the run has not ended", dropped)


def _at_equal_compute(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with their FLOPs set to the least of each group of nearly equal FLOPs.

    6 N D of whole numbers and nominal budgets differ by rounding. Otherwise the rows of one budget
    would be in an order by chance, and each that is lower than those before it on the frontier.
    """
    rows, least = rows.copy(), 0.0
    flops = rows.flops.to_numpy(copy=True)  # ascending
    for index, value in enumerate(flops):
        least = least if value <= least * (1 + SAME_COMPUTE) else value
        flops[index] = least
    rows["flops"] = flops
    return rows.sort_values(["flops", "loss", "run", "step"], kind="stable", ignore_index=True)


def _smoothed(rows: pd.DataFrame, decades: float) -> pd.DataFrame:
    """Log loss smoothed by local linear regression in log compute, unbiased at the ends."""
    rows = rows.copy()
    smooth = rows.loss.to_numpy(dtype=float, copy=True)
    u, z = np.log10(rows.flops.to_numpy()), np.log(smooth)
    for indices in rows.groupby("run").indices.values():
        distance = u[indices] - u[indices][:, None]
        # Gaussian weights (m, m) of the run's m points. The smoothed value is the intercept of a
        # weighted line through them; a weighted mean alone would be biased at the ends of the run.
        w = np.exp(-0.5 * (distance / decades) ** 2)
        s0, s1, s2 = w.sum(1), (w * distance).sum(1), (w * distance**2).sum(1)
        s2 = s2 + 1e-6 * decades**2 * s0  # keeps an isolated point unchanged
        t0, t1 = w @ z[indices], (w * distance) @ z[indices]
        smooth[indices] = np.exp((s2 * t0 - s1 * t1) / (s0 * s2 - s1**2))
    rows["loss"] = smooth
    return rows


def _interpolated(rows: pd.DataFrame, per_decade: int) -> pd.DataFrame:
    """Each run at common computes, by linear interpolation in logs.

    Runs are compared at equal compute, so a run that was evaluated more often has no advantage. The
    highest common compute is the largest of any run, so its last point is included.
    """
    if rows.empty:
        return rows
    top, bottom = np.log10(rows.flops.max()), np.log10(rows.flops.min())
    # Counted down from the largest compute, in steps of 1 / per_decade.
    grid = top - np.arange(int((top - bottom) * per_decade) + 1)[::-1] / per_decade
    parts = []
    for run, points in rows.groupby("run"):
        u = np.log10(points.flops.to_numpy())
        # No extrapolation: a run exists only between its first and last evaluation.
        inside = grid[(grid >= u[0]) & (grid <= u[-1])]
        columns = {
            name: np.exp(np.interp(inside, u, np.log(points[name].to_numpy())))
            for name in ("loss", "tokens", "size")
        }
        step = np.interp(inside, u, points.step.to_numpy())
        parts.append(pd.DataFrame({"run": run, "flops": 10**inside, "step": step, **columns}))
    order = ["flops", "loss", "run", "step"]
    return pd.concat(parts).sort_values(order, kind="stable", ignore_index=True)


def _candidates(rows: pd.DataFrame) -> Candidates:
    """The rows as Candidates, with the frontier and the censoring marked."""
    runs, run = np.unique(rows.run.to_numpy(dtype=str), return_inverse=True)
    flops, loss, size = (rows[name].to_numpy(dtype=float) for name in ("flops", "loss", "size"))
    # Rows are in order of compute, so a point is on the frontier if no earlier loss is as low.
    best = _non_dominated(loss)
    return Candidates(
        flops, loss, rows.tokens.to_numpy(), size, rows.step.to_numpy(), run,
        tuple(map(str, runs)), best, censoring_reasons(flops, loss, size, best),
    )  # fmt: skip
