"""Figures of the laws in N: with points and bands, above the floor, residuals, scale by scale."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.fitting.fit import Fit
from analysis.plots.axes import logarithmic, set_ticks, signed, symbol
from analysis.plots.law_panel import LAW_LOOKS, draw_law, draw_points, law_handles, numbers
from analysis.plots.style import (
    GREY,
    INK,
    SINGLE,
    dot_size,
    finish,
    key_above,
    key_inside,
    ordered,
    pairs,
    sheet,
    styled,
)
from analysis.study import METRICS, LawResult, Study

SIZES = {
    "params_blocks": "$N$, weights of the blocks",
    "params_total": "$N_{\\mathrm{total}}$, all parameters",
}
_LAWS = ("pure", "floor")


@styled
def laws_in_parameters(study: Study) -> Figure | None:
    """Loss and error against both counts of parameters, with the laws without and with a floor."""
    found = [m for m in METRICS if any(study.get(m, size, "pure") for size in SIZES)]
    return _law_grid(study, found, above=False) if found else None


@styled
def above_the_floor(study: Study) -> Figure | None:
    """What lies above the fitted floor, against both counts; None where no law wants a floor."""
    found = [
        m for m in METRICS if any(any(_findings(study, m, size, above=True)) for size in SIZES)
    ]
    return _law_grid(study, found, above=True) if found else None


def _law_grid(study: Study, metrics: list[str], above: bool) -> Figure:
    """A row for each metric and a column for each count; one count alone is laid out in pairs."""
    drawn = {
        (m, s): [f for f in _findings(study, m, s, above) if f] for m in metrics for s in SIZES
    }
    sizes = [size for size in SIZES if any(drawn[m, size] for m in metrics)]
    cells = [(m, s) for m in metrics for s in sizes]
    figure, panels = pairs(len(cells), 1.75, 0.55)
    seeds: list[Any] = []
    for panel, (metric, size) in zip(panels.flat, cells, strict=False):
        if not drawn[metric, size]:
            panel.set_axis_off()
            why = "no floor wanted, E = 0" if above else "not known"
            panel.text(0.5, 0.5, f"{METRICS[metric][1]}:\n{why}", ha="center", va="center",
                       transform=panel.transAxes)  # fmt: skip
            continue
        seeds += _law_panel(panel, study, drawn[metric, size], above)
        panel.set_ylabel(metric_label(study, metric, " − $E$" if above else ""))
        panel.set_xlabel(SIZES[size])
    finish(panels, len(cells))
    laws = {f.fit.law.name for findings in drawn.values() for f in findings}
    handles = law_handles([law for law in _LAWS if law in laws], seeds, band=not above)
    key_above(figure, handles, 5 if len(cells) > 1 else 2)
    return figure


def _findings(study: Study, metric: str, size: str, above: bool) -> list[LawResult | None]:
    floor = _floor_of(study, metric, size)
    if above and floor is not None and min(floor.y) <= floor.fit.E:
        return [None]  # amid the points: what lies below it has no logarithm
    return [floor] if above else [study.get(metric, size, "pure"), floor]


def part_word(study: Study) -> str:
    """What the parts of the loss are called: a table with a last scale has scales."""
    return "scale" if study.table.rows.val_loss_last.notna().any() else "part"


def metric_label(study: Study, metric: str, less: str = "") -> str:
    name, what, unit = *METRICS[metric][:2], study.unit(metric)
    return f"{what}\n{symbol(name)}{less} ({unit})"


def _law_panel(panel: Axes, study: Study, findings: list[LawResult], above: bool) -> list[Any]:
    """Points and laws of one metric and count; returns the seeds of the points."""
    first = findings[0]
    offset = first.fit.E if above else 0.0
    seeds = seeds_of(study, first)
    draw_points(panel, np.array(first.x), np.array(first.y) - offset, seeds)
    for finding in findings:
        said = numbers(finding.fit, finding.intervals.get("alpha"))
        draw_law(panel, finding.fit, label=said, band=not above, offset=offset)
    panel.set(xscale="log", yscale="log")
    key_inside(panel)
    logarithmic(panel)
    return list(seeds)


def seeds_of(study: Study, finding: LawResult) -> Sequence[Any]:
    """The seed of each point, in the order of the fit; none where they are not known."""
    known = study.table.finals.dropna(subset=[finding.variable, finding.metric])
    if len(known) != finding.fit.points or known.seed.isna().any():
        return ()
    return [int(seed) for seed in known.seed]


def _floor_of(study: Study, metric: str, variable: str) -> LawResult | None:
    """The law with a floor, where the fit wants one."""
    finding = study.get(metric, variable, "floor")
    return finding if finding is not None and wants_floor(finding.fit) else None


def wants_floor(fit: Fit) -> bool:
    """Whether its floor can be seen: without, it is the pure law again."""
    return fit.law.floor and 1e-3 * float(fit.given.y.min()) < fit.E


@styled
def residuals(study: Study) -> Figure | None:
    """What each law in N leaves, in per cent of what it predicts, and the noise between seeds."""
    given = {m: _fits_of(study, m) for m in METRICS}
    found = [m for m, fits in given.items() if fits]
    if not found:
        return None
    figure, panels = pairs(len(found), 1.6, 0.5)
    for panel, metric in zip(panels.flat, found, strict=False):
        noise = study.noise.get(metric)
        draw_residuals(panel, given[metric], noise.sd if noise else None)
        panel.set_ylabel(f"{METRICS[metric][1]}\nmeasured / law − 1 (%)")
        panel.set_xlabel(SIZES[study.size])
    finish(panels, len(found))
    shown = [
        law for law in _LAWS if any(f.law.name == law for fits in given.values() for f in fits)
    ]
    key_above(figure, _residual_handles(shown, bool(study.noise)), 4 if len(found) > 1 else 2)
    return figure


def _fits_of(study: Study, metric: str) -> list[Fit]:
    found = [study.get(metric, study.size, law) for law in _LAWS]
    return [finding.fit for finding in found if finding is not None]


def draw_residuals(panel: Axes, fits: Sequence[Fit], noise: float | None = None) -> None:
    """Per cent, against x, on a panel; `noise`: sd of log L between seeds, shown as ± 2 sd."""
    if noise is not None:
        panel.axhspan(-200 * noise, 200 * noise, color=GREY, alpha=0.18, lw=0)
    panel.axhline(0, color=INK, lw=0.6)
    for k, fit in enumerate(fits):
        look = LAW_LOOKS[fit.law.name]
        x = np.asarray(fit.given.x, dtype=float)
        left = 100 * np.expm1(fit.residuals)
        sizes, at = np.unique(np.round(np.log(x), 2), return_inverse=True)  # within 1 %
        means = np.bincount(at, left) / np.bincount(at)
        panel.plot(np.exp(sizes), means, color=look.colour, ls=look.line, lw=0.8, zorder=2)
        face = look.colour if fit.law.floor else "white"
        panel.plot(x, left, look.marker, color=look.colour, mfc=face, mew=0.8,
                   ms=dot_size(len(x)) * (0.8 if fit.law.floor else 1.3), zorder=3 + k)  # fmt: skip
    panel.set_xscale("log")
    logarithmic(panel, y=False)
    most = max(abs(end) for end in panel.get_ylim())
    panel.set_ylim(-most, most)


def _residual_handles(laws: Sequence[str], noise: bool) -> list[Any]:
    names = {"pure": "pure power law", "floor": "with a fitted floor"}
    handles: list[Any] = [
        Line2D([], [], color=look.colour, ls=look.line, marker=look.marker, lw=0.8,
               mfc=look.colour if law == "floor" else "white", label=names[law])
        for law, look in LAW_LOOKS.items() if law in laws
    ]  # fmt: skip
    if noise:
        handles.append(Patch(color=GREY, alpha=0.3, lw=0, label="noise between seeds, ± 2 sd"))
    return handles


@styled
def scales(study: Study) -> Figure | None:
    """Loss of each scale against N, each with its own power law; coarse dark, fine bright."""
    if not study.scales:
        return None
    rows = -(-len(study.scales) // 2)
    figure, ((panel,),) = sheet(SINGLE, 2.4 + 0.13 * rows)
    looks = ordered(study.scales)
    handles = []
    for number, fit in study.scales.items():
        look = looks[number]
        x = np.asarray(fit.given.x, dtype=float)
        panel.plot(x, fit.given.y, look.marker, color=look.colour, ms=3.2, zorder=3)
        draw_law(panel, fit, look=look, band=False)
        said = f"{part_word(study)} {number}: α = {signed(fit.alpha, '.3f')}"
        handles.append(
            Line2D([], [], color=look.colour, ls=look.line, marker=look.marker, ms=3.2, label=said)
        )
    panel.set(xscale="log", yscale="log", xlabel=SIZES[study.size])
    panel.set_ylabel(f"$L_k$, loss of {part_word(study)} $k$ ({study.unit('val_loss')})")
    logarithmic(panel)
    low, high = panel.get_ylim()
    set_ticks(panel.yaxis, low, high, most=6)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure
