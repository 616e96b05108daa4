r"""The laws as a LaTeX table for a paper; it needs only the package booktabs."""

import re

from analysis.report import format as formats
from analysis.study import METRICS, VARIABLES, LawResult, Study
from analysis.uncertainty.intervals import Interval

_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
_HEADER = (
    "Law", "Form", r"$\alpha$ (95\,\%)", r"$E$ (95\,\%)", "$r$", "$R^2$", r"RMS (\%)",
    r"held out (\%)", "$n$",
)  # fmt: skip
_NO_LAW = r"$^\dagger$"
_FORMS = {
    "pure": r"$A x^{-\alpha}$",
    "floor": r"$E + A x^{-\alpha}$",
    "logit": r"$L/(1-L) = A x^{-\alpha}$",
}


def law_table(study: Study) -> str:
    r"""All laws of `study` as a `tabular`; it needs `\usepackage{booktabs}`.

    "held out" is the error at the largest size of a fit without it. A LaTeX comment names the
    fingerprint of the data.
    """
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
        lines.append(_line(_cells(finding)))
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


def _cells(finding: LawResult) -> tuple[str, ...]:
    fit, held_out = finding.fit, finding.held_out
    label = f"${symbol(METRICS[finding.metric][0])}({symbol(VARIABLES[finding.variable][0])})$"
    E = _with_interval(formats.significant(fit.E), finding.intervals.get("E"), "significant")
    return (
        label,
        _FORMS.get(fit.law.name, escape(fit.law.name)),
        _with_interval(formats.exponent(fit.alpha), finding.intervals.get("alpha"), "exponent")
        + (_NO_LAW if finding.no_law else ""),
        E if fit.law.floor else "--",
        _number(formats.fixed(fit.r)),
        _number(formats.fixed(fit.r2)),
        _number(formats.fixed(100 * fit.rms_relative_error, 2)),
        _number(formats.fixed(100 * held_out.relative_error, 2)) if held_out else "--",
        str(fit.points),
    )


def _with_interval(value: str, interval: Interval | None, form: str) -> str:
    if interval is None:
        return _number(value)
    low, high = (_number(formats.FORMS[form](end)) for end in (interval.low, interval.high))
    return f"{_number(value)} [{low}, {high}]"


def _number(text: str) -> str:
    """A formatted number for LaTeX: in math mode if it has a sign, a power of ten or infinity."""
    if text == formats.NONE:
        return "--"
    text = text.replace("∞", r"\infty")
    text = re.sub(r"e(-?\d+)$", r" \\cdot 10^{\1}", text)
    return f"${text}$" if re.search(r"[-\\^]", text) else text


def _line(cells: tuple[str, ...]) -> str:
    return " & ".join(cells) + r" \\"
