"""Log axes with a few round tick numbers, and the text of numbers and symbols on them."""

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
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")  # larger in print than mathtext's


def logarithmic(panel: Axes, x: bool = True, y: bool = True) -> None:
    """Log axes with ticks for the present limits: call it after everything is drawn."""
    for axis, is_log in ((panel.xaxis, x), (panel.yaxis, y)):
        if not is_log:
            continue
        name = axis.axis_name
        (panel.set_xscale if name == "x" else panel.set_yscale)("log")
        low, high = panel.get_xlim() if name == "x" else panel.get_ylim()
        set_ticks(axis, low, high)
    panel.grid(True, which="major", lw=0.4, color=_GRID)
    panel.set_axisbelow(True)


def set_ticks(axis: Axis, low: float, high: float, max_ticks: int = 5) -> None:
    """Ticks at a few round numbers of a log axis; minor ticks if all of them are powers of 10."""
    ticks = round_numbers(low, high, max_ticks)
    powers = bool(ticks[-1] >= 1e4 or ticks[0] < 1e-3)
    axis.set_major_locator(FixedLocator(ticks.tolist()))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, powers)))
    decades_only = np.allclose(np.log10(ticks) % 1, 0)
    axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))) if decades_only else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def round_numbers(low: float, high: float, max_ticks: int = 5) -> Array:
    """Three to `max_ticks` round numbers in [low, high], as evenly spaced in log as possible."""
    # 1e-9: the log of a power of ten can be slightly off an integer.
    first, last = int(np.ceil(np.log10(low) - 1e-9)), int(np.floor(np.log10(high) + 1e-9))
    # Two decades or more: only powers of ten, every `stride`-th one.
    if last - first >= 2:
        stride = -(-(last - first + 1) // max_ticks)
        return np.asarray(10.0 ** np.arange(first, last + 1, stride))
    # Less than two decades: the coarsest set of round mantissas with enough ticks in the range.
    decades = 10.0 ** np.arange(first - 1, last + 1)
    for parts in ((1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        numbers = np.outer(decades, parts).ravel()
        numbers = numbers[(numbers >= low * (1 - 1e-9)) & (numbers <= high * (1 + 1e-9))]
        if 3 <= len(numbers) <= max_ticks:
            return np.asarray(numbers)
    # A range too narrow for these: evenly spaced numbers. The argument of MaxNLocator is only an
    # upper limit, so it is raised until three are found.
    for steps in range(2, 4 * max_ticks):
        numbers = np.asarray(MaxNLocator(steps, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
        numbers = numbers[(numbers >= low) & (numbers <= high) & (numbers > 0)]
        if len(numbers) >= 3:
            return np.asarray(numbers[:: -(-len(numbers) // max_ticks)], dtype=float)
    return np.array([low, high])


def tick(value: float, powers: bool = False) -> str:
    """The text of a tick: plain, or as a power of ten (all ticks of one axis alike: `powers`)."""
    if value == 0 or not (powers or abs(value) >= 1e4):
        return f"{value:.6g}".replace("-", "−")
    exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
    mantissa = f"{value / 10.0**exponent:.6g}"
    power = "10" + str(exponent).translate(_SUPERSCRIPT)
    return power if mantissa == "1" else f"{mantissa}·{power}"


def count(number: float) -> str:
    """Three significant digits with a unit: 1.5M."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 0.9995: from there on three digits round up to 1,000, and the next unit is shorter.
        if number >= unit * 0.9995:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def symbol(name: str) -> str:
    """L_mean in mathtext: the letter in italics, the rest as a subscript."""
    letter, _, subscript = name.partition("_")
    letter = letter if len(letter) == 1 else rf"\mathrm{{{letter}}}"
    return f"${letter}_{{\\mathrm{{{subscript}}}}}$" if subscript else f"${letter}$"


def signed(value: float, form: str) -> str:
    """`value` in the format `form`, with a true minus sign; a large number with three digits."""
    return f"{value:{form if abs(value) < 1e4 else '.3g'}}".replace("-", "−")
