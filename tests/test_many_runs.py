"""Tables of many runs: shortcuts that change no result, or only simulated ones a little."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.fitting import terms
from analysis.fitting.fit import fit_law
from analysis.fitting.laws import FLOOR, PURE, SURFACE
from analysis.report import html
from analysis.report.html import Facts, write_report
from analysis.selection import holdout, influence
from analysis.selection.holdout import rolling
from analysis.study import study
from analysis.table.table import check
from analysis.uncertainty import profile
from analysis.uncertainty.bootstrap import bootstrap
from analysis.uncertainty.intervals import interval, prediction_interval

TRUE = {"A": 30.0, "alpha": 0.2, "B": 60.0, "beta": 0.2, "E": 1.5}
SEEDS = 9


def points(law, seed=0):
    """504 runs: 8 sizes × 7 lengths × 9 seeds, in random order."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(np.geomspace(1e6, 1e9, 8), np.geomspace(1e8, 1e10, 7), np.arange(SEEDS))
    N, D, seeds = (each.ravel()[generator.permutation(axes[0].size)] for each in axes)
    x = (N, D) if law is SURFACE else N
    values = {name: TRUE[name] for name in law.names}
    L = law.predict(x, values) * np.exp(generator.normal(0, 0.01, N.size))
    return x, L, seeds


@pytest.fixture
def all_points(monkeypatch):
    """A function after which no table counts as one of many runs."""

    def switch_off():
        for module in (terms, holdout, influence, profile):
            monkeypatch.setattr(module, "MANY", 10**9)

    return switch_off


@pytest.mark.parametrize("law", [PURE, FLOOR, SURFACE])
def test_least_squares_on_the_means_of_equal_x_is_that_of_all_points(law, all_points):
    x, y, seeds = points(law)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(y))

    def results():
        fit = fit_law(law, x, y, "squares", weights=weights)
        target = (2e9, 3e10) if law is SURFACE else 2e9
        spans = [interval(fit, name) for name in fit.values]
        spans.append(prediction_interval(fit, target))
        schemes = ({}, {"clusters": seeds}, {"strata": fit.data.points.group})
        drawn = [bootstrap(fit, 100, **scheme) for scheme in schemes]
        return fit, spans, drawn

    fit, spans, drawn = results()
    assert fit.data.points.distinct is not None
    all_points()
    fit_of_all, spans_of_all, drawn_of_all = results()
    assert fit.values == pytest.approx(fit_of_all.values, rel=1e-6)
    assert fit.certificate.objective == pytest.approx(fit_of_all.certificate.objective, rel=1e-9)
    for span, of_all in zip(spans, spans_of_all, strict=True):
        assert (span.low, span.high) == pytest.approx((of_all.low, of_all.high), rel=1e-4)
    for one, of_all in zip(drawn, drawn_of_all, strict=True):
        for name in fit.values:
            assert one.values[name] == pytest.approx(of_all.values[name], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["huber", "absolute"])
def test_critical_values_of_a_part_of_many_points_are_those_of_all(objective, all_points):
    x, y, _ = points(FLOOR)
    fit = fit_law(FLOOR, x, y, objective)

    def widths():
        spans = [interval(fit, "alpha"), prediction_interval(fit, 2e9)]
        return np.array([each.high - each.low for each in spans])

    of_part = widths()
    all_points()
    assert of_part == pytest.approx(widths(), rel=0.12)  # 999 simulations: about 4 %


def test_the_means_of_many_runs_of_a_size_are_held_out():
    N, L, _ = points(PURE)
    found = rolling(PURE, N, L, "squares", intervals=False)
    sizes = np.unique(N)
    assert len(found) == sum(range(1, len(sizes) - 1))  # cuts at 2 to 7 of 8 sizes
    for each in found:
        assert set(each.points) == set(np.flatnonzero(each.x == N))
        assert each.measured == pytest.approx(L[each.x == N].mean(), rel=1e-12)
        assert each.runs == (each.cut >= N).sum()
    few = rolling(PURE, N[:100], L[:100], "squares", intervals=False)
    assert all(len(each.points) == 1 for each in few)


def runs(count, curves=1):
    """`count` runs of equal length in random order of loss, with `curves` points each."""
    generator = np.random.default_rng(2)
    N = np.repeat(np.geomspace(1e6, 2e6, count), curves)
    D = np.tile(np.geomspace(1, 0.2, curves)[::-1], count) * 1e10
    offset = np.repeat(generator.normal(0, 0.2, count), curves)
    loss = (1.5 + 30 * N**-0.2 + 60 * D**-0.2) * np.exp(offset)
    schedule = "constant" if curves > 1 else "cosine"
    return pd.DataFrame({
        "trial": np.repeat([f"r{k}" for k in range(count)], curves), "params_blocks": N,
        "tokens_seen": D, "train_flops": 6 * N * D, "val_loss": loss, "schedule": schedule,
        "step": np.tile(np.linspace(100, 20, curves)[::-1], count), "steps": 100,
    })  # fmt: skip


@pytest.mark.slow
def test_a_long_table_of_runs_is_shortened_and_all_links_lead_somewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "_SHOWN_ROWS", 5)
    frame = runs(9).drop(columns=["schedule", "step", "steps"]).assign(seed=0)
    write_report(
        tmp_path / "index.html", study(check(frame, "runs.csv")), {},
        Facts(title="title", question="question?", settings={}, provenance={}),
    )  # fmt: skip
    page = (tmp_path / "index.html").read_text()
    assert "The first 5 of 9 runs; all are in laws.json." in page
    assert "The 5 of 9 runs with the largest residuals" in page
    assert "9 finished runs" in page
    links = set(re.findall(r'href="#(run-\d+)"', page))
    assert links
    assert links <= set(re.findall(r'id="(run-\d+)"', page))
    table = page[page.index('id="run-table"') :].split("</table>")[0]
    assert table.count("<tr") == 6


def test_one_more_run_of_a_size_moves_the_law_as_the_exact_refit():
    x, y, _ = points(FLOOR)
    fit = fit_law(FLOOR, x, y, "squares")
    found = influence.influence(fit)
    assert len(found) == len(y)
    for each in found[:3]:
        kept = np.arange(len(y)) != each.point
        without = fit_law(FLOOR, x[kept], y[kept], "squares")
        assert without.alpha - fit.alpha == pytest.approx(each.alpha_change, rel=1e-3, abs=1e-9)


def test_equal_points_in_another_order_have_the_same_groups():
    x, y, _ = points(SURFACE)
    groups = fit_law(SURFACE, x, y, "squares").data.points.group
    cells = np.unique(np.stack(x), axis=1, return_inverse=True)[1].ravel()
    assert (groups == cells).all()
    assert replace(fit_law(PURE, x[0], y, "squares").data.points).group.max() == 7


@pytest.mark.slow
def test_20000_runs_of_different_length_need_less_than_a_gigabyte(tmp_path):
    generator = np.random.default_rng(0)
    N = np.geomspace(1e7, 1e10, 60).repeat(334)[:20_000].round()
    D = 10 ** generator.uniform(9, 12, 20_000)
    loss = 1.69 + 406.4 * N**-0.34 + 410.7 * D**-0.28
    table = {"params_total": N, "tokens_seen": D, "train_flops": 6 * N * D, "val_loss": loss}
    path = tmp_path / "runs.csv"
    pd.DataFrame(table).assign(val_loss=loss * np.exp(generator.normal(0, 0.005, 20_000))).to_csv(
        path, index=False
    )
    code = (
        "import resource, sys\nfrom analysis.study import studies\n"
        "from analysis.table.table import load_table\nstudies(load_table(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout.split()[-1]) < 1000
