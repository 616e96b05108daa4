"""Figure of the surface L(N, D): the runs against N, and the law's lines of constant D."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.compute_optimal.surface import SurfaceLaw
from analysis.law_result import METRICS
from analysis.plots.axes import logarithmic, round_numbers, tick
from analysis.plots.laws import SIZES, metric_label
from analysis.plots.style import (
    BRIGHTER,
    SeriesStyle,
    hide_empty_panels,
    legend_inside,
    log_shaded_styles,
    marker_size,
    panel_grid,
    styled,
)
from analysis.study import Study

Array = NDArray[np.float64]

_FEW = 8  # up to this number of different D, each has a line; more get lines at round numbers
_MARGIN = 0.06  # outside the points, as a fraction of the log range


@styled
def size_and_data(study: Study) -> Figure | None:
    """Final score against N with the surface's lines of constant D; None without a surface."""
    surfaces = [study.surfaces[metric] for metric in METRICS if metric in study.surfaces]
    if not surfaces:
        return None
    figure, panels = panel_grid(len(surfaces), 2.2, 0.6)
    styles = lines_of_data(surfaces)
    for panel, surface in zip(panels.flat, surfaces, strict=False):
        draw_surface(panel, surface, styles)
        panel.set(xlabel=SIZES[study.size], ylabel=metric_label(study, surface.metric))
    hide_empty_panels(panels, len(surfaces))
    data_legend(figure, styles, 8 if len(surfaces) > 1 else 3)
    return figure


def lines_of_data(surfaces: Sequence[SurfaceLaw]) -> dict[float, SeriesStyle]:
    """The style of each line of constant D, dark for a small D and bright for a large one."""
    D = np.concatenate([_points(surface)[1] for surface in surfaces])
    # Equal within 1 %.
    distinct = D[np.unique(np.round(np.log(D), 2), return_index=True)[1]]
    levels = distinct if len(distinct) <= _FEW else round_numbers(D.min(), D.max())
    return log_shaded_styles(levels.tolist(), float(D.min()), float(D.max()))


def draw_surface(panel: Axes, surface: SurfaceLaw, styles: dict[float, SeriesStyle]) -> None:
    """Draw the runs, each in the colour of its D, and a line of the law for each D of `styles`."""
    (N, D), L = _points(surface), surface.fit.data.y
    # One artist for all runs: thousands of artists take seconds to draw.
    panel.scatter(
        N, L, c=D, cmap=BRIGHTER, norm=LogNorm(D.min(), D.max()), s=marker_size(len(N), 2.2) ** 2,
        lw=0.3, edgecolors="white", zorder=3,
    )  # fmt: skip
    sizes, (low, high) = np.geomspace(*_widened(N), 100), _widened(L)
    for D_line, style in styles.items():
        predicted = surface.fit.predict((sizes, np.full_like(sizes, D_line)))
        predicted = np.where(predicted < low, np.nan, predicted)  # there is the legend
        panel.plot(sizes, predicted, color=style.colour, ls=style.line, lw=1.0, zorder=2)
    # The lines reach far above the runs: the axis shows the runs.
    panel.set(xscale="log", yscale="log", xlim=(sizes[0], sizes[-1]), ylim=(low, high))
    lines = _parameters(surface)
    legend_inside(
        panel, handles=[Line2D([], [], ls="", label=line) for line in lines], handlelength=0,
        handletextpad=0,
    )  # fmt: skip
    logarithmic(panel)


def data_legend(figure: Figure, styles: dict[float, SeriesStyle], columns: int) -> None:
    """The legend of the lines of constant D, below the panels."""
    handles = [
        Line2D([], [], color=style.colour, ls=style.line, label=tick(float(f"{D:.2g}")))
        for D, style in styles.items()
    ]
    figure.legend(
        handles=handles, title="$D$, training tokens", loc="outside lower center",
        ncols=min(columns, len(handles)), handlelength=2.6,
    )  # fmt: skip


def _points(surface: SurfaceLaw) -> tuple[Array, Array]:
    """N and D of each run, (n,) each."""
    N, D = surface.fit.law.arrays(surface.fit.data.x)
    return np.asarray(N, dtype=float), np.asarray(D, dtype=float)


def _widened(values: Array) -> tuple[float, float]:
    """The range of `values` with a margin on a log axis."""
    low, high = np.log(values.min()), np.log(values.max())
    margin = _MARGIN * (high - low)
    return float(np.exp(low - margin)), float(np.exp(high + margin))


def _parameters(surface: SurfaceLaw) -> list[str]:
    """α, β and E with their intervals, a line each."""
    lines = []
    for name, shown in (("alpha", "α"), ("beta", "β"), ("E", "E")):
        line, span = f"{shown} = {_text(surface.fit[name])}", surface.intervals.get(name)
        if span is not None:
            line += f" [{_text(span.low)}, {_text(span.high)}]"
        lines.append(line.replace("-", "−"))
    return lines


def _text(value: float) -> str:
    """Three significant digits, with trailing zeros."""
    if not np.isfinite(value):
        return "-∞" if value < 0 else "∞"
    return f"{value:#.3g}".rstrip(".")
