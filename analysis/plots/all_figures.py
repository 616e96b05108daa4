"""All figures of a study and their captions, drawn to files."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from analysis.parallel import in_processes
from analysis.plots.allocation import allocation, allocation_figure, isoflop, isoflop_figure
from analysis.plots.compute import curves, frontier_figure, laws_in_compute, rates
from analysis.plots.diagnostics import (
    conventions,
    dots_figure,
    forecasts,
    holdout,
    holdout_figure,
    influence,
    objectives,
)
from analysis.plots.law_panel import law_band, law_figure
from analysis.plots.laws import above_the_floor, laws_in_parameters, main_law, residuals, scales
from analysis.plots.style import FORMATS, save
from analysis.plots.surface import size_and_data
from analysis.study import Study

__all__ = [
    "CAPTIONS",
    "FIGURES",
    "above_the_floor",
    "allocation",
    "allocation_figure",
    "conventions",
    "curves",
    "dots_figure",
    "draw_all",
    "forecasts",
    "frontier_figure",
    "holdout",
    "holdout_figure",
    "influence",
    "isoflop",
    "isoflop_figure",
    "law_band",
    "law_figure",
    "laws_in_compute",
    "laws_in_parameters",
    "main_law",
    "objectives",
    "rates",
    "residuals",
    "scales",
    "size_and_data",
]

FIGURES: dict[str, Callable[[Study], Figure | None]] = {
    draw.__name__: draw
    for draw in (
        main_law, laws_in_parameters, above_the_floor, residuals, size_and_data, laws_in_compute,
        scales, conventions, objectives, isoflop, allocation, holdout, influence, curves, rates,
        forecasts,
    )
}  # fmt: skip
_SLOW = ("laws_in_compute", "laws_in_parameters")  # drawn first
CAPTIONS = {
    "main_law": "The main result. Dashed: a pure power law; solid: with a fitted irreducible loss "
    "E, if the fit has E > 0; dotted: beyond the data. Bands: 95 % of the law; in brackets: the "
    "95 % interval of α.",
    "laws_in_parameters": "Score of each run at its end against the weights of the block matrices "
    "(left) and all parameters (right). Dashed: a pure power law; solid: with a fitted irreducible "
    "loss E, if the fit has E > 0; dotted: beyond the data. Bands: 95 % of the law itself, "
    "pointwise and linearised (t quantile, residual variance); in brackets: the 95 % profile "
    "interval of α.",
    "above_the_floor": "Score minus the fitted irreducible loss E, against the same two counts: "
    "the law is a straight line. The scatter is too small, because E is treated as known.",
    "residuals": "Residuals of each law in N, in per cent of the prediction; lines join the means "
    "of sizes. Grey, if sizes were run with several seeds: ± 2 standard deviations of runs that "
    "differ only in their seed.",
    "size_and_data": "Final score of each run against its size, and the fitted surface at constant "
    "numbers of training tokens D: dark for small and bright for large D. Brackets: 95 %.",
    "laws_in_compute": "Thin lines: each run's held-out score against the training FLOPs spent so "
    "far, dark for small and bright for large models. Points: the frontier; a hollow point is only "
    "an upper bound of C_min, because its size was still the best when its run stopped, or is the "
    "smallest or largest size. Bands: 95 % of the law; in brackets: the 95 % interval of α. A law "
    "without them has none.",
    "scales": "Final held-out loss of each scale, coarse (1) to fine, with its own pure power law "
    "in N.",
    "conventions": "The exponent of the pure law under every counting of parameters (circles) and "
    "of training FLOPs at the end of runs (squares), with 95 % profile intervals.",
    "objectives": "The exponent of the pure law in N under each objective of the fit, with 95 % "
    "profile intervals; an arrow: an open end.",
    "isoflop": "Loss against size at each budget, with the curve that is used (a parabola or an "
    "Akima spline) and its minimum (star, with its 95 % interval).",
    "allocation": "The best size (left) and number of tokens (right) for a budget by three "
    "approaches. Triangles: frontier points that are not only bounds; squares: minima of the "
    "isoFLOPs with 95 % intervals; band: 95 % of the surface's optimum by a bootstrap over runs.",
    "holdout": "Each law fitted up to a cut and used to predict every larger run: the relative "
    "error against the ratio of the run's size to the cut. Large symbols, joined: the largest "
    "size.",
    "influence": "Change of the exponent of the law in N when one run is left out and the rest is "
    "fitted again; the most influential run is named.",
    "curves": "Held-out loss and error of each run against the training tokens seen so far.",
    "rates": "Final held-out loss against the peak learning rate, a line for each size; a ring: "
    "the best rate.",
    "forecasts": "Forecasts made before a run ended, with their 95 % intervals of a new run, "
    "relative to the value measured later. Filled: the quoted law.",
}


def draw_all(
    study: Study, folder: Path, formats: Sequence[str] = (), processes: int = 1
) -> dict[str, Path]:
    """Draw every figure of the study as PNG and in `formats`; returns the path of each PNG by name.

    The same study gives the same files, byte by byte. `processes`: see analysis.parallel.
    """
    names = [*_SLOW, *(name for name in FIGURES if name not in _SLOW)]
    jobs = [partial(_draw, study, folder, name, formats) for name in names if name in FIGURES]
    drawn = dict(in_processes(jobs, processes))
    return {name: path for name in FIGURES if (path := drawn[name]) is not None}


def _draw(study: Study, folder: Path, name: str, formats: Sequence[str]) -> tuple[str, Path | None]:
    """The name of one figure and its PNG; None if the study has no data for it."""
    figure = FIGURES[name](study)
    if figure is not None:
        return name, save(figure, folder, name, formats)
    for kind in FORMATS:  # of an earlier study
        (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return name, None
