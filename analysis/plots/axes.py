"""Log axes with a few round numbers, and how numbers and symbols are set on them."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from numpy.typing import NDArray

Array = NDArray[np.float64]

_GRID = "#dddddd"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")  # larger in print than mathtext's


def logarithmic(panel: Axes, x: bool = True, y: bool = True) -> None:
    """Log axes, their ticks chosen for the limits as they are now: call it last."""
    for axis, wanted in ((panel.xaxis, x), (panel.yaxis, y)):
        if not wanted:
            continue
        name = axis.axis_name
        (panel.set_xscale if name == "x" else panel.set_yscale)("log")
        low, high = panel.get_xlim() if name == "x" else panel.get_ylim()
        set_ticks(axis, low, high)
    panel.grid(True, which="major", lw=0.4, color=_GRID)
    panel.set_axisbelow(True)


def set_ticks(axis: Axis, low: float, high: float, most: int = 5) -> None:
    """A few round numbers on a log axis, and small ticks where it spans decades."""
    places = round_numbers(low, high, most)
    powers = bool(places[-1] >= 1e4 or places[0] < 1e-3)
    axis.set_major_locator(FixedLocator(places.tolist()))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, powers)))
    whole = np.allclose(np.log10(places) % 1, 0)
    axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))) if whole else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def round_numbers(low: float, high: float, most: int = 5) -> Array:
    """Three to `most` round numbers in [low, high], as even on a log axis as they can be."""
    first, last = int(np.ceil(np.log10(low) - 1e-9)), int(np.floor(np.log10(high) + 1e-9))
    if last - first >= 2:
        stride = -(-(last - first + 1) // most)
        return np.asarray(10.0 ** np.arange(first, last + 1, stride))
    decades = 10.0 ** np.arange(first - 1, last + 1)
    for parts in ((1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        places = np.outer(decades, parts).ravel()
        places = places[(places >= low * (1 - 1e-9)) & (places <= high * (1 + 1e-9))]
        if 3 <= len(places) <= most:
            return np.asarray(places)
    for steps in range(2, 4 * most):
        places = np.asarray(MaxNLocator(steps, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
        places = places[(places >= low) & (places <= high) & (places > 0)]
        if len(places) >= 3:
            return np.asarray(places[:: -(-len(places) // most)], dtype=float)
    return np.array([low, high])


def tick(value: float, powers: bool = False) -> str:
    """A number on an axis: plain, or as `powers` of ten, which one axis has throughout."""
    if value == 0 or not (powers or abs(value) >= 1e4):
        return f"{value:.6g}".replace("-", "−")
    exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
    mantissa = f"{value / 10.0**exponent:.6g}"
    power = "10" + str(exponent).translate(_RAISED)
    return power if mantissa == "1" else f"{mantissa}·{power}"


def count(number: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit * 0.9995:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def symbol(name: str) -> str:
    """L_mean as a paper sets it: the letter in italics, what follows beneath it."""
    letter, _, below = name.partition("_")
    letter = letter if len(letter) == 1 else rf"\mathrm{{{letter}}}"
    return f"${letter}_{{\\mathrm{{{below}}}}}$" if below else f"${letter}$"


def signed(value: float, form: str) -> str:
    return f"{value:{form}}".replace("-", "−")
