"""Text of numbers in a report: digits, missing values, intervals."""

import math
from typing import Any

NONE = "–"
_LARGE = 1e7  # from here on, digits before the point are no longer readable

# Symbols of the parameters of laws whose name is no symbol.
SYMBOLS = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "R_star": "R*"}


def fixed(value: float | None, digits: int = 4) -> str:
    """With `digits` after the point; a dash for no number, ∞ for infinity.

    A number that would have no digit or more than 7 before the point is shown by `significant`.
    """
    if value is not None and 0 < abs(value) < 0.5 * 10**-digits:
        return _plain_power(f"{value:.3g}")
    return _not_finite(value) or _large(value) or f"{value:.{digits}f}"


def significant(value: float | None, digits: int = 4) -> str:
    """With `digits` significant digits: 0.0067, 1.234, 1.2e15."""
    return _not_finite(value) or _plain_power(f"{value:.{digits}g}")


def exponent(value: float | None) -> str:
    """Four places, or three significant digits below 0.01: laws of errors have such exponents."""
    if text := _not_finite(value):
        return text
    assert value is not None
    if 0 < abs(value) < 0.01:
        return _plain_power(f"{value:.3g}")
    return fixed(value)


def level(value: float | None) -> str:
    """Five significant digits with trailing zeros, so that a column of them lines up."""
    return _not_finite(value) or _plain_power(f"{value:#.5g}")


def change(value: float | None) -> str:
    """A difference, with its sign and four places."""
    return _not_finite(value) or _large(value, "+") or f"{value:+.4f}"


def percent(value: float | None, digits: int = 2) -> str:
    return _not_finite(value) or _large(value, "", 100) or f"{value:.{digits}%}"


def signed(value: float | None, digits: int = 2) -> str:
    """A fraction as a signed percentage."""
    return _not_finite(value) or _large(value, "+", 100) or f"{value:+.{digits}%}"


def size(value: float | None) -> str:
    """A whole number in full with separators; a power of ten from 1e10 on or if it is not whole."""
    if text := _not_finite(value):
        return text
    assert value is not None
    return f"{value:,.0f}" if abs(value) < 1e10 and value == round(value) else significant(value)


def span(interval: Any, form: str = "exponent") -> str:
    """An interval (an object with .low and .high, or a pair), each end formatted by `form`."""
    if interval is None:
        return NONE
    low, high = (interval.low, interval.high) if hasattr(interval, "low") else interval
    format_end = FORMS[form]
    return f"[{format_end(low)}, {format_end(high)}]"


def _not_finite(value: float | None) -> str:
    """The text of a missing value, NaN or infinity; "" for a finite number."""
    if value is None or value != value:
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return ""


def _large(value: float | None, sign: str = "", per: int = 1) -> str:
    """Three significant digits of a number with too many digits before the point; else "".

    `per`: 100 for a fraction that is shown in per cent.
    """
    if value is None or abs(per * value) < _LARGE:
        return ""
    return _plain_power(f"{per * value:{sign}.3g}") + ("%" if per == 100 else "")


def _plain_power(text: str) -> str:
    """1.2e+15 as 1.2e15."""
    mantissa, _, power = text.partition("e")
    return f"{mantissa}e{int(power)}" if power else text


FORMS = {
    "change": change,
    "level": level,
    "exponent": exponent,
    "fixed": fixed,
    "percent": percent,
    "signed": signed,
    "significant": significant,
    "size": size,
}
