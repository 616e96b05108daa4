"""Print laws: tables, verdicts, refused fits and the paths of the report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table

from pipelines.cli.options import RUNS
from pipelines.cli.terminal.console import new_table

if TYPE_CHECKING:
    from analysis.report.compare import Difference

_LISTED = 20  # dropped rows that the terminal shows


def law_tables(laws: dict[str, Any]) -> Group:
    """Two tables: pure power laws, and laws with a fitted irreducible loss E."""
    title = (
        f"{laws['sweep']}: {laws['runs']} runs of {laws['sizes']} sizes, "
        f"{laws['decades']:.1f} decades of N"
    )
    pure = new_table(
        "pure: L = (β x)^-α", "α [95 %]", "β", "r", "R²", "largest predicted", title=title
    )  # fmt: skip
    with_e = new_table(
        "with E: L = E + (β x)^-α", "E [95 %]", "α [95 %]", "β", "r", "R²", "largest predicted",
        caption=f"objective: {laws['objective']}; intervals by profile; r and R² of log(L − E) on "
        "log x; predicted: error of the loss predicted from the smaller sizes",
    )  # fmt: skip
    for law in laws["laws"]:
        fit, values = law["fit"], law["fit"]["values"]
        label = law["label"] + (", NO LAW" if law["no_law"] else "")
        at_bound = " (at its bound)" if law["exponent_at_bound"] else ""
        cells = [
            f"{number(values['alpha'], '.4f')}{at_bound} "
            f"{_interval(law['intervals']['alpha'], '.3f')}",
            number(fit["paper_beta"], ".2e"),
            number(fit["r"], ".4f"),
            number(fit["r2"], ".4f"),
            number(law["held_out"]["relative_error"], "+.1%") if law["held_out"] else "",
        ]
        if fit["law"] == "floor":
            floor = f"{number(values['E'], '.3f')} {_interval(law['intervals']['E'], '.2f')}"
            with_e.add_row(label, floor, *cells)
        elif fit["law"] == "pure":
            pure.add_row(label, *cells)
    return Group(pure, with_e)


def contradictions(laws: dict[str, Any]) -> list[str]:
    """What contradicts the laws, so that none is announced: the first lines of the output."""
    return [each["text"] for each in laws["warnings"] if each["metrics"]]


def limitations(laws: dict[str, Any]) -> list[str]:
    """The other warnings, the flags of the fits, the notes on the table and the dropped rows."""
    lines = [f"warning: {each['text']}" for each in laws["warnings"] if not each["metrics"]]
    flags = [
        f"{law['label']}, {law['fit']['law']}: {flag}"
        for law in laws["laws"]
        for flag in law["fit"]["flags"]
    ]
    lines += [f"flag: {line}" for line in group_by_reason(flags)]
    lines += [f"note: {note}" for note in laws["notes"]]
    lines += [f"left out: {row}" for row in laws["dropped"][:_LISTED]]
    if (more := len(laws["dropped"]) - _LISTED) > 0:
        lines.append(f"left out: {more} more rows; laws.json and the report list all of them")
    return lines


def verdicts(laws: dict[str, Any]) -> list[str]:
    """Whether the data prefer a law with irreducible loss E: one line for each metric, in N."""
    size = laws["size"]
    symbols = {law["metric"]: law["label"] for law in laws["laws"] if law["variable"] == size}
    return [
        f"{symbols[choice['metric']]}: {choice['verdict']}"
        for choice in laws["choices"]
        if choice["variable"] == size and choice["metric"] in symbols
    ]


def best_learning_rates(laws: dict[str, Any]) -> list[str]:
    """One line for each size that was run with several learning rates, and what the laws use."""
    lines = [
        f"N = {row['size']:,.10g}: best of {len(row['losses'])} learning rates {row['best']:.3g}"
        + (f" = {row['constant']:.3g} / width" if row["constant"] is not None else "")
        + (", at the edge of the tried range" if row["at_edge"] else "")
        for row in laws.get("rates", [])
    ]
    if lines:
        lines.append("the laws above use the trials of all learning rates, not only of the best")
    return lines


def group_by_reason(refused: list[str]) -> list[str]:
    """Merge the lines `LAW, form: reason` with the same reason into `LAW, LAW: reason`."""
    laws: dict[str, list[str]] = {}
    for line in refused:
        law, _, reason = line.partition(": ")
        label = law.removesuffix(", pure").removesuffix(", floor").removesuffix(", logit")
        laws.setdefault(reason, []).append(label)
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in laws.items()]


def number(value: float | None, spec: str) -> str:
    """`value` in `spec`; with 4 significant digits where `spec` shows too many digits or none."""
    if value is None:
        return "–"
    small = value != 0 and spec.endswith("f") and not float(f"{value:{spec}}")
    large = abs(value) >= 1e6 and not spec.endswith("e")
    return f"{value:.4g}" if small or large else f"{value:{spec}}"


def _interval(interval: dict[str, float | None], spec: str) -> str:
    low, high = interval["low"], interval["high"]  # None: unbounded
    ends = "−∞" if low is None else number(low, spec), "∞" if high is None else number(high, spec)
    return f"[{ends[0]}, {ends[1]}]"


def print_paths(console: Console, published: dict[str, Path], sweep: str, home: Path) -> None:
    for title, path in published.items():
        console.print(f"{title:8} {path}", soft_wrap=True, highlight=False)
    command = f"var-scaling ui {sweep}" + (
        f" --home {home}" if home.resolve() != RUNS.resolve() else ""
    )
    console.print(
        f"compare  {command}   (the runs side by side, in MLflow)", soft_wrap=True, highlight=False
    )


def difference_table(difference: "Difference") -> Table:
    """The laws of both sweeps, side by side."""
    columns = difference.rows()
    table = new_table(*columns, title=" against ".join(difference.names))
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table
