r"""The laws as a LaTeX table for a paper: plain article and booktabs compile it."""

import re

from analysis.report import format as shown
from analysis.study import METRICS, VARIABLES, LawResult, Study
from analysis.uncertainty.intervals import Interval

_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
_HEADER = (
    "Law", "Form", r"$\alpha$ (95\,\%)", r"$E$ (95\,\%)", "$r$", "$R^2$", r"RMS (\%)",
    r"LLO (\%)", "$n$",
)  # fmt: skip
_FORMS = {
    "pure": r"$A x^{-\alpha}$",
    "floor": r"$E + A x^{-\alpha}$",
    "logit": r"$L/(1-L) = A x^{-\alpha}$",
}


def law_table(study: Study) -> str:
    r"""All laws of `study` as a `tabular` with its rules; `\usepackage{booktabs}` is all it needs.

    LLO: the error at the largest size, left out of the fit. A comment names the table's data.
    """
    lines = [
        f"% Laws fitted by {study.objective}; data {study.table.fingerprint}.",
        r"% Needs \usepackage{booktabs}. RMS: relative error of the fit. LLO: relative error at",
        "% the largest size, predicted from the smaller ones. n: points.",
        rf"\begin{{tabular}}{{ll{'r' * (len(_HEADER) - 2)}}}",
        r"\toprule",
        _line(_HEADER),
        r"\midrule",
    ]
    previous = None
    for finding in study.findings:
        if previous is not None and finding.variable != previous:
            lines.append(r"\addlinespace")
        lines.append(_line(_cells(finding)))
        previous = finding.variable
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escape(text: str) -> str:
    """Any text as LaTeX prints it."""
    return "".join(_ESCAPED.get(character, character) for character in text)


def symbol(name: str) -> str:
    r"""L_mean as $L_{\mathrm{mean}}$, upright where the name is longer than a letter."""
    base, _, below = name.partition("_")
    shown_base = base if len(base) == 1 else rf"\mathrm{{{base}}}"
    return rf"{shown_base}_{{\mathrm{{{below}}}}}" if below else shown_base


def _cells(finding: LawResult) -> tuple[str, ...]:
    fit, held = finding.fit, finding.held_out
    label = f"${symbol(METRICS[finding.metric][0])}({symbol(VARIABLES[finding.variable][0])})$"
    floor = _with_interval(shown.significant(fit.E), finding.intervals.get("E"), "significant")
    return (
        label,
        _FORMS.get(fit.law.name, escape(fit.law.name)),
        _with_interval(shown.exponent(fit.alpha), finding.intervals.get("alpha"), "exponent"),
        floor if fit.law.floor else "--",
        _number(shown.fixed(fit.r)),
        _number(shown.fixed(fit.r2)),
        _number(shown.fixed(100 * fit.rms_relative_error, 2)),
        _number(shown.fixed(100 * held.relative_error, 2)) if held else "--",
        str(fit.points),
    )


def _with_interval(value: str, given: Interval | None, form: str) -> str:
    if given is None:
        return _number(value)
    low, high = (_number(shown.FORMS[form](end)) for end in (given.low, given.high))
    return f"{_number(value)} [{low}, {high}]"


def _number(text: str) -> str:
    """A shown number in math, where it has a sign, a power of ten or no end."""
    if text == shown.NONE:
        return "--"
    text = text.replace("∞", r"\infty")
    text = re.sub(r"e(-?\d+)$", r" \\cdot 10^{\1}", text)
    return f"${text}$" if re.search(r"[-\\^]", text) else text


def _line(cells: tuple[str, ...]) -> str:
    return " & ".join(cells) + r" \\"
