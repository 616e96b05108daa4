"""Figures of several families beside each other: distance of samples against what they cost."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.comparison.families import curves
from analysis.plots.axes import logarithmic
from analysis.plots.style import DOUBLE, SINGLE, Look, few, key_above, sheet, styled

# Column: axis label.
COSTS = {
    "train_flops": "training FLOPs",
    "sampling_flops": "FLOPs of one sample",
}


@styled
def families(rows: pd.DataFrame, network: str = "", cautions: Sequence[str] = ()) -> Figure:
    """Each run of each arm (column `arm`), a line through the means of its sizes; dotted, the
    distance of its tokenizer's reconstructions. `network`: that looks. `cautions`, in what the arms
    differ besides the model, stand below the figure.
    """
    figure, (panels,) = sheet(DOUBLE, 2.9, 1, len(COSTS), sharey=True)
    looks = few(list(dict.fromkeys(rows.arm)))
    for panel, (cost, label) in zip(panels, COSTS.items(), strict=True):
        for arm, runs in rows.groupby("arm", sort=False):
            look = looks[arm]
            panel.plot(runs[cost], runs.distance, look.marker, color=look.colour, ms=3.2, alpha=0.6)
            with suppress(ValueError):  # a cost that does not grow with size has no line
                (curve,) = curves(runs, "distance", cost).values()
                panel.plot(
                    curve.cost, np.exp(curve.log_score), color=look.colour, ls=look.line, lw=1.1
                )
            floor = runs.floor.dropna()
            if len(floor):
                panel.axhline(float(floor.iloc[0]), color=look.colour, lw=0.7, ls=(0, (1, 2)))
        panel.set(xscale="log", yscale="log", xlabel=label)
    of = f" ({network} network)" if network else ""
    panels[0].set_ylabel(f"Fréchet distance of samples{of}")
    for panel in panels:
        logarithmic(panel)
    if cautions:
        figure.supxlabel("\n".join(f"Not equal: {one}" for one in cautions), fontsize=6)
    key_above(figure, _keys(looks))
    return figure


# What a sample costs, by column: axis label.
PRICES = {
    "sampling_flops": "FLOPs of one sample",
    "latency_seconds": "seconds of one sample alone",
    "seconds_per_image": "seconds an image, best batch",
}


@styled
def frontier(rows: pd.DataFrame) -> Figure:
    """Distance of samples against what one of them costs, each model with each of its settings; a
    line through those of an arm that none of its others beats in both. A panel for each price that
    was measured of at least two arms.
    """
    rows = rows.assign(seconds_per_image=1 / rows.images_per_second)
    prices = [name for name in PRICES if rows[rows[name].notna()].arm.nunique() > 1]
    wide = DOUBLE if len(prices) > 1 else SINGLE
    figure, (panels,) = sheet(wide, 2.7, 1, len(prices), sharey=True)
    looks = few(list(dict.fromkeys(rows.arm)))
    for panel, price in zip(panels, prices, strict=True):
        for arm, own in rows[rows[price].notna()].groupby("arm", sort=False):
            _settings_of(panel, own, price, looks[arm])
        panel.set(xscale="log", yscale="log", xlabel=PRICES[price])
        logarithmic(panel)
    panels[0].set_ylabel("Fréchet distance of samples")
    key_above(figure, _keys(looks), columns=2 if wide == SINGLE else 4)
    return figure


def _settings_of(panel: Axes, own: pd.DataFrame, price: str, look: Look) -> None:
    """Means over seeds of each size and setting of one arm, and the line of the best."""
    sizes = own.assign(log=np.log(own.distance)).groupby(["depth", "settings"])
    means = sizes.agg(price=(price, "median"), log=("log", "mean")).sort_values("price")
    distance = np.exp(means["log"])
    panel.plot(means.price, distance, look.marker, color=look.colour, ms=3, alpha=0.5)
    best = distance < distance.cummin().shift(fill_value=np.inf)
    panel.plot(means.price[best], distance[best], color=look.colour, ls=look.line, lw=1.1)


def _keys(looks: Mapping[str, Look]) -> list[Line2D]:
    return [
        Line2D([], [], color=look.colour, ls=look.line, marker=look.marker, label=arm)
        for arm, look in looks.items()
    ]


@styled
def beside(samples: Mapping[str, NDArray[np.uint8]]) -> Figure:
    """Samples of each arm, uint8 (K, n, W, W, 3): a row for each of K classes, n images wide."""
    figure, (panels,) = sheet(DOUBLE, 0.0, 1, len(samples))
    tallest = 0.0
    for panel, (arm, images) in zip(panels, samples.items(), strict=True):
        classes, count, side = images.shape[:3]
        sheet_of = images.transpose(0, 2, 1, 3, 4).reshape(classes * side, count * side, 3)
        panel.imshow(sheet_of, interpolation="nearest")
        panel.set_axis_off()
        panel.set_title(arm)
        tallest = max(tallest, classes / count)
    figure.set_figheight(DOUBLE / len(samples) * tallest + 0.4)
    return figure
