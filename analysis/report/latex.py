r"""The laws as a LaTeX table for a paper; it needs only the package booktabs."""

import re

from analysis import format as formats
from analysis.compute_optimal.surface import SurfaceLaw
from analysis.law_result import METRICS, VARIABLES, LawResult
from analysis.study import Study
from analysis.uncertainty.intervals import Interval

_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
_HEADER = (
    "Law", "Form", r"$\alpha$ (95\,\%)", r"$E$ (95\,\%)", "$r$", "$R^2$", r"RMS (\%)",
    r"held out (\%)", "$n$",
)  # fmt: skip
NO_LAW = r"$^\dagger$"
_FORMS = {
    "pure": r"$A x^{-\alpha}$",
    "floor": r"$E + A x^{-\alpha}$",
    "logit": r"$L/(1-L) = A x^{-\alpha}$",
}
# Right-hand sides of the laws in N and D.
FORMS_IN_TWO = {
    "surface": r"$E + A N^{-\alpha} + B D^{-\beta}$",
    "tied": r"$E + A N^{-\alpha} + B D^{-\alpha}$",
    "interaction": r"$E + A N^{-\alpha} + B N^\gamma D^{-\beta}$",
    "varying": r"$E + A N^{-\alpha} + B N^\gamma D^{-(\beta + \delta \log N)}$",
    "repeated": r"$E + A N^{-\alpha} + B D'^{-\beta}$ with "
    r"$D' = U + U R^* (1 - e^{-(D/U - 1)/R^*})$, $U$: different tokens",
}
PARAMETERS = {
    "alpha": r"\alpha", "beta": r"\beta", "gamma": r"\gamma", "delta": r"\delta", "R_star": "R^*",
}  # fmt: skip
_EXPONENTS = ("alpha", "beta", "gamma", "delta")
_SURFACE_HEADER = (
    "Law", r"$E$ (95\,\%)", r"$A$ (95\,\%)", r"$\alpha$ (95\,\%)", r"$B$ (95\,\%)",
    r"$\beta$ (95\,\%)", "$R^2$", r"RMS (\%)", r"held out (\%)", "$n$",
)  # fmt: skip


def law_table(study: Study) -> str:
    r"""All laws of `study` as a `tabular`, its surfaces as another, and other laws in N and D as a
    third; `\usepackage{booktabs}`.

    "held out" is the error at the largest size of a fit without it. A LaTeX comment names the
    fingerprint of the data. The surfaces come first where runs of one size have different D.
    """
    tables = [_one_variable_table(study), _surface_table(study) + _forms_table(study)]
    return "\n".join(filter(None, reversed(tables) if study.mixed_data else tables))


def _surface_table(study: Study) -> str:
    """The surfaces L(N, D); "" if there are none."""
    if not study.surfaces:
        return ""
    return "\n".join([
        f"% Surfaces L(N, D) fitted by {study.objective}; data {study.table.fingerprint}.",
        r"% $L = E + A N^{-\alpha} + B D^{-\beta}$. R^2 is of log L.",
        *(
            f"% dagger, no law: {study.surface_label(metric)}: {surface.no_law}."
            for metric, surface in study.surfaces.items()
            if surface.no_law
        ),
        rf"\begin{{tabular}}{{l{'r' * (len(_SURFACE_HEADER) - 1)}}}",
        r"\toprule",
        _line(_SURFACE_HEADER),
        r"\midrule",
        *(_line(_surface_cells(surface)) for surface in study.surfaces.values()),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ])  # fmt: skip


def _forms_table(study: Study) -> str:
    """The other laws in N and D, a line for each parameter; "" if there are none."""
    if not study.forms:
        return ""
    lines = [
        "",
        f"% Other laws in N and D fitted by {study.objective}; data {study.table.fingerprint}.",
        *(f"% {form.fit.law.name}: {form.fit.law.formula}" for form in study.forms),
        *(
            f"% dagger, no law: {study.surface_label(form.metric)}, {form.fit.law.name}: "
            f"{form.no_law}."
            for form in study.forms
            if form.no_law
        ),
        r"\begin{tabular}{lllrrr}",
        r"\toprule",
        _line(("Law", "Form", r"Parameters (95\,\%)", "$R^2$", r"RMS (\%)", "$n$")),
    ]
    for form in study.forms:
        fit, first = form.fit, True
        lines.append(r"\midrule")
        for name, value in fit.values.items():
            style = "exponent" if name in _EXPONENTS else "significant"
            shown = _with_interval(formats.FORMS[style](value), form.intervals.get(name), style)
            fixed = " (fixed)" if name not in form.intervals else ""
            cells = (_surface_label(form), fit.law.name) if first else ("", "")
            end = (
                number(formats.fixed(fit.r2)),
                number(formats.fixed(100 * fit.rms_relative_error, 2)),
                str(fit.points),
            )
            parameter = f"${PARAMETERS.get(name, name)}$ {shown}{fixed}"
            lines.append(_line((*cells, parameter, *(end if first else ("", "", "")))))
            first = False
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _surface_label(surface: SurfaceLaw) -> str:
    label = f"${symbol(METRICS[surface.metric][0])}({symbol(VARIABLES[surface.size][0])}, D)$"
    return label + (NO_LAW if surface.no_law else "")


def _surface_cells(surface: SurfaceLaw) -> tuple[str, ...]:
    fit, held_out, span = surface.fit, surface.held_out, surface.intervals
    forms = {"E": "significant", "A": "significant", "alpha": "exponent", "B": "significant",
             "beta": "exponent"}  # fmt: skip
    return (
        _surface_label(surface),
        *(
            _with_interval(formats.FORMS[form](fit[name]), span.get(name), form)
            for name, form in forms.items()
        ),
        number(formats.fixed(fit.r2)),
        number(formats.fixed(100 * fit.rms_relative_error, 2)),
        number(formats.fixed(100 * held_out.relative_error, 2)) if held_out else "--",
        str(fit.points),
    )


def _one_variable_table(study: Study) -> str:
    """The laws in N and in C; "" if there are only laws in N and D."""
    if not study.findings and (study.surfaces or study.forms):
        return ""
    lines = [
        f"% Laws fitted by {study.objective}; data {study.table.fingerprint}.",
        r"% Needs \usepackage{booktabs}. RMS: relative error of the fit. held out: relative",
        "% error at the largest size, predicted from the smaller ones. n: points.",
        *(
            f"% dagger, no law: {each.label}, {each.fit.law.name}: {each.no_law}."
            for each in study.findings
            if each.no_law
        ),
        rf"\begin{{tabular}}{{ll{'r' * (len(_HEADER) - 2)}}}",
        r"\toprule",
        _line(_HEADER),
        r"\midrule",
    ]
    previous = None
    for finding in study.findings:
        if previous is not None and finding.variable != previous:
            lines.append(r"\addlinespace")
        lines.append(_line(_cells(finding, study.is_mixed(finding))))
        previous = finding.variable
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escape(text: str) -> str:
    """`text` with LaTeX's special characters escaped."""
    return "".join(_ESCAPED.get(character, character) for character in text)


def symbol(name: str) -> str:
    r"""L_mean as $L_{\mathrm{mean}}$; a base of more than one letter is set upright."""
    base, _, subscript = name.partition("_")
    shown_base = base if len(base) == 1 else rf"\mathrm{{{base}}}"
    return rf"{shown_base}_{{\mathrm{{{subscript}}}}}" if subscript else shown_base


def _cells(finding: LawResult, mixed: bool) -> tuple[str, ...]:
    fit, held_out = finding.fit, finding.held_out
    label = f"${symbol(METRICS[finding.metric][0])}({symbol(VARIABLES[finding.variable][0])})$"
    label += " at different $D$" if mixed else ""
    E = _with_interval(formats.significant(fit.E), finding.intervals.get("E"), "significant")
    return (
        label,
        _FORMS.get(fit.law.name, escape(fit.law.name)),
        _with_interval(formats.exponent(fit.alpha), finding.intervals.get("alpha"), "exponent")
        + (NO_LAW if finding.no_law else ""),
        E if fit.law.floor else "--",
        number(formats.fixed(fit.r)),
        number(formats.fixed(fit.r2)),
        number(formats.fixed(100 * fit.rms_relative_error, 2)),
        number(formats.fixed(100 * held_out.relative_error, 2)) if held_out else "--",
        str(fit.points),
    )


def _with_interval(value: str, interval: Interval | None, form: str) -> str:
    if interval is None:
        return number(value)
    low, high = (number(formats.FORMS[form](end)) for end in (interval.low, interval.high))
    return f"{number(value)} [{low}, {high}]"


def number(text: str) -> str:
    """A formatted number for LaTeX: in math mode if it has a sign, a power of ten or infinity."""
    if text == formats.NONE:
        return "--"
    text = text.replace("∞", r"\infty")
    text = re.sub(r"e(-?\d+)$", r" \\cdot 10^{\1}", text)
    return f"${text}$" if re.search(r"[-\\^]", text) else text


def _line(cells: tuple[str, ...]) -> str:
    return " & ".join(cells) + r" \\"
