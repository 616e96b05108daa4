"""Figures that compare families: distance of samples against their cost."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.comparison.families import ComparisonError, curves
from analysis.plots.axes import logarithmic
from analysis.plots.style import (
    DOUBLE,
    SINGLE,
    SeriesStyle,
    categorical_styles,
    legend_above,
    new_figure,
    styled,
)

# Column: axis label.
COSTS = {
    "train_flops": "training FLOPs",
    "sampling_flops": "FLOPs of one sample",
}


@styled
def families(rows: pd.DataFrame, network: str = "", cautions: Sequence[str] = ()) -> Figure:
    """Each run of each arm (column `arm`), with a line through the means of its sizes; dotted: the
    reconstruction floor of its tokenizer. `network`: the feature network. `cautions`: differences
    between the arms other than the model, printed below the figure.
    """
    figure, (panels,) = new_figure(DOUBLE, 2.9, 1, len(COSTS), sharey=True)
    styles = categorical_styles(list(dict.fromkeys(rows.arm)))
    for panel, (cost, label) in zip(panels, COSTS.items(), strict=True):
        for arm, runs in rows.groupby("arm", sort=False):
            style = styles[arm]
            panel.plot(
                runs[cost], runs.distance, style.marker, color=style.colour, ms=3.2, alpha=0.6
            )
            with suppress(ComparisonError):  # no line for a cost that does not grow with size
                (curve,) = curves(runs, "distance", cost).values()
                panel.plot(
                    curve.cost, np.exp(curve.log_score), color=style.colour, ls=style.line, lw=1.1
                )
            # One floor for each arm: arms with several tokenizers are split (comparison.with_arms).
            floor = runs.floor.dropna()
            if len(floor):
                panel.axhline(float(floor.iloc[0]), color=style.colour, lw=0.7, ls=(0, (1, 2)))
        panel.set(xscale="log", yscale="log", xlabel=label)
    network_text = f" ({network} network)" if network else ""
    panels[0].set_ylabel(f"Fréchet distance of samples{network_text}")
    for panel in panels:
        logarithmic(panel)
    if cautions:
        figure.supxlabel("\n".join(f"Not equal: {caution}" for caution in cautions), fontsize=6)
    legend_above(figure, _keys(styles))
    return figure


# Column of the cost of a sample: axis label.
SAMPLING_COSTS = {
    "sampling_flops": "FLOPs of one sample",
    "latency_seconds": "seconds for a single sample",
    "seconds_per_image": "seconds per image, best batch size",
}


@styled
def frontier(rows: pd.DataFrame) -> Figure:
    """Distance of samples against the cost of one sample, for each model and sampling setting. The
    line of an arm is its Pareto frontier. One panel for each cost measured for at least two arms.
    """
    rows = rows.assign(seconds_per_image=1 / rows.images_per_second)
    costs = [name for name in SAMPLING_COSTS if rows[rows[name].notna()].arm.nunique() > 1]
    width = DOUBLE if len(costs) > 1 else SINGLE
    figure, (panels,) = new_figure(width, 2.7, 1, len(costs), sharey=True)
    styles = categorical_styles(list(dict.fromkeys(rows.arm)))
    for panel, cost in zip(panels, costs, strict=True):
        for arm, arm_rows in rows[rows[cost].notna()].groupby("arm", sort=False):
            _draw_settings(panel, arm_rows, cost, styles[arm])
        panel.set(xscale="log", yscale="log", xlabel=SAMPLING_COSTS[cost])
        logarithmic(panel)
    panels[0].set_ylabel("Fréchet distance of samples")
    legend_above(figure, _keys(styles), columns=2 if width == SINGLE else 4)
    return figure


def _draw_settings(panel: Axes, arm_rows: pd.DataFrame, cost: str, style: SeriesStyle) -> None:
    """Means over seeds of each size and setting of one arm, and their Pareto frontier."""
    # Geometric means of distances, as in the comparison.
    sizes = arm_rows.assign(log=np.log(arm_rows.distance)).groupby(["depth", "settings"])
    means = sizes.agg(cost=(cost, "median"), log=("log", "mean")).sort_values("cost")
    distance = np.exp(means["log"])
    panel.plot(means.cost, distance, style.marker, color=style.colour, ms=3, alpha=0.5)
    # In order of cost: on the frontier if it is below all cheaper settings.
    best = distance < distance.cummin().shift(fill_value=np.inf)
    panel.plot(means.cost[best], distance[best], color=style.colour, ls=style.line, lw=1.1)


def _keys(styles: Mapping[str, SeriesStyle]) -> list[Line2D]:
    return [
        Line2D([], [], color=style.colour, ls=style.line, marker=style.marker, label=arm)
        for arm, style in styles.items()
    ]


@styled
def sample_grid(samples: Mapping[str, NDArray[np.uint8]]) -> Figure:
    """A grid of samples of each arm, uint8 (K, n, W, W, 3): K rows of classes, n columns."""
    # The height follows below from the shape of the grids.
    figure, (panels,) = new_figure(DOUBLE, 0.0, 1, len(samples))
    aspect = 0.0
    for panel, (arm, images) in zip(panels, samples.items(), strict=True):
        classes, count, side = images.shape[:3]
        # (K, W, n, W, 3): the pixel rows of a class hold all of its n images.
        grid = images.transpose(0, 2, 1, 3, 4).reshape(classes * side, count * side, 3)
        panel.imshow(grid, interpolation="nearest")
        panel.set_axis_off()
        panel.set_title(arm)
        aspect = max(aspect, classes / count)
    figure.set_figheight(DOUBLE / len(samples) * aspect + 0.4)
    return figure
