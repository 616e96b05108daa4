"""Figures one would put in a paper: log-log, with units, safe for the colour-blind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.study import METRICS, VARIABLES, Finding, Study

_INK, _POINT, _LAW = "#333333", "#0072B2", "#D55E00"  # Okabe-Ito blue and vermilion
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "svg.hashsalt": "var-scaling",  # the same figure twice is the same file
    "figure.dpi": 150,
}


def draw_all(
    study: Study, folder: Path, kinds: tuple[str, ...] = ("svg", "png", "pdf")
) -> dict[str, Path]:
    """Every figure that the table carries, in all `kinds`; returns each SVG by name."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Callable[[Study], Figure | None]] = {
        "laws_in_parameters": laws_in_parameters,
        "above_the_floor": above_the_floor,
        "laws_in_compute": laws_in_compute,
        "curves": curves,
        "rates": rates,
        "scales": scales,
    }
    drawn = {}
    with mpl.rc_context(_STYLE):
        for name, draw in figures.items():
            figure = draw(study)
            if figure is None:
                continue
            for kind in kinds:
                dateless = {"CreationDate": None} if kind == "pdf" else {"Date": None}
                metadata = dateless if kind != "png" else None
                figure.savefig(folder / f"{name}.{kind}", metadata=metadata)
                figure.set_layout_engine("none")  # laid out once; the other formats keep it
            drawn[name] = folder / f"{name}.svg"
    return drawn


_SIZES = ("params_blocks", "params_total")


def laws_in_parameters(study: Study) -> Figure | None:
    """Loss and error against both counts of parameters, with the laws without and with a floor."""
    found = [m for m in METRICS if study.get(m, "params_blocks", "pure")]
    return _law_grid(study, found, reducible=False) if found else None


def above_the_floor(study: Study) -> Figure | None:
    """What lies above the fitted floor, against both counts; None where no law wants a floor."""
    wanted = [m for m in METRICS if any(_floor_of(study, m, size) for size in _SIZES)]
    return _law_grid(study, wanted, reducible=True) if wanted else None


def _law_grid(study: Study, metrics: list[str], reducible: bool) -> Figure:
    """A panel for each metric (columns) and count of parameters (rows)."""
    figure = Figure(figsize=(3.1 * len(metrics), 5.2), layout="constrained")
    panels = figure.subplots(len(_SIZES), len(metrics), squeeze=False)
    for row, size in enumerate(_SIZES):
        for column, metric in enumerate(metrics):
            panel, (symbol, what, unit) = panels[row, column], METRICS[metric]
            floor = _floor_of(study, metric, size)
            if reducible and floor is None:
                panel.set_axis_off()
                panel.text(0.5, 0.5, f"{what}:\nno floor wanted, E = 0", ha="center", va="center")
                continue
            raw = study.get(metric, size, "pure")
            _law_panel(panel, [floor] if reducible else [raw, floor], reducible)
            panel.set_title(what)
            panel.set_ylabel(f"{symbol}{' − E' if reducible else ''} ({unit})")
            panel.set_xlabel(", ".join(VARIABLES[size]))
    return figure


def _floor_of(study: Study, metric: str, variable: str) -> Finding | None:
    """The law with a floor, where the fit wants one above zero and below the data."""
    finding = study.get(metric, variable, "floor")
    return finding if finding is not None and 0 < finding.fit.E < min(finding.y) else None


def laws_in_compute(study: Study) -> Figure | None:
    """Each run's held-out curve against the FLOPs it spent, and the law along their frontier."""
    found = [m for m in METRICS if study.get(m, "train_flops", "pure")]
    if not found:
        return None
    figure = Figure(figsize=(3.1 * len(found), 3.0), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, metric in zip(panels, found, strict=True):
        symbol, what, unit = METRICS[metric]
        _each_run(panel, study, "train_flops", metric, named=False)
        raw, floor = (
            study.get(metric, "train_flops", "pure"),
            _floor_of(study, metric, "train_flops"),
        )
        _law_panel(panel, [raw, floor], reducible=False)
        panel.set_title(what)
        panel.set_ylabel(f"{symbol} ({unit})")
        panel.set_xlabel("C, training FLOPs")
    return figure


def curves(study: Study) -> Figure | None:
    """Held-out loss of each run against the tokens it has seen; None where no run knows them."""
    if study.table.rows.tokens_seen.isna().all():
        return None
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, metric in zip(panels, ("val_loss", "val_error"), strict=True):
        symbol, what, unit = METRICS[metric]
        _each_run(panel, study, "tokens_seen", metric)
        _logarithmic(panel)
        panel.set_title(what)
        panel.set_ylabel(f"{symbol} ({unit})")
        panel.set_xlabel("D, training tokens seen")
    _runs_legend(panels[1])
    return figure


def rates(study: Study) -> Figure | None:
    """Final loss against the peak learning rate, a line a size; None without two rates."""
    finals = study.table.finals
    if finals.empty or finals.groupby("params_blocks").learning_rate.nunique().max() < 2:
        return None
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    panel = figure.subplots()
    colours = _size_colours(study)
    for size in np.unique(finals.params_blocks):
        runs = finals[finals.params_blocks == size].sort_values("learning_rate")
        colour, name = colours[size], _count(size)
        panel.plot(runs.learning_rate, runs.val_loss, "o-", ms=3, lw=1, color=colour, label=name)
    _logarithmic(panel)
    panel.set_xlabel("peak learning rate")
    panel.set_ylabel("L_mean (nats/token)")
    panel.legend(title="N", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def scales(study: Study) -> Figure | None:
    """Final loss of each scale against N."""
    finals = study.table.finals
    if finals.empty or finals.val_loss_per_scale.isna().any():
        return None
    values = np.stack([np.asarray(v, dtype=float) for v in finals.val_loss_per_scale])
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    panel = figure.subplots()
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, values.shape[1]))
    for k, colour in enumerate(colours):
        panel.plot(
            finals.params_blocks, values[:, k], "o-", ms=3, lw=1, color=colour, label=str(k + 1)
        )
    _logarithmic(panel)
    panel.set_xlabel("N, parameters in blocks")
    panel.set_ylabel("loss (nats/token)")
    panel.legend(title="scale", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _law_panel(panel: Axes, findings: list[Finding | None], reducible: bool) -> None:
    """Points and laws of one metric; `reducible` takes each law's floor off both."""
    given = [finding for finding in findings if finding is not None]
    offset = given[0].fit.E if reducible else 0.0
    x, y = np.array(given[0].x), np.array(given[0].y)
    panel.plot(x, y - offset, "o", ms=4.5, color=_POINT, zorder=3)
    line = np.geomspace(x.min() / 1.3, x.max() * 1.3, 200)
    for finding in given:
        fit = finding.fit
        solid = fit.law.floor
        panel.plot(
            line, fit.predict(line) - offset,
            "-" if solid else "--", lw=1.2, color=_LAW if solid else _INK, label=_label(finding),
        )  # fmt: skip
    _logarithmic(panel)
    panel.legend(loc="lower left", handlelength=1.4, borderaxespad=0.1)
    low, high = panel.get_ylim()
    panel.set_ylim(low / (high / low) ** 0.35, high)  # room for the legend below the points


def _label(finding: Finding) -> str:
    fit, (symbol, _) = finding.fit, VARIABLES[finding.variable]
    scale = _scientific(fit.beta) if fit.beta else "β"
    power = f"({scale} {symbol})$^{{-{fit.alpha:.3f}}}$"
    floor = f"{fit.E:.2f} + " if fit.law.floor else ""
    return f"{floor}{power}, r = {fit.r:.4f}".replace("r = -", "r = −")


def _scientific(value: float) -> str:
    exponent = int(np.floor(np.log10(value)))
    return f"{value / 10**exponent:.1f}·10$^{{{exponent}}}$"


def _each_run(panel: Axes, study: Study, x: str, metric: str, named: bool = True) -> None:
    rows = study.table.rows.dropna(subset=x)
    colours = _size_colours(study)
    for _, run in rows.groupby(["params_blocks", "trial"], sort=True):
        run = run.sort_values("step")
        size = run.params_blocks.iloc[0]
        panel.plot(
            run[x],
            run[metric],
            "-",
            lw=1,
            color=colours[size],
            label=_count(size) if named else None,
        )


def _size_colours(study: Study) -> dict[float, Any]:
    """Dark for small, bright for large."""
    sizes = np.sort(study.table.rows.params_blocks.unique())
    return dict(zip(sizes, mpl.colormaps["viridis"](np.linspace(0, 0.9, len(sizes))), strict=True))


def _runs_legend(panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    panel.legend(
        unique.values(), unique.keys(), title="N", loc="center left", bbox_to_anchor=(1, 0.5)
    )


def _logarithmic(panel: Axes) -> None:
    """Log-log, with plain numbers on an axis too short to hold powers of ten."""
    panel.set_xscale("log")
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    if high / low < 30:
        panel.yaxis.set_major_locator(LogLocator(subs=_subs(high / low)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(True, which="major", lw=0.4, color="#dddddd")


def _subs(ratio: float) -> tuple[float, ...]:
    return (1, 2, 3, 5) if ratio > 4 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)


def _count(number: float) -> str:
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}k"
