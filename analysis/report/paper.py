r"""What a paper needs of a study: figures of one panel, a LaTeX table of chosen laws, an example.

The table fits one column of a two-column article (\linewidth in a `table`) or both (`table*`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis import format as formats
from analysis.compute_optimal.surface import SurfaceLaw
from analysis.fitting.laws import SURFACE
from analysis.law_result import LawResult
from analysis.parallel import in_processes
from analysis.plots.paper import FORMATS, PaperFigure, paper_figures
from analysis.report.latex import FORMS_IN_TWO, NO_LAW, PARAMETERS, escape, number, symbol
from analysis.study import Study
from analysis.summary import announced_laws, verdicts
from analysis.uncertainty.intervals import Interval

TABLE, EXAMPLE = "laws.tex", "example.tex"
_METRICS = {"L": "L_mean", "E": "Err_mean", "Err": "Err_mean"}  # short names of metrics
_MOST_ROWS = 12  # of a table in one column: more rows are too long, and go over both columns
_OTHERS = ("gamma", "delta", "R_star")  # parameters that only some laws in N and D have
_FLOATS = 6  # of the example, before a new page: LaTeX holds back only a few


class RowError(ValueError):
    """A requested row does not exist; the message lists the rows that do."""


@dataclass(frozen=True)
class Row:
    """A law of a table."""

    label: str  # as in the report: L_mean(N)
    metric: str
    law: LawResult | SurfaceLaw

    @property
    def name(self) -> str:
        """The label and the form: L_mean(N) floor."""
        return f"{self.label} {self.law.fit.law.name}"


# Rows ----------------------------------------------------------------------------------------


def all_rows(study: Study) -> list[Row]:
    """Every law of `study`."""
    rows = [Row(each.label, each.metric, each) for each in study.findings]
    in_two = (*study.surfaces.values(), *study.forms)
    return rows + [Row(study.surface_label(law.metric), law.metric, law) for law in in_two]


def announced_rows(study: Study) -> list[Row]:
    """The laws that the report announces, in its order, and the others in N and D that were asked
    for.
    """
    pairs = [(verdict.metric, verdict.variable) for verdict in verdicts(study)]
    rows = [row for pair in pairs for row in _announced(study, *pair)]
    forms = {id(form) for form in study.forms if not form.no_law}
    return rows + [row for row in all_rows(study) if id(row.law) in forms]


def _announced(study: Study, metric: str, variable: str) -> list[Row]:
    forms = announced_laws(study, metric, variable)
    rows = []
    for row in all_rows(study):
        is_surface = isinstance(row.law, SurfaceLaw)
        of_variable = is_surface or getattr(row.law, "variable", None) == variable
        if row.metric == metric and of_variable and row.law.fit.law.name in forms:
            rows.append(row)
    return rows


def choose_rows(studies: Mapping[str, Study], names: Sequence[str] | None) -> dict[str, list[Row]]:
    """The rows of each study: those of these names, by default those that the report announces.

    A name is a label, with or without a form: "L_mean(N)" is the form that the report announces,
    "L_mean(N) floor" that with a fitted E. Raises RowError for a name that no study has.
    """
    if not names:
        return {group: announced_rows(study) for group, study in studies.items()}
    chosen: dict[str, list[Row]] = {group: [] for group in studies}
    for name in names:
        found = {group: _named(study, name) for group, study in studies.items()}
        if not any(found.values()):
            raise RowError(f"--rows {name}: there is no such law. The rows are {_known(studies)}")
        for group, rows in found.items():
            present = {row.name for row in chosen[group]}
            chosen[group] += [row for row in rows if row.name not in present]
    return chosen


def _named(study: Study, name: str) -> list[Row]:
    matched = re.fullmatch(r"([A-Za-z_]+)\(([^()]*)\)\s*(\w*)", name.strip())
    if matched is None:
        return []
    metric, variables, form = matched.groups()
    metric = _METRICS.get(metric, metric)
    given = [each.strip() for each in variables.split(",")]
    labels = [f"{metric}({', '.join(given)})"]
    if given[0] == "N" and study.size == "params_total":  # the only count of this table
        labels.append(f"{metric}({', '.join(['N_total', *given[1:]])})")
    rows = [row for row in all_rows(study) if row.label in labels]
    if form:
        return [row for row in rows if row.law.fit.law.name == form]
    announced = [row for row in rows if _is_first(study, row)]
    return announced or [row for row in rows if row.law.fit.law.name != "logit"] or rows


def _is_first(study: Study, row: Row) -> bool:
    """Whether a label without a form names this row."""
    form = row.law.fit.law.name
    if isinstance(row.law, SurfaceLaw):
        return form == SURFACE.name or row.metric not in study.surfaces
    return form in announced_laws(study, row.metric, row.law.variable)


def _known(studies: Mapping[str, Study]) -> str:
    """The names of all rows: each label, with its forms if there are several."""
    forms: dict[str, list[str]] = {}
    for study in studies.values():
        for row in all_rows(study):
            known = forms.setdefault(row.label, [])
            if row.law.fit.law.name not in known:
                known.append(row.law.fit.law.name)
    labels = [
        f"{label} ({', '.join(names)})" if len(names) > 1 else label
        for label, names in forms.items()
    ]
    return "; ".join(labels) or "none: no law could be fitted"


# Table ---------------------------------------------------------------------------------------


def paper_table(study: Study, rows: Sequence[Row], columns: str | None = None) -> str:
    r"""`rows` as a table that is not wider than \linewidth; needs booktabs and graphicx.

    `columns`: "one", where each interval is below its value, or "two", where it is beside it. By
    default one, and two for many rows.
    """
    wide = (columns or default_columns(rows)) == "two"
    header, under = _wide_header(study, rows) if wide else _narrow_header(study, rows)
    body: list[str] = []
    for row in rows:
        if body and not wide:
            body.append(r"\addlinespace")
        body += _wide_lines(study, row, rows) if wide else _narrow_lines(study, row, rows)
    if any(_dagger(study, row) for row in rows):
        note = rf"\scriptsize{NO_LAW} no law: the runs contradict it or differ in $D$"
        body += [r"\addlinespace", rf"\multicolumn{{{len(header)}}}{{@{{}}l@{{}}}}{{{note}}} \\"]
    return "\n".join([
        f"% Laws fitted by {study.objective}; data {study.table.fingerprint}.",
        r"% Needs \usepackage{booktabs,graphicx}. Brackets: 95 % intervals. r: Pearson, of",
        "% log(L - E) against the log of the variable. RMS: relative error of the fit. held out:",
        "% relative error at the largest size, predicted from the smaller ones.",
        r"{\small\setlength{\tabcolsep}{2.5pt}%",
        # \resizebox shrinks only a table that would not fit, because of very long numbers.
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{@{{}}l{'c' * (len(header) - 2)}r@{{}}}}",
        r"\toprule",
        _line(header),
        _line([under[0], *(rf"\scriptsize {each}" if each else "" for each in under[1:])]),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}}",
        "",
    ])  # fmt: skip


def default_columns(rows: Sequence[Row]) -> str:
    """Whether a table of these rows has one column or two of an article."""
    return "two" if len(rows) > _MOST_ROWS else "one"


def _E_units(study: Study, rows: Sequence[Row]) -> list[str]:
    """The units of E of the rows that have it, in LaTeX."""
    units = [study.unit(row.metric) for row in rows if row.law.fit.law.floor]
    return [escape(unit) for unit in dict.fromkeys(units)]


def _in_two(rows: Sequence[Row]) -> bool:
    """Whether a row is a law in N and D."""
    return any(isinstance(row.law, SurfaceLaw) for row in rows)


def _others(rows: Sequence[Row]) -> list[str]:
    """The parameters of `_OTHERS` that a row has."""
    return [name for name in _OTHERS if any(name in row.law.fit.values for row in rows)]


def _form(row: Row) -> str:
    """The name of another form than the surface, of a law in N and D; else ""."""
    form = row.law.fit.law.name
    return form if isinstance(row.law, SurfaceLaw) and form != SURFACE.name else ""


def _narrow_header(study: Study, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    exponent, units = "Exponent" if _in_two(rows) else r"$\alpha$", _E_units(study, rows)
    # Several units are too wide for a header: each row then has its own below the label.
    unit = f"({units[0]})" if len(units) == 1 else ""
    return ["Law", exponent, "$E$", "$r$", "$n$"], ["", r"[95\,\%]", unit, "", ""]


def _narrow_lines(study: Study, row: Row, rows: Sequence[Row]) -> list[str]:
    """A line of values and a line of intervals; two more for each further exponent of a law in N
    and D.
    """
    fit, spans = row.law.fit, row.law.intervals
    prefix = r"$\alpha$ " if _in_two(rows) else ""
    E = _value(fit.E) if fit.law.floor else "--"
    E_span = _span(spans.get("E"), 3) if fit.floor is None else r"\scriptsize fixed"
    several = len(_E_units(study, rows)) > 1
    below = [_form(row)]  # the label
    if fit.law.floor and several:
        below.append(f"$E$ in {escape(study.unit(row.metric))}")
    elif fit.law.odds:
        below.append("of the odds")
    text = ", ".join(filter(None, below))
    r = "--" if isinstance(row.law, SurfaceLaw) else number(formats.fixed(fit.r, 3))
    lines = [
        _line([_label(study, row), prefix + _value(fit.alpha), E, r, str(fit.points)]),
        _line([
            rf"{{\scriptsize {text}}}" if text else "", _span(spans.get("alpha"), 3),
            E_span if fit.law.floor else "", "", "",
        ]),
    ]  # fmt: skip
    for name in ("beta", *_OTHERS):
        if name in fit.values:
            lines += [
                _line(["", f"${PARAMETERS[name]}$ {_value(fit[name])}", "", "", ""]),
                _line(["", _span(spans.get(name), 3), "", "", ""]),
            ]
    return lines


def _wide_header(study: Study, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    further = [r"$\beta$"] if _in_two(rows) else []
    further += [f"${PARAMETERS[name]}$" for name in _others(rows)]
    header = ["Law", r"$\alpha$", *further, "$E$", "$r$", "RMS", "held out", "$n$"]
    spans = [r"[95\,\%]"] * (len(header) - 6)
    units = _E_units(study, rows)
    unit = rf"({'; '.join(units)}) [95\,\%]" if units else ""
    return header, ["", *spans, unit, "", r"(\%)", r"(\%)", ""]


def _wide_lines(study: Study, row: Row, rows: Sequence[Row]) -> list[str]:
    fit, spans, held_out = row.law.fit, row.law.intervals, row.law.held_out

    def cell(name: str) -> str:
        if name not in fit.values:
            return "--"
        span = _span(spans.get(name), 4) if name != "E" or fit.floor is None else "(fixed)"
        return f"{_value(fit[name], 4)} {span}".strip()

    is_surface, form = isinstance(row.law, SurfaceLaw), _form(row)
    return [_line([
        _label(study, row) + (f", {form}" if form else ""), cell("alpha"),
        *([cell("beta")] if _in_two(rows) else []), *(cell(name) for name in _others(rows)),
        cell("E") if fit.law.floor else r"{\scriptsize of the odds}" if fit.law.odds else "--",
        "--" if is_surface else number(formats.fixed(fit.r)),
        number(formats.fixed(100 * fit.rms_relative_error, 2)),
        number(formats.fixed(100 * held_out.relative_error, 2)) if held_out else "--",
        str(fit.points),
    ])]  # fmt: skip


def _label(study: Study, row: Row) -> str:
    """The label in LaTeX, with a dagger if it must not be announced as a law."""
    metric, variables = row.label.removesuffix(")").split("(")
    inside = ", ".join(symbol(name) for name in variables.split(", "))
    return f"${symbol(metric)}({inside})$" + (NO_LAW if _dagger(study, row) else "")


def _dagger(study: Study, row: Row) -> bool:
    mixed = not isinstance(row.law, SurfaceLaw) and study.is_mixed(row.law)
    return bool(row.law.no_law) or mixed


def _span(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return ""
    return rf"{{\scriptsize[{_value(interval.low, digits)}, {_value(interval.high, digits)}]}}"


def _value(value: float, digits: int = 3) -> str:
    """With `digits` significant digits, also trailing zeros."""
    if 1e-3 <= abs(value) < 1e3:
        return number(f"{value:#.{digits}g}".rstrip("."))
    return number(formats.significant(value, digits))


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


# Files ---------------------------------------------------------------------------------------


def paper_files(
    study: Study, rows: Sequence[Row], columns: str | None = None, processes: int = 1
) -> dict[str, bytes]:
    """The content of each file for a paper, by its name. `processes`: see analysis.parallel."""
    figures = paper_figures(study)
    files: dict[str, bytes] = {}
    for contents in in_processes([figure.files for figure in figures], processes):
        files |= contents
    if rows:
        files[TABLE] = paper_table(study, rows, columns).encode()
    files[EXAMPLE] = example(study, figures, rows, columns).encode()
    return files


def file_names(study: Study, rows: Sequence[Row]) -> list[str]:
    """The names of the files of `paper_files`, before anything is drawn."""
    figures = [f"{figure.name}.{kind}" for figure in paper_figures(study) for kind in FORMATS]
    return [*figures, *([TABLE] if rows else []), EXAMPLE]


def example(
    study: Study, figures: Sequence[PaperFigure], rows: Sequence[Row], columns: str | None = None
) -> str:
    """A document that includes the table and every figure, to be copied from."""
    star = "*" if (columns or default_columns(rows)) == "two" else ""
    floats = []
    if rows:
        floats.append([
            rf"\begin{{table{star}}}",
            r"  \centering",
            rf"  \caption{{{_table_caption(study, rows)}}}",
            r"  \medskip",
            rf"  \input{{{TABLE.removesuffix('.tex')}}}",
            rf"\end{{table{star}}}",
        ])  # fmt: skip
    floats += [
        [
            r"\begin{figure}",
            r"  \centering",
            rf"  \includegraphics[width=\columnwidth]{{{figure.name}}}",
            rf"  \caption{{{figure.caption}}}",
            r"\end{figure}",
        ]
        for figure in figures
    ]
    body: list[str] = []
    for place, lines in enumerate(floats):
        body += lines + ([r"\clearpage"] if place % _FLOATS == _FLOATS - 1 else [])
    return "\n".join([
        "% Copy from this file what you need: `var-scaling fit --paper` writes it again.",
        r"\documentclass[twocolumn]{article}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
        *body,
        r"\end{document}",
        "",
    ])  # fmt: skip


def _table_caption(study: Study, rows: Sequence[Row]) -> str:
    laws = [r"$L = E + A x^{-\alpha}$", "without $E$ where none is given"]
    if any(row.law.fit.law.odds for row in rows):
        laws.append(r"of the odds: $L / (1 - L) = A x^{-\alpha}$")
    forms = dict.fromkeys(row.law.fit.law.name for row in rows if isinstance(row.law, SurfaceLaw))
    for form in forms:
        name = "" if form == SURFACE.name else f"{form}: "
        laws.append(rf"{name}$L(N, D) = {FORMS_IN_TWO[form].removeprefix('$')}")
    variables = [r"$N$: weights of the blocks", r"$N_{\mathrm{total}}$: all parameters",
                 "$D$: training tokens", "$C$: training compute, along the frontier"]  # fmt: skip
    shown = " ".join(row.label for row in rows)
    used = [
        text for name, text in zip(("(N", "N_total", "D)", "(C"), variables, strict=True)
        if name in shown.replace("(N_total", "( N_total")
    ]  # fmt: skip
    return (
        f"Scaling laws, {'; '.join(laws)}. {'; '.join(used)}. "
        r"Brackets: 95\,\% intervals. $r$: Pearson correlation of $\log(L - E)$ with $\log x$. "
        "$n$: points."
    )
