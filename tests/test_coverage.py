"""Intervals of whole tables: simulated coverage, lack of fit, and the frontier's law."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from analysis.compute_optimal.approach import from_minima
from analysis.compute_optimal.cost import six_nd
from analysis.compute_optimal.frontier import frontier, run_ends
from analysis.compute_optimal.frontier_law import OF_POINTS, frontier_interval, surface_path
from analysis.compute_optimal.isoflop import isoflops
from analysis.compute_optimal.surface_optimum import optimum
from analysis.coverage import (
    COMMON,
    MANY_RUNS,
    METRIC,
    RICHER,
    SIZE,
    SURFACE_VALUES,
    TRUE,
    Design,
    coverage_of_forms,
    designs,
    simulated_coverage,
)
from analysis.export import laws_of_all
from analysis.fitting.fit import fit_law
from analysis.fitting.laws import FLOOR, PURE, SURFACE
from analysis.fitting.points import FitError
from analysis.plots.law_panel import law_band
from analysis.report.latex import law_table
from analysis.selection.influence import influence
from analysis.selection.options import Options
from analysis.selection.select import aicc
from analysis.study import study
from analysis.summary import verdicts
from analysis.table.table import check
from analysis.uncertainty.bootstrap import bootstrap, bootstrap_of_surface, jackknife
from analysis.uncertainty.intervals import covers, interval, prediction_interval
from pipelines.cli.terminal.laws import law_tables
from pipelines.report.publish import law_scalars

ISO, CURVES, GRID, ONE_LENGTH, FEW = designs()
EXPONENT = (
    SURFACE_VALUES["alpha"]
    * SURFACE_VALUES["beta"]
    / (SURFACE_VALUES["alpha"] + SURFACE_VALUES["beta"])
)
LADDER = replace(ONE_LENGTH, curves=False)  # ends of runs of one length: neither curves nor surface


def table(design, world=TRUE, seed=0):
    return design.rows(world, np.random.default_rng(seed))


def law_of(design, world=TRUE, seed=0):
    rows = table(design, world, seed)
    points = frontier(rows, METRIC, params=SIZE)
    fit = fit_law(FLOOR, points.flops[points.of_law], points.loss[points.of_law], "squares")
    return fit, points, surface_path(rows, points)


def test_the_true_frontier_has_the_exponents_of_the_closed_form():
    log_C, log_N, log_L = TRUE.path
    assert np.polyfit(log_C, log_N, 1)[0] == pytest.approx(0.28 / 0.62, abs=1e-4)
    reducible = np.log(np.exp(log_L) - SURFACE_VALUES["E"])
    assert -np.polyfit(log_C, reducible, 1)[0] == pytest.approx(EXPONENT, abs=1e-6)


def test_censored_points_bend_the_law_and_are_left_out():
    fit, points, _ = law_of(CURVES, replace(TRUE, noise=1e-9))
    assert fit.alpha == pytest.approx(EXPONENT, abs=1e-3)
    assert pytest.approx(SURFACE_VALUES["E"], abs=0.01) == fit.E
    bent = fit_law(FLOOR, points.flops, points.loss, "squares")
    assert bent.alpha > EXPONENT + 0.01


def test_the_law_of_the_frontier_has_the_interval_of_the_surface():
    fit, points, path = law_of(CURVES)
    found = frontier_interval(fit, "alpha", points, path)
    assert "optima of the surface" in found.method
    # The points of a curve are no independent runs: as if they were, the interval is too narrow.
    profile = interval(fit, "alpha")
    assert found.high - found.low > 1.5 * (profile.high - profile.low)


def test_the_printed_law_is_inside_its_interval_and_nearer_to_the_truth_than_the_points():
    for seed in range(3):
        fit, points, path = law_of(GRID, seed=seed)
        law = path.law_of(fit)
        for name, truth in (("alpha", EXPONENT), ("E", SURFACE_VALUES["E"])):
            found = frontier_interval(fit, name, points, path)
            assert found.low <= law[name] <= found.high
            assert abs(law[name] - truth) < abs(fit[name] - truth)


def test_the_law_of_the_surface_is_exact_and_has_the_points_of_the_frontier():
    fit, _, path = law_of(GRID)
    law, surface = path.law_of(fit), path.surface
    alpha, beta = surface["alpha"], surface["beta"]
    assert law.alpha == pytest.approx(alpha * beta / (alpha + beta), rel=1e-9)
    assert surface.E == law.E
    assert law.predict(path.flops) == pytest.approx(path.best, rel=1e-9)
    assert law.data is fit.data
    # Its points are upper bounds, and lie above it.
    assert np.mean(law.residuals) > 0
    assert law.rms_relative_error == pytest.approx(np.sqrt(np.mean(np.expm1(-law.residuals) ** 2)))
    assert law.certificate.objective == surface.certificate.objective
    given = f"the points alone give α = {fit.alpha:.4f}, outside the interval: they are upper"
    assert given in law.flags[0]
    # Of a line the slope is that of the optima, and the fit of the points to them is the same.
    pure = fit_law(PURE, path.flops, path.best, "squares")
    assert path.law_of(fit_law(PURE, fit.data.x, fit.data.y, "squares")).alpha == pytest.approx(
        pure.alpha, rel=1e-9
    )


def test_what_needs_an_optimum_of_the_points_refuses_the_law_of_the_surface():
    fit, _, path = law_of(GRID)
    law = path.law_of(fit)
    for refused in (
        lambda: interval(law, "alpha"),
        lambda: prediction_interval(law, 1e22),
        lambda: bootstrap(law, 20),
        lambda: influence(law),
        lambda: aicc(law),
        lambda: law_band(law, [1e22]),
    ):
        with pytest.raises(FitError, match="follow from the surface of all runs"):
            refused()


def test_a_fixed_E_is_fixed_in_the_surface_too():
    rows = table(GRID)
    points = frontier(rows, METRIC, params=SIZE)
    path = surface_path(rows, points, floor=SURFACE_VALUES["E"])
    fit = fit_law(
        FLOOR, points.flops[points.of_law], points.loss[points.of_law], "squares",
        floor=SURFACE_VALUES["E"],
    )  # fmt: skip
    law = path.law_of(fit)
    assert pytest.approx(SURFACE_VALUES["E"]) == law.E
    assert (path.E == law.E).all()
    found = path.interval(fit, "alpha")
    assert found.low <= law.alpha <= found.high
    free = law_of(GRID)[2].interval(fit, "alpha")
    assert found.high - found.low < 0.5 * (free.high - free.low)


def of_study(rows, **options):
    depths = {size: depth for depth, size in enumerate(sorted(rows[SIZE].unique()), start=1)}
    known = rows.assign(depth=rows[SIZE].map(depths), family="var", status="done")
    return study(check(known), options=Options(**options))


def test_the_whole_report_has_the_law_of_the_surface():
    rows = table(GRID)
    fit, points, path = law_of(GRID)
    done = of_study(rows, at={"C": 1e22})
    found, choice = done.get(METRIC, "train_flops", "floor"), done.choices[METRIC, "train_flops"]
    assert found.fit.values == pytest.approx(path.law_of(fit).values)
    assert choice.get("floor").fit is found.fit
    assert choice.get("floor").aicc == aicc(fit)
    assert found.resampled["alpha"] == found.intervals["alpha"]
    assert found.intervals["alpha"].low <= found.fit.alpha <= found.intervals["alpha"].high
    assert found.y == tuple(points.loss[points.of_law])
    assert pytest.approx(done.surfaces[METRIC].fit.E, rel=1e-6) == found.fit.E
    # A prediction is that of the law; the line with E is the optimum of the surface.
    predicted = {each.law: each for each in done.predictions if each.label == "L_mean(C)"}
    best = optimum(path.surface.values, six_nd(), 1e22)[2]
    assert predicted["floor"].loss == pytest.approx(float(best), rel=1e-6)
    for name, each in predicted.items():
        law = done.get(METRIC, "train_flops", name).fit
        assert each.loss == pytest.approx(float(law.predict(1e22)))
        assert each.interval.low < each.loss < each.interval.high
        # Of a new run: no narrower than the noise of .005.
        assert np.log(each.interval.high / each.interval.low) > 2 * 1.96 * 0.004


def test_without_a_surface_the_law_is_that_of_the_points():
    rows = table(LADDER)
    points = frontier(rows, METRIC, params=SIZE)
    assert surface_path(rows, points) is None
    done = of_study(rows)
    for law in (PURE, FLOOR):
        fit = fit_law(law, points.flops[points.of_law], points.loss[points.of_law], "squares")
        found = done.get(METRIC, "train_flops", law.name)
        assert found.fit.values == fit.values
        assert found.fit.flags == fit.flags
        assert found.path is None
        expected = frontier_interval(fit, "alpha", points, None)
        assert found.intervals["alpha"] == expected


def test_curves_of_one_length_have_a_surface_of_the_points_inside_runs():
    fit, _, path = law_of(ONE_LENGTH, replace(TRUE, noise=1e-9))
    assert "24 runs with their curves" in path.method
    # Smoothing and interpolation of the curves bend them a little.
    for name, value in (("alpha", EXPONENT), ("E", SURFACE_VALUES["E"])):
        found = path.interval(fit, name)
        assert found.low == pytest.approx(value, rel=3e-3)
        assert found.high == pytest.approx(value, rel=3e-3)


def of_few(count: int) -> Design:
    """Curves of one length, one seed of each size."""
    N = np.geomspace(3e7, 3e9, count)
    return replace(FEW, N=N, D=np.full(count, 3e10), seed=np.zeros(count))


@pytest.mark.parametrize("count", [5, 11])
def test_of_few_curves_each_is_left_out_once(count):
    fit, points, path = law_of(of_few(count))
    assert path.method.endswith(f"t({count - 1}) from refits without one of {count} runs with "
                                "their curves")  # fmt: skip
    found = frontier_interval(fit, "alpha", points, path)
    law = path.law_of(fit)
    assert found.low < law.alpha < found.high
    assert found.low < EXPONENT < found.high


def test_the_jackknife_of_a_line_has_the_width_of_its_t_interval():
    """One run a size: the residuals of a line have no clusters."""
    generator, N = np.random.default_rng(0), np.geomspace(1e6, 1e9, 60)
    fit = fit_law(PURE, N, 30 * N**-0.1 * np.exp(generator.normal(0, 0.01, 60)), "squares")
    drawn = jackknife(fit, np.arange(60), 20_000, "runs")
    expected, found = interval(fit, "alpha"), drawn.interval("alpha")
    assert "t(59) from refits without one of 60 runs" in found.method
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.1)
    assert (found.high + found.low) / 2 == pytest.approx(fit.alpha, rel=0.01)


@pytest.mark.parametrize("of_size", [(3, 1, 1), (1, 1, 4), (2, 2, 1)])
def test_no_run_may_be_left_out_if_two_sizes_remain(of_size):
    """A law passes through two sizes whatever their losses: the refit would show no scatter."""
    N = np.repeat(np.geomspace(3e7, 3e9, 3), of_size)
    few = replace(FEW, N=N, D=np.full(len(N), 3e10), seed=np.arange(float(len(N))))
    fit, points, path = law_of(few)
    assert path is None
    assert frontier_interval(fit, "alpha", points, path) is None


def test_curves_without_a_surface_have_no_interval_and_ends_have_that_of_their_law():
    fit, points, path = law_of(of_few(4))
    assert path is None
    assert points.within_runs
    assert frontier_interval(fit, "alpha", points, path) is None
    fit, points, path = law_of(LADDER)
    assert path is None
    assert points.censored.all()
    found = frontier_interval(fit, "alpha", points, path)
    assert OF_POINTS in found.method
    assert (found.low, found.high) == (interval(fit, "alpha").low, interval(fit, "alpha").high)


def on_terminal(laws) -> str:
    shown = io.StringIO()
    Console(file=shown, width=200).print(law_tables({**laws, "sweep": "runs.csv"}))
    return shown.getvalue()


def test_on_the_terminal_a_fixed_E_of_a_surface_is_fixed_and_not_without_interval():
    laws = laws_of_all({"": of_study(table(GRID), E=SURFACE_VALUES["E"])}, ())
    text = on_terminal(json.loads(json.dumps(laws)))
    (of_E,) = [line for line in text.splitlines() if line.startswith(" E [95 %]")]
    assert "1.6900 fixed" in of_E
    assert "no interval" not in text


def test_a_report_of_few_curves_has_a_law_of_compute_without_an_interval():
    found = of_study(of_few(4).rows(TRUE, np.random.default_rng(0)))
    law = found.get(METRIC, "train_flops", "pure")
    assert law.intervals == {}
    assert law.resampled["method"].startswith("none: the points of a frontier")
    assert "(95 %" not in next(v.headline for v in verdicts(found) if v.variable == "train_flops")
    assert any("L_mean(C): no interval, because" in reason for reason in found.refused)
    # On the terminal, in MLflow and in LaTeX.
    laws = json.loads(json.dumps(laws_of_all({"": found}, ())))
    line = next(text for text in on_terminal(laws).splitlines() if "L_mean(C)" in text)
    assert "no interval" in line
    assert "fixed" not in line
    scalars = law_scalars(laws)
    assert "law/L_mean_of_C/pure/alpha" in scalars
    assert "law/L_mean_of_C/pure/alpha_low" not in scalars
    assert r"$L_{\mathrm{mean}}(C)$" in law_table(found)
    predicted = of_study(of_few(4).rows(TRUE, np.random.default_rng(0)), at={"N": 1e10, "C": 1e22})
    assert "L_mean(C)" not in {each.label for each in predicted.predictions}
    assert any("points inside runs share errors" in text for text in predicted.unpredicted)


def test_coverage_of_the_other_laws_has_all_designs():
    found = coverage_of_forms(1, 1)
    assert {design: len(laws) for design, laws in found.items()} == {
        ISO.name: 5, GRID.name: 4, MANY_RUNS: 1,
    }  # fmt: skip


def test_cells_are_drawn_where_the_surface_misses_their_means():
    def both(world):
        ends = run_ends(table(GRID, world), METRIC, SIZE)
        inputs = (ends[SIZE].to_numpy(), ends.tokens_seen.to_numpy())
        fit = fit_law(SURFACE, inputs, ends[METRIC], "squares")
        return bootstrap(fit, 400), bootstrap_of_surface(fit, 400)

    runs, by_rule = both(TRUE)
    assert by_rule.method == runs.method == "bootstrap over 90 runs"
    assert all((by_rule.values[name] == each).all() for name, each in runs.values.items())
    runs, by_rule = both(replace(COMMON, shared=0.02))
    assert by_rule.method == (
        "bootstrap over 30 cells, widened by t(25), because of the lack of fit"
    )
    for name in runs.values:
        assert by_rule.standard_error(name) > 1.3 * runs.standard_error(name)


def test_budgets_that_scatter_more_than_their_noise_widen_approach_2():
    def exponent(shared):
        world = replace(TRUE, noise=0.001, shared=shared)
        ends = run_ends(table(ISO, world, seed=1), METRIC, SIZE)
        found = isoflops(ends[SIZE], ends.train_flops, ends[METRIC], cost=six_nd())
        return from_minima(found).a_interval

    calm, disturbed = exponent(0.0), exponent(0.01)
    assert "pooled residuals, t(" in calm.method
    assert "scatter of the budgets" in disturbed.method
    assert disturbed.high - disturbed.low > 4 * (calm.high - calm.low)


def test_a_profile_counts_sizes_where_the_law_misses_their_means():
    ends = run_ends(table(LADDER, replace(COMMON, shared=0.02)), METRIC, SIZE)
    fit = fit_law(FLOOR, ends[SIZE], ends[METRIC], "squares")
    found = interval(fit, "alpha")
    assert found.method == "profile, F(1, 5) of the lack of fit"
    # The same as a fit to the means of the sizes.
    groups = ends.groupby(SIZE)[METRIC].agg(lambda loss: float(np.exp(np.log(loss).mean())))
    means = fit_law(FLOOR, groups.index.to_numpy(), groups.to_numpy(), "squares")
    expected = interval(means, "alpha")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-3)
    # Runs that agree with the law keep all their degrees of freedom.
    ends = run_ends(table(LADDER, seed=1), METRIC, SIZE)
    fit = fit_law(FLOOR, ends[SIZE], ends[METRIC], "squares")
    assert interval(fit, "alpha").method == "profile, F(1, 21)"
    assert covers(fit, "alpha", fit.alpha)


@pytest.mark.slow
def test_a_few_simulations_cover_most_of_the_time():
    """All intervals of a table miss together, so the bounds are wide."""
    found = {each.quantity: each for each in simulated_coverage(ISO, TRUE, 12)}
    assert all(each.simulations + each.failed == 12 for each in found.values())
    assert min(each.covered for each in found.values()) >= 0.5


def test_under_a_richer_law_the_coverage_is_stated():
    assert all(
        each.simulations + each.failed == 1 for each in simulated_coverage(CURVES, RICHER, 1)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "design", designs(), ids=["isoflop", "curves", "grid", "one length", "few"]
)
def test_intervals_cover_under_the_true_law(design):
    """The bound is 95 % less four standard errors of 60 simulations."""
    found = simulated_coverage(design, TRUE, 60, seed=1)
    poor = {each.quantity: each.covered for each in found
            if each.simulations and each.covered < 0.95 - 4 * 0.0281}  # fmt: skip
    assert poor == {}


def test_the_surface_decides_whether_a_law_of_compute_has_an_irreducible_loss():
    """The criteria on the points of the frontier, which are upper bounds, leave it open here."""
    choice = study(check(table(GRID, seed=1).assign(status="done"))).choices[METRIC, "train_flops"]
    assert choice.preferred == "floor"
    assert "the E of the surface is between" in choice.verdict


def test_a_surface_whose_exponent_may_be_0_gives_no_law_of_compute(monkeypatch):
    rows = table(GRID)
    noise = np.random.default_rng(1).normal(0, 0.005, len(rows))
    loss = 1.69 + 406.4 * rows[SIZE] ** -0.34 + 0.5 * rows.tokens_seen**-0.28
    rows[METRIC] = loss * np.exp(noise)
    points = frontier(rows, METRIC, params=SIZE)
    assert surface_path(rows, points) is None
    # Most resampled surfaces have an optimum: without the rule the law would follow from them.
    monkeypatch.setattr("analysis.compute_optimal.frontier_law._is_law", lambda draws: True)
    assert surface_path(rows, points) is not None
