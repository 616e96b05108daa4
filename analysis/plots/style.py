"""What all figures share: print sizes, colours safe for the colour-blind, log axes, saving."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from analysis.plots.axes import count, set_ticks

Array = NDArray[np.float64]
P = ParamSpec("P")
T = TypeVar("T")

SINGLE, DOUBLE = 3.3, 7.0  # inches: one column of a journal, and two
INK, GREY, PALE = "#333333", "#8a8a8a", "#dddddd"
# Okabe and Ito 2008, "Color universal design". FEW has them in the order in which neighbours are
# furthest apart for an eye without M cones (tests/test_figures.py).
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
)  # fmt: skip
FEW = (BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE)
MARKERS = "os^DvP<X>p"
DASHES: tuple[Any, ...] = (  # solid, dashed, dash-dot, dotted, dash-dot-dot
    "-", (0, (4, 1.2)), (0, (4, 1, 1, 1)), (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1)),
)  # fmt: skip
MOST_KEYS = 10  # different sizes that a legend lists; more get a colour bar
_BRIGHTER = ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.88, 256)))  # no pale yellow
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same file everywhere
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.0,
    "legend.handletextpad": 0.5,
    "legend.labelspacing": 0.3,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.8,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "svg.hashsalt": "var-scaling",  # the same figure twice is the same file
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}


@dataclass(frozen=True)
class Look:
    """How one series of several is told apart: never by colour alone."""

    colour: str
    marker: str
    line: Any


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in the project's style and restore the caller's style."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


def sheet(
    width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure of so many inches, and its panels as (rows, columns)."""
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
    figure = Figure(figsize=(width, height), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def pairs(
    count: int, tall: float, more: float, alone: float = SINGLE
) -> tuple[Figure, NDArray[Any]]:
    """Panels for `count` things in two columns, `tall` inches each; one thing is `alone` wide."""
    columns = min(2, count)
    rows = -(-count // columns)
    return sheet(DOUBLE if columns > 1 else alone, more + tall * rows, rows, columns)


def finish(panels: NDArray[Any], count: int) -> None:
    """No axes where no thing is left; the x axis is named where nothing is below it."""
    columns = panels.shape[1]
    for k, panel in enumerate(panels.flat):
        if k >= count:
            panel.set_axis_off()
        elif k + columns < count and panels.flat[k + columns].axison:
            panel.set_xlabel("")


def save(figure: Figure, folder: Path, name: str, kinds: Iterable[str]) -> None:
    """Write `name`.kind for each of svg, pdf, png: without dates, so the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    dateless = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context(STYLE):
        for kind in kinds:
            figure.savefig(folder / f"{name}.{kind}", metadata=dateless.get(kind))
            figure.set_layout_engine(None)  # laid out once; the other kinds keep it


def few(keys: Sequence[Any]) -> dict[Any, Look]:
    """Of things without an order: seeds, approaches. Colours repeat after six, looks do not."""
    return {
        key: Look(FEW[k % len(FEW)], MARKERS[k % len(MARKERS)], DASHES[k % len(DASHES)])
        for k, key in enumerate(keys)
    }


def ordered(keys: Iterable[float]) -> dict[float, Look]:
    """Small to large: dark to bright in even steps, with a marker and dashes of their own."""
    rising = sorted(keys)
    return _shaded(rising, np.linspace(0, 1, max(len(rising), 2)))


def by_size(sizes: Iterable[float]) -> dict[float, Look]:
    """`ordered`, but where `size_key` shows a colour bar, as bright as it is at each size."""
    rising = sorted(sizes)
    if len(rising) <= MOST_KEYS:
        return ordered(rising)
    return _shaded(rising, LogNorm(rising[0], rising[-1])(rising))


def _shaded(keys: Sequence[float], places: ArrayLike) -> dict[float, Look]:
    """`places` in [0, 1]."""
    return {
        key: Look(to_hex(_BRIGHTER(place)), MARKERS[k % len(MARKERS)], DASHES[k % len(DASHES)])
        for k, (key, place) in enumerate(zip(keys, np.asarray(places), strict=False))
    }


def size_key(figure: Figure, looks: dict[float, Look], title: str, marked: bool = True) -> None:
    """Which look is which size: a list beside the panels (below a narrow one), or a colour bar."""
    if len(looks) > MOST_KEYS:
        sizes = list(looks)
        shown = ScalarMappable(LogNorm(sizes[0], sizes[-1]), _BRIGHTER)
        bar = figure.colorbar(shown, ax=figure.axes, label=title, pad=0.01, aspect=30)
        set_ticks(bar.ax.yaxis, sizes[0], sizes[-1])
        bar.outline.set_visible(False)
        return
    handles = [
        Line2D([], [], color=look.colour, ls=look.line, marker=look.marker if marked else None,
               label=count(size))
        for size, look in looks.items()
    ]  # fmt: skip
    if figure.get_figwidth() > SINGLE:
        figure.legend(handles=handles, title=title, loc="outside right center")
    else:
        figure.legend(handles=handles, title=title, loc="outside lower center", ncols=3)


def dot_size(count: int, least: float = 1.3) -> float:
    """Of a marker in points, smaller where there are many."""
    most = float(STYLE["lines.markersize"])
    return max(least, most * min(1.0, (40 / max(count, 1)) ** 0.5))


def key_above(figure: Figure, handles: Sequence[Any], columns: int = 4) -> None:
    """What the lines and points of all panels mean, over the panels."""
    figure.legend(handles=handles, loc="outside upper center", ncols=min(columns, len(handles)))


def key_inside(panel: Axes, **kwargs: Any) -> Legend:
    """A legend at the lower left, with room made for it below all that was drawn: log axes."""
    legend = panel.legend(**{"loc": "lower left"} | kwargs)
    lines = len(legend.get_texts()) + bool(legend.get_title().get_text())
    height = panel.get_figure().get_size_inches()[1] * 72 / _rows(panel) * 0.7  # type: ignore[union-attr]
    share = min(lines * 10.5 / height, 0.45)
    low, high = panel.get_ylim()
    panel.set_ylim(low / (high / low) ** (share / (1 - share)), high)
    return legend


def _rows(panel: Axes) -> int:
    spec = panel.get_subplotspec()
    return spec.get_gridspec().nrows if spec else 1
