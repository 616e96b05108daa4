"""Figures of the laws in N: laws with bands, the part above E, residuals, laws of each scale."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.fitting.fit import Fit
from analysis.law_result import METRICS, LawResult
from analysis.plots.axes import logarithmic, set_ticks, signed, symbol
from analysis.plots.law_panel import LAW_STYLES, draw_law, draw_points, fit_label, law_handles
from analysis.plots.style import (
    GREY,
    INK,
    SINGLE,
    hide_empty_panels,
    legend_above,
    legend_inside,
    marker_size,
    new_figure,
    panel_grid,
    sequential_styles,
    styled,
)
from analysis.selection.select import has_irreducible_loss
from analysis.study import Study

SIZES = {
    "params_blocks": "$N$, weights of the blocks",
    "params_total": "$N_{\\mathrm{total}}$, all parameters",
}
_LAWS = ("pure", "floor")


@styled
def main_law(study: Study) -> Figure | None:
    """The main result alone: one metric in one variable, with the laws without and with E."""
    if study.main is None or study.main[0] in study.mixed_data or study.main[1] not in SIZES:
        return None
    metric, size = study.main
    findings = [f for f in _findings(study, metric, size, above=False) if f is not None]
    if not findings:
        return None
    figure, ((panel,),) = new_figure(SINGLE, 0.75 * SINGLE)
    seeds = _law_panel(panel, study, findings, above=False)
    panel.set(xlabel=SIZES[size], ylabel=metric_label(study, metric))
    handles = law_handles([finding.fit.law.name for finding in findings], seeds)
    legend_above(figure, handles, 2)
    return figure


@styled
def laws_in_parameters(study: Study) -> Figure | None:
    """Loss and error against both counts of parameters, with the laws without and with E."""
    metrics = [m for m in METRICS if any(study.get(m, size, "pure") for size in SIZES)]
    return _law_grid(study, metrics, above=False) if metrics else None


@styled
def above_the_floor(study: Study) -> Figure | None:
    """Score minus the fitted E, against both counts; None if no law has a visible E."""
    metrics = [
        m for m in METRICS if any(any(_findings(study, m, size, above=True)) for size in SIZES)
    ]
    return _law_grid(study, metrics, above=True) if metrics else None


def _law_grid(study: Study, metrics: list[str], above: bool) -> Figure:
    """A panel for each metric and count: two columns, one for each count if both are known."""
    findings_of = {
        (m, s): [f for f in _findings(study, m, s, above) if f] for m in metrics for s in SIZES
    }
    sizes = [size for size in SIZES if any(findings_of[m, size] for m in metrics)]
    cells = [(m, s) for m in metrics for s in sizes]
    figure, panels = panel_grid(len(cells), 1.75, 0.55)
    seeds: list[Any] = []
    for panel, (metric, size) in zip(panels.flat, cells, strict=False):
        if not findings_of[metric, size]:
            panel.set_axis_off()
            reason = "no irreducible loss, E = 0" if above else "not known"
            panel.text(0.5, 0.5, f"{METRICS[metric][1]}:\n{reason}", ha="center", va="center",
                       transform=panel.transAxes)  # fmt: skip
            continue
        seeds += _law_panel(panel, study, findings_of[metric, size], above)
        panel.set_ylabel(metric_label(study, metric, " − $E$" if above else ""))
        panel.set_xlabel(SIZES[size])
    hide_empty_panels(panels, len(cells))
    laws = {f.fit.law.name for findings in findings_of.values() for f in findings}
    handles = law_handles([law for law in _LAWS if law in laws], seeds, band=not above)
    legend_above(figure, handles, 5 if len(cells) > 1 else 2)
    return figure


def _findings(study: Study, metric: str, size: str, above: bool) -> list[LawResult | None]:
    with_E = _law_with_E(study, metric, size)
    if above and with_E is not None and min(with_E.y) <= with_E.fit.E:
        return [None]  # points below E have no logarithm
    return [with_E] if above else [study.get(metric, size, "pure"), with_E]


def part_name(study: Study) -> str:
    """The name of one part of the loss: "scale" if the table has a loss of the last scale."""
    return "scale" if study.table.rows.val_loss_last.notna().any() else "part"


def metric_label(study: Study, metric: str, suffix: str = "") -> str:
    name, what, unit = *METRICS[metric][:2], study.unit(metric)
    return f"{what}\n{symbol(name)}{suffix} ({unit})"


def _law_panel(panel: Axes, study: Study, findings: list[LawResult], above: bool) -> list[Any]:
    """Draw the points and laws of one metric and count; returns the seeds of the points."""
    first = findings[0]
    offset = first.fit.E if above else 0.0
    seeds = seeds_of(study, first)
    draw_points(panel, np.array(first.x), np.array(first.y) - offset, seeds)
    for finding in findings:
        label = fit_label(finding.fit, finding.intervals.get("alpha"))
        label += ", no law" if finding.no_law else ""
        draw_law(panel, finding.fit, label=label, band=not above, offset=offset)
    panel.set(xscale="log", yscale="log")
    legend_inside(panel)
    logarithmic(panel)
    return list(seeds)


def seeds_of(study: Study, finding: LawResult) -> Sequence[Any]:
    """The seed of each point, in the order of the fit; empty if they are unknown."""
    # The rows that the law was fitted to. If they are not as many, seeds cannot be matched.
    known = study.table.finals.dropna(subset=[finding.variable, finding.metric])
    if len(known) != finding.fit.points or known.seed.isna().any():
        return ()
    return [int(seed) for seed in known.seed]


def _law_with_E(study: Study, metric: str, variable: str) -> LawResult | None:
    """The law with an irreducible loss E, if the fitted E is visible."""
    finding = study.get(metric, variable, "floor")
    return finding if finding is not None and has_irreducible_loss(finding.fit) else None


@styled
def residuals(study: Study) -> Figure | None:
    """Residuals of each law in N, in per cent of the prediction, and the noise between seeds."""
    fits_of = {m: _fits_of(study, m) for m in METRICS}
    metrics = [m for m, fits in fits_of.items() if fits]
    if not metrics:
        return None
    figure, panels = panel_grid(len(metrics), 1.6, 0.5)
    for panel, metric in zip(panels.flat, metrics, strict=False):
        noise = study.noise.get(metric)
        draw_residuals(panel, fits_of[metric], noise.sd if noise else None)
        panel.set_ylabel(f"{METRICS[metric][1]}\nmeasured / law − 1 (%)")
        panel.set_xlabel(SIZES[study.size])
    hide_empty_panels(panels, len(metrics))
    laws = [
        law for law in _LAWS if any(f.law.name == law for fits in fits_of.values() for f in fits)
    ]
    legend_above(figure, _residual_handles(laws, bool(study.noise)), 4 if len(metrics) > 1 else 2)
    return figure


def _fits_of(study: Study, metric: str) -> list[Fit]:
    findings = [study.get(metric, study.size, law) for law in _LAWS]
    return [finding.fit for finding in findings if finding is not None]


def draw_residuals(panel: Axes, fits: Sequence[Fit], noise: float | None = None) -> None:
    """Residuals in per cent against x; `noise`: sd of log L between seeds, shown as ± 2 sd."""
    if noise is not None:
        # 200: two standard deviations, in per cent.
        panel.axhspan(-200 * noise, 200 * noise, color=GREY, alpha=0.18, lw=0)
    panel.axhline(0, color=INK, lw=0.6)
    for k, fit in enumerate(fits):
        style = LAW_STYLES[fit.law.name]
        x = np.asarray(fit.data.x, dtype=float)
        # The residuals are log(measured / predicted).
        percent = 100 * np.expm1(fit.residuals)
        sizes, size_index = np.unique(
            np.round(np.log(x), 2), return_inverse=True
        )  # equal within 1 %
        means = np.bincount(size_index, percent) / np.bincount(size_index)
        panel.plot(np.exp(sizes), means, color=style.colour, ls=style.line, lw=0.8, zorder=2)
        # Smaller filled markers above larger hollow ones: both stay visible where they coincide.
        face = style.colour if fit.law.floor else "white"
        panel.plot(x, percent, style.marker, color=style.colour, mfc=face, mew=0.8,
                   ms=marker_size(len(x)) * (0.8 if fit.law.floor else 1.3),
                   zorder=3 + k)  # fmt: skip
    panel.set_xscale("log")
    logarithmic(panel, y=False)
    limit = max(abs(end) for end in panel.get_ylim())
    panel.set_ylim(-limit, limit)


def _residual_handles(laws: Sequence[str], noise: bool) -> list[Any]:
    names = {"pure": "pure power law", "floor": "with a fitted E"}
    handles: list[Any] = [
        Line2D([], [], color=style.colour, ls=style.line, marker=style.marker, lw=0.8,
               mfc=style.colour if law == "floor" else "white", label=names[law])
        for law, style in LAW_STYLES.items() if law in laws
    ]  # fmt: skip
    if noise:
        handles.append(Patch(color=GREY, alpha=0.3, lw=0, label="noise between seeds, ± 2 sd"))
    return handles


@styled
def scales(study: Study) -> Figure | None:
    """Loss of each scale against N, each with its own power law; coarse is dark, fine is bright."""
    if not study.scales:
        return None
    # Two keys in each row of the legend below the panel.
    rows = -(-len(study.scales) // 2)
    figure, ((panel,),) = new_figure(SINGLE, 2.4 + 0.13 * rows)
    styles = sequential_styles(study.scales)
    handles = []
    for number, fit in study.scales.items():
        style = styles[number]
        x = np.asarray(fit.data.x, dtype=float)
        panel.plot(x, fit.data.y, style.marker, color=style.colour, ms=3.2, zorder=3)
        draw_law(panel, fit, style=style, band=False)
        label = f"{part_name(study)} {number}: α = {signed(fit.alpha, '.3f')}"
        handles.append(
            Line2D(
                [], [], color=style.colour, ls=style.line, marker=style.marker, ms=3.2, label=label
            )
        )
    panel.set(xscale="log", yscale="log", xlabel=SIZES[study.size])
    panel.set_ylabel(f"$L_k$, loss of {part_name(study)} $k$ ({study.unit('val_loss')})")
    logarithmic(panel)
    low, high = panel.get_ylim()
    set_ticks(panel.yaxis, low, high, max_ticks=6)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure
