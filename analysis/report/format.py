"""Numbers as a reader sees them: how many digits, what stands for none, an interval in brackets."""

import math
from typing import Any

NONE = "–"


def fixed(value: float | None, digits: int = 4) -> str:
    """With `digits` after the point; a dash where there is no number, ∞ where there is no end."""
    return _odd(value) or f"{value:.{digits}f}"


def significant(value: float | None, digits: int = 4) -> str:
    """With `digits` in all: 0.0067, 1.234, 1.2e15."""
    return _odd(value) or _plain_power(f"{value:.{digits}g}")


def exponent(value: float | None) -> str:
    """Four places, and never fewer than three digits: laws of errors have exponents near 0.01."""
    if found := _odd(value):
        return found
    assert value is not None
    return f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else _plain_power(f"{value:.3g}")


def level(value: float | None) -> str:
    """Five digits, zeros and all, so that a column of them lines up."""
    return _odd(value) or _plain_power(f"{value:#.5g}")


def change(value: float | None) -> str:
    """A difference, with its sign and four places."""
    return _odd(value) or f"{value:+.4f}"


def percent(value: float | None, digits: int = 2) -> str:
    return _odd(value) or f"{value:.{digits}%}"


def signed(value: float | None, digits: int = 2) -> str:
    """A share as a signed percentage."""
    return _odd(value) or f"{value:+.{digits}%}"


def size(value: float | None) -> str:
    """A count in full with separators; in powers of ten from 1e10 on, or where it is no count."""
    if found := _odd(value):
        return found
    assert value is not None
    return f"{value:,.0f}" if value < 1e10 and value == round(value) else significant(value)


def span(given: Any, form: str = "exponent") -> str:
    """An interval (with .low and .high, or a pair), each end as `form` shows it."""
    if given is None:
        return NONE
    low, high = (given.low, given.high) if hasattr(given, "low") else given
    shown = FORMS[form]
    return f"[{shown(low)}, {shown(high)}]"


def _odd(value: float | None) -> str:
    """What stands for what is no number; "" for a number."""
    if value is None or value != value:
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return ""


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
