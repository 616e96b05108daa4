"""Choose the next runs of a table: more runs at its points, and points that the user names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.fitting.fit import fit_law
from analysis.fitting.laws import FLOOR, LAWS, PURE, SURFACE
from analysis.forecasting.planner import Candidate, plan
from analysis.forecasting.prediction import OBJECTIVE, quoted_law
from analysis.selection.select import choose
from pipelines.planning.external_table import TableSource, one_group, size_column
from pipelines.planning.named_numbers import point_of_text
from pipelines.planning.next_runs import NextRuns
from pipelines.planning.table_forecasts import point_columns, point_name, refuse_mixed
from pipelines.workspace.store import Home

if TYPE_CHECKING:
    from analysis.table.table import Table

# The search compares all pairs of kinds of runs.
_MOST_POINTS = 24

Point = dict[str, float]
Price = Callable[[Point], float]  # FLOPs of a run at a point


@dataclass(frozen=True)
class TablePlanOptions:
    """The target, the budget and the candidates of a plan for a table."""

    at: str  # N=1e10; N=1e10,D=2e11; or C=1e22
    budget: float  # FLOPs
    metric: str = "val_loss"
    law: str | None = None  # None: surface for N and D, else the law that the data prefer
    candidates: tuple[str, ...] = ()  # points, such as N=3e9,D=6e10; empty: those of the table
    lengths: tuple[float, ...] = (1.0,)  # factors of D
    seeds: int = 3  # most new runs of one point


def next_runs_of_table(source: TableSource, home: Home, options: TablePlanOptions) -> NextRuns:
    """Choose the runs that narrow the prediction interval at the target most. Raises ValueError."""
    table = one_group(source.load(home))
    size = size_column(table)
    target = point_columns("--at", options.at, size)
    columns = tuple(target)
    if len(columns) == 1 and any(length != 1 for length in options.lengths):
        raise ValueError(
            f"--lengths with --at {options.at}: this law does not depend on D; give D, too, as in "
            f"{options.at},D=2e11"
        )
    ends = table.finals.dropna(subset=[*columns, options.metric])
    if ends.empty:
        raise ValueError(
            f"{source.title}: no run has {', '.join([*columns, options.metric])}, which --at "
            f"{options.at} and --metric need"
        )
    law = _law(options, ends, columns)
    refuse_mixed(ends, options.at, target)
    x = tuple(ends[column].to_numpy(dtype=float) for column in columns)
    y = ends[options.metric].to_numpy(dtype=float)
    fit = fit_law(law, x if len(x) > 1 else x[0], y, OBJECTIVE)
    price, notes = _price(table, size, columns)
    points = _named(options, columns, size) or _of_table(ends, columns, options.lengths)
    priced = [(point, price(point)) for point in points]
    if not options.candidates:
        priced, note = _spread(priced, options.budget)
        notes += note
    candidates = [
        Candidate(point_name(point), tuple(point[column] for column in columns), flops, None)
        for point, flops in priced
        for _ in range(options.seeds)
    ]
    at = tuple(target.values())
    return NextRuns(fit, at, plan(fit, at, candidates, options.budget), tuple(notes))


def _law(options: TablePlanOptions, ends: Any, columns: tuple[str, ...]) -> Any:
    allowed = (SURFACE.name,) if len(columns) > 1 else (PURE.name, FLOOR.name)
    if options.law is not None and options.law not in allowed:
        needs = "; surface needs N and D" if options.law == SURFACE.name else ""
        raise ValueError(
            f"--law {options.law} with --at {options.at}: allowed are {', '.join(allowed)}{needs}"
        )
    if options.law is not None or len(columns) > 1:
        return LAWS[options.law or SURFACE.name]
    x, y = (ends[name].to_numpy(dtype=float) for name in (columns[0], options.metric))
    return LAWS[quoted_law(choose(x, y, OBJECTIVE))]


def _price(table: "Table", size: str, columns: Sequence[str]) -> tuple[Price, list[str]]:
    """The FLOPs of a run at a point, and how they are counted.

    As the table counts C(N, D); by C = 6 N D where it counts none. A point without D has that of
    the runs, if it is the same for all.
    """
    from analysis.compute_optimal.cost import CostError, cost_of, six_nd

    finals = table.finals
    try:
        cost, notes = cost_of(finals, size), []
    except CostError as error:
        cost, notes = six_nd(), [f"the FLOPs of the runs are counted by C = 6 N D: {error}"]
    D = finals.tokens_seen.dropna().to_numpy(dtype=float)
    one_D = float(np.median(D)) if len(D) and D.max() / D.min() < 1.01 else None

    def flops_of(point: Point) -> float:
        if "train_flops" in point:
            return point["train_flops"]
        tokens = point.get("tokens_seen", one_D)
        N = next(value for column, value in point.items() if column.startswith("params"))
        if tokens is None:
            same = finals[np.abs(finals[columns[0]].to_numpy(dtype=float) / N - 1) < 1e-3]
            known = same.train_flops.dropna().to_numpy(dtype=float)
            if not len(known):
                raise ValueError(
                    f"the FLOPs of a run at {point_name(point)} are not known: name the points by "
                    "--candidate with D or C, such as --candidate N=3e9,D=6e10, or compute them by "
                    "--complete train_flops"
                )
            return float(known.mean())
        return float(cost(N, tokens))

    return flops_of, notes


def _named(options: TablePlanOptions, columns: tuple[str, ...], size: str) -> list[Point]:
    """The points of --candidate. They may have C or D for their price."""
    names = {"N": size, "N_total": "params_total", "D": "tokens_seen", "C": "train_flops"}
    points = []
    for text in dict.fromkeys(options.candidates):
        given = {names[k]: v for k, v in point_of_text("--candidate", text).items()}
        if missing := [column for column in columns if column not in given]:
            raise ValueError(f"--candidate {text}: has no {missing[0]}, a variable of --at")
        lengths = options.lengths if "tokens_seen" in columns else (1.0,)
        points += [
            {**given, "tokens_seen": given["tokens_seen"] * length} if length != 1 else given
            for length in lengths
        ]
    return points


def _of_table(ends: Any, columns: tuple[str, ...], lengths: Sequence[float]) -> list[Point]:
    """The different points of the runs, each with D times every length."""
    different = ends[list(columns)].astype(float).drop_duplicates().to_dict("records")
    if "tokens_seen" not in columns:
        return different
    points = [
        {**point, "tokens_seen": point["tokens_seen"] * length}
        for point in different
        for length in lengths
    ]
    return [dict(pairs) for pairs in dict.fromkeys(tuple(point.items()) for point in points)]


def _spread(
    priced: list[tuple[Point, float]], budget: float
) -> tuple[list[tuple[Point, float]], list[str]]:
    """At most _MOST_POINTS points within the budget, evenly by FLOPs, and a note if some are left
    out.
    """
    priced = sorted(priced, key=lambda pair: pair[1])
    within = [pair for pair in priced if pair[1] <= budget] or priced
    if len(priced) <= _MOST_POINTS:
        return priced, []
    chosen = np.unique(np.linspace(0, len(within) - 1, _MOST_POINTS).round().astype(int))
    note = (
        f"{len(chosen)} of the {len(priced)} points of the table are candidates, evenly by FLOPs "
        "within the budget; --candidate names others"
    )
    return [within[k] for k in chosen], [note]
