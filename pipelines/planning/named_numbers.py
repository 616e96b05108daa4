"""Numbers by name in a text of the command line, such as E=1.8 or N=1e10,D=2e11."""

import math
from collections.abc import Sequence

VARIABLES = ("N", "N_total", "D", "C")


def point_of_text(option: str, text: str) -> dict[str, float]:
    """The values in a text such as "N=1e10,D=2e11". Raises ValueError, which names `option`."""
    at = numbers_by_name(option, text.split(","), "N=1e10,D=2e11")
    if others := [name for name in at if name not in VARIABLES]:
        raise ValueError(
            f"{option} {others[0]}={at[others[0]]:g}: the variables are "
            f"{', '.join(VARIABLES)}: parameters, all parameters, tokens, training FLOPs"
        )
    return at


def numbers_by_name(
    option: str, texts: Sequence[str], example: str, minimum: float | None = None
) -> dict[str, float]:
    """Texts such as "E=1.8" as numbers by name: above 0, or at least `minimum`."""
    numbers: dict[str, float] = {}
    for text in filter(None, (text.strip() for text in texts)):
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            raise ValueError(f"{option} {text}: write NAME=NUMBER, as in {example}")
        if name in numbers:
            raise ValueError(f"{option} {text}: {name} is given twice")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"{option} {text}: {value} is no number, as in {example}") from None
        allowed = number > 0 if minimum is None else number >= minimum
        if not math.isfinite(number) or not allowed:
            least = "above 0" if minimum is None else f"at least {minimum:g}"
            raise ValueError(f"{option} {text}: {name} must be finite and {least}")
        numbers[name] = number
    return numbers
