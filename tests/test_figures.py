"""Figures: drawn if the study has their data, legible in print, with reproducible bytes."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.compute_optimal.allocation import approaches
from analysis.compute_optimal.frontier import frontier
from analysis.compute_optimal.surface import SurfaceLaw
from analysis.fitting.fit import fit_law
from analysis.fitting.laws import FLOOR, SURFACE
from analysis.fitting.points import FitError
from analysis.forecasting.forecast import Graded, Outcome
from analysis.law_result import METRICS
from analysis.plots import allocation as figures_allocation
from analysis.plots.all_figures import (
    CAPTIONS,
    FIGURES,
    allocation_figure,
    dots_figure,
    draw_all,
    frontier_figure,
    holdout_figure,
    isoflop_figure,
    law_figure,
)
from analysis.plots.axes import symbol
from analysis.plots.compute import draw_runs
from analysis.plots.diagnostics import Dot
from analysis.plots.style import DOUBLE, SINGLE, size_styles
from analysis.selection.select import choose
from analysis.study import Study, study
from analysis.table.table import check
from analysis.uncertainty.intervals import Interval

SIZES = 73_728.0 * np.arange(2, 8) ** 3


def rows(seeds=2, rates=(1e-3,), noise=0.004):
    """Six sizes, each with a training curve of five steps and every score above a constant."""
    generator, found = np.random.default_rng(0), []
    for size in SIZES:
        for seed in range(seeds):
            for rate in rates:
                luck = np.exp(generator.normal(0, noise)) * (1 + 0.02 * np.log(rate / 1e-3) ** 2)
                for step in (100, 200, 400, 800, 1600):
                    tokens = step * 2e4
                    above = (2e-7 * size) ** -0.3 + (1e-6 * tokens) ** -0.5
                    loss = (2.0 + above) * luck
                    found.append({
                        "sweep": "s", "trial": f"d{size:.0f}-{seed}-{rate}", "family": "var",
                        "depth": 2, "width": 64, "seed": seed, "step": step, "steps": 1600,
                        "learning_rate": rate, "tokens_seen": tokens, "schedule": "cosine",
                        "params_blocks": size, "params_total": size + 2e5 * size**0.2,
                        "params_embedding": 1e4, "params_head": 1e4, "params_adaln": 0.3 * size,
                        "params_attention": 0.3 * size, "params_mlp": 0.4 * size,
                        "train_flops": 6 * size * tokens, "epochs": 1.0,
                        "val_loss": loss, "val_loss_last": 1.1 * loss, "val_error": 0.12 * loss,
                        "val_error_last": 0.14 * loss, "status": "done",
                        "val_loss_parts": [0.7 * loss, 0.9 * loss, loss**1.1, loss**1.2],
                    })  # fmt: skip
    return pd.DataFrame(found)


def isoflop_rows():
    """Seven sizes around the optimum at each of four budgets."""
    found = []
    for budget in (1e17, 4e17, 1.6e18, 6.4e18):
        for factor in np.geomspace(0.3, 3.3, 7):
            size = 2e7 * (budget / 1e17) ** 0.5 * factor
            tokens = budget / 6 / size
            luck = np.exp(np.random.default_rng(len(found)).normal(0, 0.002))
            loss = (1.7 + 400 * size**-0.34 + 410 * tokens**-0.28) * luck
            found.append((f"r{len(found)}", size, tokens, budget, loss))
    names = ["trial", "params_blocks", "tokens_seen", "train_flops", "val_loss"]
    return pd.DataFrame(found, columns=names).assign(status="done")


def graded():
    """Two forecasts with both laws of two metrics; one has no lower end."""

    def grade(metric, law, headline, low):
        return Graded(metric, law, headline, 2.1, low, 2.2, 2.05, 2.1 / 2.05 - 1, True, 0.5, 1.0)

    grades = tuple(
        grade(metric, law, law == "floor", None if law == "floor" else 2.0)
        for metric in ("val_loss", "val_error_last") for law in ("pure", "floor")
    )  # fmt: skip
    return tuple(Outcome(f"d{k}.json", "graded", "", None, grades) for k in (8, 9))


@pytest.fixture(scope="module")
def full() -> Study:
    """A study with the data of every figure; slow parts that no figure shows are left out."""
    module, laws, choosing = (
        import_module(f"analysis.{name}") for name in ("study", "law_result", "selection.select")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laws, "bootstrap", refusing)
        patch.setattr(module, "approaches", refusing)
        for room in (module, laws, choosing):
            patch.setattr(room, "interval", lambda fit, name: around(fit[name]))
        patch.setattr(choosing, "leave_largest_out", lambda *args, **kwargs: None)
        patch.setattr(choosing, "influence", lambda fit: ())
        patch.setattr(choosing, "_rolled", lambda fit: ())
        found = study(check(rows()), forecasts=graded())
    pure = found.get("val_loss", "params_blocks", "pure")
    chosen = found.choices["val_loss", "params_blocks"] = choose(pure.x, pure.y)
    rolled = {each.name: each.rolled for each in chosen.candidates}
    best = approaches(isoflop_rows(), "val_loss", resamples=60)
    two = {metric: found.objectives[metric] for metric in ("val_loss", "val_error")}
    surfaces = {metric: surface_of(isoflop_rows(), metric) for metric in ("val_loss", "val_error")}
    return replace(found, allocation=best, objectives=two, rolled=rolled, surfaces=surfaces)


def surface_of(runs, metric="val_loss") -> SurfaceLaw:
    fit = fit_law(SURFACE, (runs.params_blocks, runs.tokens_seen), runs.val_loss)
    spans = {name: around(value) for name, value in fit.values.items()}
    trials = tuple(runs.trial)
    return SurfaceLaw(metric, "params_blocks", fit, spans, None, "runs of many D", trials)


def around(value):
    return Interval(0.9 * value, 1.1 * value, 0.95, "made up", "nothing")


def refusing(*args, **kwargs):
    raise FitError("not here")


@pytest.fixture(scope="module")
def swept(full) -> Study:
    return replace(full, table=check(rows(seeds=1, rates=(3e-4, 1e-3, 3e-3))))


@pytest.fixture(scope="module")
def empty(full) -> Study:
    lone = full.table.rows.iloc[[0]].assign(status="running", tokens_seen=np.nan)
    return Study(
        table=replace(full.table, rows=lone), objective="squares", size="params_blocks",
        findings=(), choices={},
        conventions={}, objectives={}, scales={}, noise={}, frontiers={}, rolled={},
        allocation=None, refused=(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def figures(full, swept) -> dict[str, Figure]:
    """Every figure, laid out at its own size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures_allocation, "_RESAMPLES", 60)
        drawn = {name: draw(swept if name == "rates" else full) for name, draw in FIGURES.items()}
    for figure in drawn.values():
        if figure is not None:
            FigureCanvasAgg(figure).draw()
    return drawn


def texts(figure):
    """(text, its box in pixels) of every text that can be seen."""
    renderer = figure.canvas.get_renderer()
    hidden = set()
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis):
            low, high = sorted(axis.get_view_interval())
            for mark in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not (panel.axison and low <= mark.get_loc() <= high):
                    hidden |= {mark.label1, mark.label2}
    found = [text for text in figure.findobj(Text) if text not in hidden]
    found = [text for text in found if text.get_visible() and text.get_text().strip()]
    return [(text, text.get_window_extent(renderer)) for text in found]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_if_and_only_if_the_study_has_its_data(name, figures, empty):
    assert isinstance(figures[name], Figure)
    assert FIGURES[name](empty) is None
    assert len(CAPTIONS[name]) > 20


@pytest.mark.parametrize("name", FIGURES)
def test_all_text_is_within_the_figure_and_large_enough_to_read(name, figures):
    figure = figures[name]
    assert figure.get_figwidth() in (SINGLE, DOUBLE)
    for text, box in texts(figure):
        assert text.get_fontsize() >= 7, text.get_text()
        inside = figure.bbox.padded(1)
        assert inside.contains(box.x0, box.y0), text.get_text()
        assert inside.contains(box.x1, box.y1), text.get_text()


@pytest.mark.parametrize("name", FIGURES)
def test_no_two_tick_labels_or_legends_overlap(name, figures):
    figure = figures[name]
    renderer = figure.canvas.get_renderer()
    for panel in figure.axes:
        if not panel.axison:
            continue
        for axis in (panel.xaxis, panel.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [
                tick.label1.get_window_extent(renderer) for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high and tick.label1.get_text()
            ]  # fmt: skip
            assert not any(
                one.overlaps(other) for k, one in enumerate(labels) for other in labels[:k]
            ), (name, panel.get_ylabel())
    keys = [legend.get_window_extent(renderer) for legend in figure.legends]
    panels = [panel.get_window_extent(renderer) for panel in figure.axes if panel.axison]
    assert not any(key.overlaps(panel) for key in keys for panel in panels)
    assert not any(one.overlaps(other) for k, one in enumerate(keys) for other in keys[:k])


@pytest.mark.parametrize("name", FIGURES)
def test_a_legend_in_a_panel_stays_inside_it_and_covers_no_point(name, figures):
    figure = figures[name]
    renderer = figure.canvas.get_renderer()
    for panel in figure.axes:
        legend = panel.get_legend()
        if legend is None:
            continue
        box, around = legend.get_window_extent(renderer), panel.get_window_extent(renderer)
        assert around.x0 <= box.x0 + 1
        assert box.x1 <= around.x1 + 1
        assert around.y0 <= box.y0 + 1
        for line in panel.lines:
            if line.get_marker() not in (None, "None", "", "none"):
                places = panel.transData.transform(line.get_xydata())
                assert not any(box.contains(*place) for place in places)


def test_drawing_a_study_twice_gives_identical_files(full, tmp_path, monkeypatch):
    few_of_them = {"holdout": FIGURES["holdout"]}
    monkeypatch.setattr(import_module("analysis.plots.all_figures"), "FIGURES", few_of_them)
    for folder in ("one", "two"):
        drawn = draw_all(full, tmp_path / folder, ("pdf", "svg"))
        assert drawn == {name: tmp_path / folder / f"{name}.png" for name in few_of_them}
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    assert len(list((tmp_path / "one").iterdir())) == 3


def test_only_pngs_are_drawn_until_another_format_is_requested_and_then_it_is_renewed(
    full, tmp_path, monkeypatch
):
    few_of_them = {name: FIGURES[name] for name in ("holdout", "influence")}
    monkeypatch.setattr(import_module("analysis.plots.all_figures"), "FIGURES", few_of_them)

    def drawn(*formats):
        draw_all(full, tmp_path, formats)
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    assert set(drawn()) == {"holdout.png", "influence.png"}
    with_pdf = drawn("pdf")
    assert set(with_pdf) == {"holdout.png", "holdout.pdf", "influence.png", "influence.pdf"}
    again = drawn()
    assert set(again) == set(with_pdf)
    assert all(again[name] > with_pdf[name] for name in again), "no file shows older results"


def test_files_of_a_figure_that_the_study_no_longer_has_are_removed(
    full, empty, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        import_module("analysis.plots.all_figures"), "FIGURES", {"holdout": FIGURES["holdout"]}
    )
    draw_all(full, tmp_path, ("pdf",))
    assert draw_all(empty, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_figures_of_several_processes_are_those_of_one(full, tmp_path, monkeypatch):
    few_of_them = {name: FIGURES[name] for name in ("holdout", "influence", "rates")}
    monkeypatch.setattr(import_module("analysis.plots.all_figures"), "FIGURES", few_of_them)
    drawn = [draw_all(full, tmp_path / str(count), (), count) for count in (1, 3)]
    assert list(drawn[0]) == list(drawn[1]) == ["holdout", "influence"]
    for one, several in zip(drawn[0].values(), drawn[1].values(), strict=True):
        assert one.read_bytes() == several.read_bytes()


def test_runs_of_one_size_are_one_artist_and_keep_their_points(full):
    panel = Figure().subplots()
    rows = full.table.rows
    styles = size_styles(float(each) for each in rows.params_blocks.unique())
    draw_runs(panel, rows, "train_flops", "val_loss", "params_blocks", styles)
    assert len(panel.lines) <= 2 * rows.params_blocks.nunique()
    drawn = [y for line in panel.lines for y in line.get_ydata() if np.isfinite(y)]
    assert sorted(drawn) == sorted(rows.val_loss)


def test_drawing_does_not_change_the_style_of_matplotlib_or_import_pyplot(full):
    before = dict(mpl.rcParams)
    FIGURES["holdout"](full)
    assert dict(mpl.rcParams) == before
    sources = Path(import_module("analysis.plots.all_figures").__file__).parent.glob("*.py")
    assert not [path.name for path in sources if "pyplot" in path.read_text()]


def test_each_kind_of_figure_can_be_drawn_alone(full):
    loss = 2 + (2e-7 * SIZES) ** -0.3
    one = law_figure(fit_law(FLOOR, SIZES, loss), xlabel="$N$", seeds=range(6))
    assert len(one.axes) == 1
    two = frontier_figure(frontier(full.table.rows, "val_loss"))
    three = isoflop_figure(full.allocation.isoflops)
    four = allocation_figure(full.allocation)
    five = holdout_figure(full.rolled)
    endless = Dot("squares", 0.2, -np.inf, 0.3)
    six = dots_figure({"$L$": [endless, Dot("huber", 0.1)]}, "α")
    FigureCanvasAgg(six).draw()
    for figure in (one, two, three, four, five, six):
        assert figure.get_figwidth() in (SINGLE, DOUBLE)


def test_censored_frontier_points_have_hollow_markers(full, figures):
    found = full.frontiers["val_loss"]
    panel = figures["laws_in_compute"].axes[0]
    hollow = [
        line for line in panel.lines
        if line.get_marker() == "o" and line.get_markerfacecolor() == "white"
    ]  # fmt: skip
    assert sum(len(line.get_xdata()) for line in hollow) == found.censored.sum() > 0


def test_the_figure_of_a_surface_has_all_its_runs_and_only_lines_of_the_law(full):
    figure = FIGURES["size_and_data"](
        replace(full, surfaces={"val_loss": surface_of(isoflop_rows())})
    )
    (panel,), runs = figure.axes, isoflop_rows()
    (points,) = panel.collections
    assert sorted(points.get_offsets()[:, 1]) == sorted(runs.val_loss)
    assert set(points.get_array()) == set(runs.tokens_seen)
    FigureCanvasAgg(figure).draw()
    box = panel.get_legend().get_window_extent(figure.canvas.get_renderer())
    assert not any(
        box.contains(*place) for place in panel.transData.transform(points.get_offsets())
    )


def test_the_figure_of_a_surface_of_thousands_of_runs_has_few_artists(full):
    many = pd.concat([isoflop_rows()] * 100, ignore_index=True)
    many["tokens_seen"] *= np.random.default_rng(0).uniform(0.8, 1.2, len(many))
    figure = FIGURES["size_and_data"](replace(full, surfaces={"val_loss": surface_of(many)}))
    (panel,) = figure.axes
    assert len(panel.collections) == 1
    assert len(panel.lines) <= 8


def test_every_metric_has_its_symbol_and_unit_on_its_axis(figures):
    labels = [panel.get_ylabel() for panel in figures["laws_in_parameters"].axes]
    for name, what, unit in METRICS.values():
        assert any(symbol(name) in label and what in label and unit in label for label in labels)
