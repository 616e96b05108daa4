"""C_min(L): the least compute that reached a loss, over runs and steps, and what only bounds it.

A loss before the learning rate has decayed is not what that compute can reach, so points of a run
under way count only under a constant rate. Where a size was still the best when it stopped, or was
the smallest or largest tried, what is seen is an upper bound: such points are censored.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.compute_optimal.censoring import bounds

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

CONSTANT = "constant"  # how the name of a class ends whose rate does not decay
UNRECORDED = "not recorded"
SMOOTHING = 0.05  # decades of compute: averages a run's jitter, bends no curve
WARM_UP = 0.05  # share of a run: warm-ups take 1-3 % (VAR: 2 %), and the loss as long to catch up
PER_DECADE = 10  # of compute: closer points of a run are one measurement, not many


class FrontierError(ValueError):
    """There is no frontier of these points; the message says why."""


class MixedSchedules(FrontierError):
    """Runs of several schedules reach different losses at one compute: the caller picks a class."""


@dataclass(frozen=True)
class Candidates:
    """All points that the frontier was chosen from, by rising compute, (n,) each."""

    flops: Array
    loss: Array  # smoothed, and read at common computes, where runs under way count
    tokens: Array  # NaN where not recorded
    size: Array
    step: Array  # NaN where not recorded
    run: NDArray[np.intp]  # index in `runs`
    runs: tuple[str, ...]
    best: Mask  # no other point has as little compute and as little loss
    why: tuple[str, ...]  # why it would only be an upper bound; "" if it is the frontier's own


@dataclass(frozen=True)
class Frontier:
    """The non-dominated points by rising compute, and how they were chosen."""

    metric: str
    params: str  # the column that sizes are counted by
    trial: tuple[str, ...]
    flops: Array
    loss: Array
    tokens: Array
    size: Array
    step: Array
    why: tuple[str, ...]
    schedule: str
    within_runs: bool
    smoothing: float  # decades of compute; 0: none
    warm_up: float  # share of a run
    least_flops: float
    per_decade: int | None  # None: ends of runs, all of them
    dropped: tuple[str, ...]
    candidates: Candidates = field(repr=False)

    @property
    def censored(self) -> Mask:
        """Which points only bound C_min from above."""
        return np.array([bool(reason) for reason in self.why])

    def rows(self) -> pd.DataFrame:
        """One row a point, with its trial and why it is censored."""
        names = ("trial", "step", "flops", "tokens", "size", "loss", "why")
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def checklist(self) -> dict[str, Any]:
        """How the points were chosen, for a report."""
        skipped = {"trial", "flops", "loss", "tokens", "size", "step", "why", "candidates"}
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped}
        counts = {"points": len(self.flops), "censored": int(self.censored.sum())}
        return {**chosen, **counts, "runs": len(self.candidates.runs)}


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
    """The frontier of `metric` in training FLOPs over a table of evaluations, one row a step.

    `schedule` picks one class of the column `schedule`; MixedSchedules is raised where there are
    several and none is picked. `within_runs`: runs under way count too, by default only under a
    constant schedule: less the first `warm_up` share of each, smoothed over `smoothing` decades of
    compute, and read at `per_decade` computes, the same for all runs. Else ends of runs, as they
    are. Rows before `least_flops` are left out. Raises FrontierError where nothing is left.
    """
    dropped: list[str] = []
    rows = _usable(points, metric, params, dropped)
    rows, schedule = _one_class(rows, schedule, dropped)
    within = schedule.endswith(CONSTANT) if within_runs is None else within_runs
    if within:
        early = (rows.share < warm_up) | (rows.flops < least_flops)
        rows = _without(rows, early, "in the warm-up", dropped)
        rows = _smoothed(rows, smoothing) if smoothing > 0 else rows
        rows = _read_at(rows, per_decade)
    else:
        rows = _without(rows, rows.flops < least_flops, "below the least FLOPs", dropped)
        rows = _ends(rows, dropped)
    if rows.empty:
        raise FrontierError(f"no point of {metric} is left: " + "; ".join(dropped[:5]))
    found = _candidates(rows)
    kept = found.best
    return Frontier(
        metric, params, tuple(found.runs[run] for run in found.run[kept]),
        found.flops[kept], found.loss[kept], found.tokens[kept], found.size[kept],
        found.step[kept], tuple(why for why, on in zip(found.why, kept, strict=True) if on),
        schedule, within, smoothing if within else 0.0, warm_up if within else 0.0, least_flops,
        per_decade if within else None, tuple(dropped), found,
    )  # fmt: skip


def non_dominated(points: pd.DataFrame, metric: str, flops: str = "train_flops") -> pd.DataFrame:
    """The rows that no other equals or beats in both `flops` and `metric`, by rising compute."""
    known = points.dropna(subset=[flops, metric])
    by = [flops, metric, *(["trial"] if "trial" in known else [])]
    ordered = known.sort_values(by, kind="stable")
    return ordered[leading(ordered[metric].to_numpy(dtype=float)[None])[0]]


def run_ends(points: pd.DataFrame, metric: str, params: str = "params_blocks") -> pd.DataFrame:
    """The rows of `points` at which a run has ended, as approaches 2 and 3 take them."""
    return points.iloc[_ends(_usable(points, metric, params, []), []).place.to_numpy()]


def leading(losses: Array) -> Mask:
    """Which of (B, n) losses, by rising compute, are below all before them; inf never is."""
    before = np.minimum.accumulate(losses, axis=1)
    before = np.concatenate([np.full((len(losses), 1), np.inf), before[:, :-1]], axis=1)
    return np.asarray(losses < before)


def _usable(points: pd.DataFrame, metric: str, params: str, dropped: list[str]) -> pd.DataFrame:
    """The columns that are needed, under plain names, in an order of their own."""
    missing = [n for n in ("trial", "train_flops", params, metric) if n not in points.columns]
    if missing:
        raise FrontierError(f"columns missing: {', '.join(missing)}")
    rows = pd.DataFrame(
        {"run": points.trial.astype(str).to_numpy(), "place": np.arange(len(points))}
    )
    if "sweep" in points and points.sweep.nunique() > 1:
        rows["run"] = points.sweep.astype(str).to_numpy() + "/" + rows.run
    source = {"flops": "train_flops", "loss": metric, "size": params, "tokens": "tokens_seen"}
    for name, column in (source | {"step": "step", "steps": "steps"}).items():
        known = points.get(column, pd.Series(np.nan, index=points.index))
        rows[name] = pd.to_numeric(known, errors="coerce").to_numpy(dtype=float)
    named = points.get("schedule", pd.Series(None, index=points.index, dtype=object))
    rows["schedule"] = named.astype(object).where(named.notna(), UNRECORDED).astype(str).to_numpy()
    for name in ("flops", "loss", "size"):
        bad = ~(np.isfinite(rows[name]) & (rows[name] > 0))
        rows = _without(rows, bad, f"{source[name]} is not a positive number", dropped)
    rows = rows.sort_values(["flops", "loss", "run", "step"], kind="stable", ignore_index=True)
    largest = rows.groupby("run").flops.transform("max")
    rows["share"] = (rows.step / rows.steps).fillna(rows.flops / largest)
    return rows


def _without(rows: pd.DataFrame, bad: Iterable[bool], why: str, dropped: list[str]) -> pd.DataFrame:
    bad = np.asarray(bad, dtype=bool)
    for run, count in rows[bad].groupby("run").size().items():
        dropped.append(f"{run}: {count} row{'s' if count > 1 else ''}: {why}")
    return rows[~bad]


def _one_class(
    rows: pd.DataFrame, schedule: str | None, dropped: list[str]
) -> tuple[pd.DataFrame, str]:
    counts = rows.groupby("schedule").run.nunique()
    if schedule is None:
        if len(counts) > 1:
            listed = ", ".join(f"{name} ({runs} runs)" for name, runs in counts.items())
            raise MixedSchedules(f"several schedules: {listed}; pick one")
        return rows, str(counts.index[0]) if len(counts) else UNRECORDED
    if schedule not in counts:
        raise FrontierError(f"no run has the schedule {schedule}; there are {list(counts.index)}")
    return _without(rows, rows.schedule != schedule, "another schedule", dropped), schedule


def _ends(rows: pd.DataFrame, dropped: list[str]) -> pd.DataFrame:
    """The last row of each run, if the run has ended; one of unknown length has."""
    last = rows[~rows.duplicated("run", keep="last")]
    return _without(last, last.step < last.steps, "the run has not ended", dropped)


def _smoothed(rows: pd.DataFrame, decades: float) -> pd.DataFrame:
    """Log loss by a local straight line in log compute, so the ends of a curve keep their slope."""
    rows = rows.copy()
    smooth = rows.loss.to_numpy(dtype=float, copy=True)
    u, z = np.log10(rows.flops.to_numpy()), np.log(smooth)
    for places in rows.groupby("run").indices.values():
        away = u[places] - u[places][:, None]
        w = np.exp(-0.5 * (away / decades) ** 2)
        s0, s1, s2 = w.sum(1), (w * away).sum(1), (w * away**2).sum(1)
        s2 = s2 + 1e-6 * decades**2 * s0  # a point all alone stays as it is
        t0, t1 = w @ z[places], (w * away) @ z[places]
        smooth[places] = np.exp((s2 * t0 - s1 * t1) / (s0 * s2 - s1**2))
    rows["loss"] = smooth
    return rows


def _read_at(rows: pd.DataFrame, per_decade: int) -> pd.DataFrame:
    """Each run at common computes, between its own points by straight lines in logs.

    As runs are compared at equal compute, how often each was evaluated favours none. The highest is
    the most that any run spent, so no end is lost there.
    """
    if rows.empty:
        return rows
    top, bottom = np.log10(rows.flops.max()), np.log10(rows.flops.min())
    at = top - np.arange(int((top - bottom) * per_decade) + 1)[::-1] / per_decade
    parts = []
    for run, own in rows.groupby("run"):
        u = np.log10(own.flops.to_numpy())
        inside = at[(at >= u[0]) & (at <= u[-1])]
        read = {
            name: np.exp(np.interp(inside, u, np.log(own[name].to_numpy())))
            for name in ("loss", "tokens", "size")
        }
        step = np.interp(inside, u, own.step.to_numpy())
        parts.append(pd.DataFrame({"run": run, "flops": 10**inside, "step": step, **read}))
    order = ["flops", "loss", "run", "step"]
    return pd.concat(parts).sort_values(order, kind="stable", ignore_index=True)


def _candidates(rows: pd.DataFrame) -> Candidates:
    runs, run = np.unique(rows.run.to_numpy(dtype=str), return_inverse=True)
    flops, loss, size = (rows[name].to_numpy(dtype=float) for name in ("flops", "loss", "size"))
    best = leading(loss[None])[0]
    return Candidates(
        flops, loss, rows.tokens.to_numpy(), size, rows.step.to_numpy(), run,
        tuple(map(str, runs)), best, bounds(flops, loss, size, best),
    )  # fmt: skip
