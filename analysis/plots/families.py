"""Figures of several families beside each other: distance of samples against what they cost."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.comparison.families import curves
from analysis.plots.axes import logarithmic
from analysis.plots.style import DOUBLE, few, key_above, sheet, styled

# Column: axis label.
COSTS = {
    "train_flops": "training FLOPs",
    "sampling_flops": "FLOPs of one sample",
}


@styled
def families(rows: pd.DataFrame, score: str = "distance") -> Figure:
    """Each run of each arm (column `arm`), a line through the means of its sizes; dashed, the
    distance of its tokenizer's reconstructions.
    """
    figure, (panels,) = sheet(DOUBLE, 2.9, 1, len(COSTS), sharey=True)
    looks = few(list(dict.fromkeys(rows.arm)))
    for panel, (cost, label) in zip(panels, COSTS.items(), strict=True):
        for arm, curve in curves(rows, score, cost).items():
            look, runs = looks[arm], rows[rows.arm == arm]
            panel.plot(runs[cost], runs[score], look.marker, color=look.colour, ms=3.2, alpha=0.6)
            panel.plot(curve.cost, np.exp(curve.log_score), color=look.colour, ls=look.line, lw=1.1)
            floor = runs.floor.dropna()
            if len(floor):
                panel.axhline(float(floor.iloc[0]), color=look.colour, lw=0.7, ls=(0, (1, 2)))
        panel.set(xscale="log", yscale="log", xlabel=label)
    panels[0].set_ylabel("Fréchet distance of samples")
    for panel in panels:
        logarithmic(panel)
    key_above(figure, [
        Line2D([], [], color=look.colour, ls=look.line, marker=look.marker, label=arm)
        for arm, look in looks.items()
    ])  # fmt: skip
    return figure
