"""Print laws: tables, verdicts, refused fits and the paths of the report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table

from pipelines.cli.options import RUNS
from pipelines.cli.terminal.console import new_table
from var_scaling.text import counted

if TYPE_CHECKING:
    from analysis.report.compare import Difference

_ZERO = 1e-15  # a smaller number is a rounding error
_LISTED = 20  # dropped rows that the terminal shows
_DEFAULT_CURVE = "parabola of log L"  # analysis.compute_optimal.isoflop.LOG_PARABOLA, without SciPy


def law_tables(laws: dict[str, Any]) -> Group:
    """The surface L(N, D), pure power laws, and laws with a fitted irreducible loss E.

    The surface comes first where runs of one size have different D; laws in N alone of such runs
    are left out, and `verdicts` says why.
    """
    pure, with_e = _tables_of_one_variable(laws)
    surfaces = _surface_table(laws.get("surfaces", []))
    mixed = bool(laws.get("mixed_data"))
    order = [surfaces, pure, with_e] if mixed else [pure, with_e, surfaces]
    tables = [table for table in (*order, *_form_tables(laws)) if table.row_count]
    if tables:
        title = (
            f"{laws['sweep']}: {counted(laws['runs'], 'run')} of {counted(laws['sizes'], 'size')}, "
            f"{laws['decades']:.1f} decades of N"
        )
        tables[0].title = title
        tables[-1].caption = (
            f"objective: {laws['objective']}; r and R² of log(L − E) on log x, of a surface R² of "
            "log L; predicted: error of the loss predicted from the smaller sizes"
        )
    return Group(*tables)


def _tables_of_one_variable(laws: dict[str, Any]) -> tuple[Table, Table]:
    """The pure laws and those with E; without laws in N of runs with different D."""
    pure = new_table(
        "pure: L = (β x)^-α", "α [95 %]", "β", "r", "R²", "largest predicted"
    )  # fmt: skip
    with_e = new_table(
        "with E: L = E + (β x)^-α", "E [95 %]", "α [95 %]", "β", "r", "R²", "largest predicted",
        caption="intervals by profile; of L(C) by the surface of the runs, where there is one",
    )  # fmt: skip
    for law in laws["laws"]:
        if law["variable"] != "train_flops" and law["metric"] in laws.get("mixed_data", {}):
            continue
        fit, values = law["fit"], law["fit"]["values"]
        label = law["label"] + (", NO LAW" if law["no_law"] else "")
        at_bound = " (at its bound)" if law["exponent_at_bound"] else ""
        cells = [
            f"{number(values['alpha'], '.4f')}{at_bound} "
            f"{_interval(law['intervals'].get('alpha'), '.4f')}",
            number(fit["paper_beta"], ".2e"),
            number(fit["r"], ".4f"),
            number(fit["r2"], ".4f"),
            _held_out(law),
        ]
        if fit["law"] == "floor":
            E = _interval(law["intervals"].get("E"), ".3f", _is_fixed(law, "E"))
            floor = f"{number(values['E'], '.3f')} {E}"
            with_e.add_row(label, floor, *cells)
        elif fit["law"] == "pure":
            pure.add_row(label, *cells)
    return pure, with_e


def _surface_table(surfaces: list[dict[str, Any]]) -> Table:
    """A column for each surface: its parameters with 95 % intervals."""
    table = new_table("L = E + A N^-α + B D^-β", *(_surface_heading(each) for each in surfaces))
    if not surfaces:
        return table
    for name in ("E", "A", "alpha", "B", "beta"):
        form, ends = (".4g", ".3g") if name in "AB" else (".4f", ".4f")
        _add_parameter(table, name, surfaces, form, ends)
    _add_quality(table, surfaces)
    return table


def _add_parameter(
    table: Table, name: str, laws: list[dict[str, Any]], form: str, ends: str
) -> None:
    """A row with this parameter and its interval, for each law."""
    from analysis.format import SYMBOLS

    cells = [
        f"{number(each['fit']['values'][name], form)} "
        f"{_interval(each['intervals'].get(name), ends, _is_fixed(each, name))}"
        for each in laws
    ]
    table.add_row(f"{SYMBOLS.get(name, name)} [95 %]", *cells)


def _add_quality(table: Table, laws: list[dict[str, Any]]) -> None:
    table.add_row("R²", *(number(each["fit"]["r2"], ".4f") for each in laws))
    table.add_row("largest N predicted", *map(_held_out, laws))


def _surface_heading(surface: dict[str, Any]) -> str:
    return str(surface["label"]) + (", NO LAW" if surface.get("no_law") else "")


def _form_tables(laws: dict[str, Any]) -> list[Table]:
    """A table for each other law in N and D, with a column for each metric."""
    forms: dict[str, list[dict[str, Any]]] = {}
    for form in laws.get("forms", []):
        forms.setdefault(form["fit"]["formula"], []).append(form)
    surfaces = {each["metric"]: each for each in laws.get("surfaces", [])}
    tables = []
    for formula, found in forms.items():
        table = new_table(formula, *(_surface_heading(each) for each in found))
        for name in found[0]["fit"]["values"]:
            _add_parameter(table, name, found, ".4g", ".3g")
        _add_quality(table, found)
        against = [_against_surface(each, surfaces.get(each["metric"])) for each in found]
        if any(against):
            table.add_row("AICc less that of the surface", *against)
        tables.append(table)
    return tables


def _against_surface(form: dict[str, Any], surface: dict[str, Any] | None) -> str:
    """The difference of AICc; "" where there is no surface of the same runs."""
    if surface is None or surface["trials"] != form["trials"]:
        return ""
    pair = form["aicc"], surface["aicc"]
    return "" if None in pair else f"{pair[0] - pair[1]:+.1f}"


def prediction_table(predictions: list[dict[str, Any]]) -> Table:
    """The loss by each law at the values of --predict."""
    table = new_table("predicted", "at", "L", "95 % of a new run", "note")
    for each in predictions:
        at = ", ".join(f"{name} = {value:.4g}" for name, value in each["at"].items())
        span = _interval(each["interval"], ".4f") if each["interval"] else "–"
        label = f"{each['label']}, {each['law']}"
        table.add_row(label, at, number(each["loss"], ".4f"), span, "; ".join(each["notes"]))
    return table


def surface_lines(laws: dict[str, Any]) -> list[str]:
    """What each surface was fitted to, its warnings, and the best N and D for a budget."""
    lines = []
    for surface in (*laws.get("surfaces", []), *laws.get("forms", [])):
        first = next(iter(surface["intervals"].values()))
        label = surface["label"]
        if surface["fit"]["law"] != "surface":
            label += f", {surface['fit']['law']}"
        lines.append(f"{label}: {first['basis']}; intervals by {first['method']}")
        if surface.get("no_law"):
            lines.append(f"{label}, no law: {surface['no_law']}")
        lines += [f"{label}: {flag}" for flag in surface["flags"]]
    allocation = laws.get("allocation") or {}
    for row in allocation.get("approaches", []):
        if row["approach"] == 3 and not row["refused"]:
            if _no_surface(laws):
                continue
            lines.append(f"{_best_use('the surface', row)}; {allocation['cost']}")
        # Another curve than the default was asked for, so its result is shown.
        elif (
            row["approach"] == 2
            and allocation.get("isoflop_curve", _DEFAULT_CURVE) != _DEFAULT_CURVE
        ):
            of = f"by {row['by']} (approach 2)"
            refused = f"no best use of C FLOPs {of}: {row['refused']}"
            lines.append(refused if row["refused"] else _best_use(row["by"], row))
    if unused := allocation.get("isoflops_unused"):
        lines.append(
            f"--budget-column: the FLOPs of {unused} runs differ by more than 5 % from every "
            "budget; they are on no isoFLOP"
        )
    return lines


def _best_use(name: str, row: dict[str, Any]) -> str:
    a, b = (
        f"{number(row[each], '.3f')} [{number(row[f'{each}_low'], '.3f')}, "
        f"{number(row[f'{each}_high'], '.3f')}]"
        for each in ("a", "b")
    )
    return f"best use of C FLOPs by {name} (approach {row['approach']}): N* ∝ C^{a}, D* ∝ C^{b}"


def _no_surface(laws: dict[str, Any]) -> bool:
    """Whether the surface of the best N and D is no law; it is that of L_mean."""
    of_loss = (each for each in laws.get("surfaces", []) if each["metric"] == "val_loss")
    return any(each.get("no_law") for each in of_loss)


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
    if abs(value) < _ZERO and not spec.endswith("e"):
        return f"{0:{spec}}"
    small = value != 0 and spec.endswith("f") and not float(f"{value:{spec}}")
    large = abs(value) >= 1e6 and not spec.endswith("e")
    return f"{value:.4g}" if small or large else f"{value:{spec}}"


def _held_out(law: dict[str, Any]) -> str:
    return number(law["held_out"]["relative_error"], "+.1%") if law["held_out"] else ""


def _is_fixed(law: dict[str, Any], name: str) -> bool:
    return name == "E" and law["fit"]["floor_fixed_at"] is not None


def _interval(interval: dict[str, float | None] | None, spec: str, fixed: bool = False) -> str:
    if interval is None:
        return "fixed" if fixed else "no interval"
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
