"""Shared style of all figures: print sizes, colour-blind-safe series styles, legends, saving."""

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
# Okabe and Ito 2008, "Color universal design". The order of CATEGORICAL_COLOURS maximises the
# distance between neighbours for an eye without M cones (tests/test_drawing.py).
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
)  # fmt: skip
CATEGORICAL_COLOURS = (BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE)
MARKERS = "os^DvP<X>p"
DASHES: tuple[Any, ...] = (  # solid, dashed, dash-dot, dotted, dash-dot-dot
    "-", (0, (4, 1.2)), (0, (4, 1, 1, 1)), (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1)),
)  # fmt: skip
FORMATS = ("png", "pdf", "svg")  # of figures; every figure is written as PNG
MAX_LEGEND_KEYS = 10  # up to this number of sizes, a legend lists them; more get a colour bar
BRIGHTER = ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.88, 256)))  # no pale yellow
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
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
    "svg.hashsalt": "var-scaling",  # fixed ids: the same figure gives the same file
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}


@dataclass(frozen=True)
class SeriesStyle:
    """The style of one of several series: they differ in marker and line, not only in colour."""

    colour: str
    marker: str
    line: Any


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in the project's style and restore the caller's style.

    A variant of the project's style that is already in force, as that for papers, is kept.
    """

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        # The salt is the mark of the project's style: no other style has it.
        in_style = mpl.rcParams["svg.hashsalt"] == STYLE["svg.hashsalt"]
        with mpl.rc_context({} if in_style else STYLE):
            return draw(*args, **kwargs)

    return inside


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure of `width` x `height` inches, and its panels as an array (rows, columns)."""
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
    # Not through matplotlib's global state: the caller's current figure stays the same.
    figure = Figure(figsize=(width, height), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def panel_grid(
    count: int, tall: float, more: float, alone: float = SINGLE
) -> tuple[Figure, NDArray[Any]]:
    """A figure with `count` panels in two columns: `tall` inches for each row and `more` in all.

    A single panel is `alone` inches wide.
    """
    columns = min(2, count)
    rows = -(-count // columns)
    return new_figure(DOUBLE if columns > 1 else alone, more + tall * rows, rows, columns)


def hide_empty_panels(panels: NDArray[Any], count: int) -> None:
    """Hide the panels after the first `count`, and the x label of a panel above another one."""
    columns = panels.shape[1]
    for k, panel in enumerate(panels.flat):
        if k >= count:
            panel.set_axis_off()
        # A panel above one that is switched off keeps its label.
        elif k + columns < count and panels.flat[k + columns].axison:
            panel.set_xlabel("")


def save(figure: Figure, folder: Path, name: str, formats: Iterable[str] = ()) -> Path:
    """Write the figure as PNG and in `formats`, without dates: the same bytes every time.

    Files of the figure in other formats are renewed too: no file shows older results. Returns the
    path of the PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dateless = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    # Resolution, fonts and the hash salt are read only when a file is written.
    with mpl.rc_context(STYLE):
        for kind in FORMATS:
            path = folder / f"{name}.{kind}"
            if kind == "png" or kind in formats or path.exists():
                figure.savefig(path, metadata=dateless.get(kind))
                figure.set_layout_engine(None)  # keep the first layout for the other formats
    return folder / f"{name}.png"


def categorical_styles(keys: Sequence[Any]) -> dict[Any, SeriesStyle]:
    """Styles of keys without an order: seeds, approaches. Colours repeat after six keys, the
    combinations with markers and dashes do not.
    """
    return {
        key: SeriesStyle(
            CATEGORICAL_COLOURS[k % len(CATEGORICAL_COLOURS)],
            MARKERS[k % len(MARKERS)],
            DASHES[k % len(DASHES)],
        )
        for k, key in enumerate(keys)
    }


def sequential_styles(keys: Iterable[float]) -> dict[float, SeriesStyle]:
    """Styles of ordered keys: dark (small) to bright (large) in even steps, each with its own
    marker and dashes.
    """
    rising = sorted(keys)
    return _shaded(rising, np.linspace(0, 1, max(len(rising), 2)))


def size_styles(sizes: Iterable[float]) -> dict[float, SeriesStyle]:
    """As `sequential_styles`; with many sizes, the colours of the colour bar of `size_legend`."""
    rising = sorted(sizes)
    if len(rising) <= MAX_LEGEND_KEYS:
        return sequential_styles(rising)
    # The norm of the colour bar, so that both have the same colours.
    return log_shaded_styles(rising, rising[0], rising[-1])


def log_shaded_styles(keys: Iterable[float], low: float, high: float) -> dict[float, SeriesStyle]:
    """As `sequential_styles`, with the brightness of the log of each key from `low` to `high`."""
    rising = sorted(keys)
    return _shaded(rising, LogNorm(low, high)(rising))


def _shaded(keys: Sequence[float], brightness: ArrayLike) -> dict[float, SeriesStyle]:
    """Styles with colours of the given `brightness`, in [0, 1]."""
    return {
        key: SeriesStyle(
            to_hex(BRIGHTER(level)), MARKERS[k % len(MARKERS)], DASHES[k % len(DASHES)]
        )
        for k, (key, level) in enumerate(zip(keys, np.asarray(brightness), strict=False))
    }


def size_legend(
    figure: Figure, styles: dict[float, SeriesStyle], title: str, marked: bool = True
) -> None:
    """The legend of sizes: right of the panels (below a narrow figure), or a colour bar."""
    if len(styles) > MAX_LEGEND_KEYS:
        sizes = list(styles)
        mappable = ScalarMappable(LogNorm(sizes[0], sizes[-1]), BRIGHTER)
        bar = figure.colorbar(mappable, ax=figure.axes, label=title, pad=0.01, aspect=30)
        set_ticks(bar.ax.yaxis, sizes[0], sizes[-1])
        bar.outline.set_visible(False)
        # Vector graphics: by default its colours are an image. Edges close the gaps between them.
        assert bar.solids is not None
        bar.solids.set(rasterized=False, edgecolor="face")
        return
    handles = [
        Line2D([], [], color=style.colour, ls=style.line, marker=style.marker if marked else None,
               label=count(size))
        for size, style in styles.items()
    ]  # fmt: skip
    if figure.get_figwidth() > SINGLE:
        figure.legend(handles=handles, title=title, loc="outside right center")
    else:
        figure.legend(handles=handles, title=title, loc="outside lower center", ncols=3)


def marker_size(count: int, least: float = 1.3) -> float:
    """The size of a marker in points, smaller for many points."""
    most = float(STYLE["lines.markersize"])
    # Beyond 40 points the area of all markers together stays the same.
    return max(least, most * min(1.0, (40 / max(count, 1)) ** 0.5))


def legend_above(figure: Figure, handles: Sequence[Any], columns: int = 4) -> None:
    """A legend for all panels, above them."""
    figure.legend(handles=handles, loc="outside upper center", ncols=min(columns, len(handles)))


def legend_inside(panel: Axes, **kwargs: Any) -> Legend:
    """A legend at the lower left of a log-log panel; the y axis is extended downwards for it."""
    legend = panel.legend(**{"loc": "lower left"} | kwargs)
    texts = [text.get_text() for text in legend.get_texts()]
    lines = sum(1 + text.count("\n") for text in texts) + bool(legend.get_title().get_text())
    # The height of a panel in points (72 per inch). About 0.7 of the figure are panels, the rest is
    # labels and legends.
    height = panel.get_figure().get_size_inches()[1] * 72 / _rows(panel) * 0.7  # type: ignore[union-attr]
    # 10.5 points for each line of text. At most 45 % of the panel, so that the data stay legible.
    share = min(lines * 10.5 / height, 0.45)
    low, high = panel.get_ylim()
    # On a log axis: the new range below `low` is `share` of the whole range.
    panel.set_ylim(low / (high / low) ** (share / (1 - share)), high)
    return legend


def _rows(panel: Axes) -> int:
    spec = panel.get_subplotspec()
    return spec.get_gridspec().nrows if spec else 1
