"""The curves of isoFLOPs: parabolas of log L and of L, and Akima splines."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import Akima1DInterpolator
from typer.testing import CliRunner

from analysis.compute_optimal.approach import from_minima
from analysis.compute_optimal.cost import six_nd
from analysis.compute_optimal.isoflop import CURVES, LOG_PARABOLA, PARABOLA, SPLINE, isoflops
from analysis.compute_optimal.parabola import NoInteriorMinimum, TooFewPoints
from analysis.compute_optimal.spline import _minima, knots_of, noise_of
from analysis.fitting.laws import SURFACE
from pipelines.cli.main import app
from pipelines.cli.terminal.laws import _DEFAULT_CURVE, surface_lines
from pipelines.report.fit_options import FitOptions

TRUE = {"A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28, "E": 1.8}
A_TRUE = 0.28 / 0.62
G = (0.34 * 400 / (0.28 * 410)) ** (1 / 0.62)  # N* = G (C / 6)^a


def best(C):
    return G * (C / 6) ** A_TRUE


def runs(budgets=(1e18, 1e19, 1e20, 1e21), width=4.0, points=7, noise=0.0, seed=0):
    """N, C, L of the runs; grids are not centred at the minimum."""
    generator = np.random.default_rng(seed)
    C = np.repeat(budgets, points)
    factors = np.geomspace(1 / width, width, points)
    N = np.concatenate([best(c) * factors * generator.uniform(0.9, 1.1) for c in budgets])
    L = SURFACE.predict((N, six_nd().tokens(N, C)), TRUE)
    return N, C, L * np.exp(generator.normal(0, noise, len(N)))


def test_the_lowest_point_of_many_splines_is_that_of_a_fine_grid():
    u = np.sort(np.random.default_rng(0).uniform(0, 3, 8))
    values = np.random.default_rng(1).normal(size=(8, 50))
    place, height = _minima(u, values)
    fine = np.linspace(u[0], u[-1], 20001)
    curves = Akima1DInterpolator(u, values, axis=0)(fine)
    assert height == pytest.approx(curves.min(0), abs=1e-5)
    assert (height <= curves.min(0) + 1e-12).all()
    assert place == pytest.approx(fine[curves.argmin(0)], abs=2e-4)


@pytest.mark.parametrize("curve", CURVES)
def test_every_curve_finds_the_optimum_of_exact_losses(curve):
    found = isoflops(*runs(width=1.5, points=9), curve=curve)
    assert [each.N for each in found.minima] == pytest.approx(
        [best(each.budget) for each in found.minima], rel=0.01
    )
    assert from_minima(found).a == pytest.approx(A_TRUE, abs=2e-3)


def test_a_wide_grid_biases_parabolas_but_not_the_spline():
    """A parabola is no good curve over ± 16 times; a spline has no shape."""
    given = runs(width=16, points=17)
    errors = {}
    for curve in (LOG_PARABOLA, SPLINE):
        found = isoflops(*given, curve=curve, max_factor=100)
        errors[curve] = [abs(np.log(each.N / best(each.budget))) for each in found.minima]
    assert max(errors[SPLINE]) < 0.02 < min(errors[LOG_PARABOLA])


def test_a_parabola_of_the_loss_is_least_squares_of_the_loss():
    N, C, L = runs(budgets=(1e20,), width=2, noise=0.005)
    (found,) = isoflops(N, C, L, curve=PARABOLA).minima
    c2, c1, c0 = np.polyfit(np.log(N), L, 2)
    assert np.log(found.N) == pytest.approx(-c1 / (2 * c2), rel=1e-9)
    assert pytest.approx(c0 - c1**2 / (4 * c2), rel=1e-9) == found.L
    assert found.residuals == pytest.approx(L - np.polyval([c2, c1, c0], np.log(N)), abs=1e-9)
    assert found.L_interval.low < found.L < found.L_interval.high


def test_the_noise_of_neighbouring_sizes_is_that_of_the_runs():
    N, C, L = runs(budgets=np.geomspace(1e18, 1e21, 30), points=9, noise=0.004)
    groups = [knots_of(c, N[c == C], L[c == C]) for c in np.unique(C)]
    noise = noise_of(groups)
    assert noise.deviation == pytest.approx(0.004, rel=0.15)
    assert 30 * 2 < noise.degrees_of_freedom < 30 * 5
    exact = runs(budgets=np.geomspace(1e18, 1e21, 30), points=9)
    curved = noise_of([knots_of(c, exact[0][c == C], exact[2][c == C]) for c in np.unique(C)])
    assert curved.deviation < 4e-4  # what a cubic leaves over: a tenth of the noise


def test_runs_of_one_size_are_averaged_and_show_the_noise():
    sizes = np.repeat(np.geomspace(1e8, 1e9, 5), 3)
    generator = np.random.default_rng(0)
    level = 1 + 0.1 * (np.log(sizes) - np.log(3e8)) ** 2
    knots = knots_of(1e19, sizes, level * np.exp(generator.normal(0, 0.01, 15)))
    assert knots.counts.tolist() == [3] * 5
    noise = noise_of([knots])
    assert noise.degrees_of_freedom == pytest.approx(11)
    assert 0.005 < noise.deviation < 0.02


def test_a_spline_needs_five_sizes_and_a_minimum_inside():
    few = isoflops(*runs(points=4), curve=SPLINE)
    assert not few.minima
    assert {type(error) for error in few.refused} == {TooFewPoints}
    N, C, L = runs()
    small = best(C) > N  # only sizes below the optimum
    cut = isoflops(N[~small], C[~small], L[~small], curve=SPLINE)
    assert {type(error) for error in cut.refused} <= {TooFewPoints, NoInteriorMinimum}
    edge = isoflops(*runs(width=4, points=15), curve=SPLINE)
    assert len(edge.minima) == 4
    N, C, L = runs(points=15)
    above = best(C) * 1.2 < N
    (error, *_) = isoflops(N[above], C[above], L[above], curve=SPLINE).refused
    assert isinstance(error, NoInteriorMinimum)
    assert "add sizes beyond the smallest" in str(error)


def test_an_unknown_curve_is_refused():
    with pytest.raises(ValueError, match="curve 'line': one of parabola of log L, parabola of L"):
        isoflops(*runs(), curve="line")


@pytest.mark.slow
@pytest.mark.parametrize("curve", CURVES)
def test_the_interval_of_the_exponent_covers_the_true_one(curve):
    """100 simulations: a share of 95 % has a standard error of 2.2 %."""
    inside = 0
    for seed in range(100):
        given = runs(budgets=np.geomspace(1e18, 1e21, 6), noise=0.002, seed=seed)
        span = from_minima(isoflops(*given, curve=curve)).a_interval
        inside += span.low <= A_TRUE <= span.high
    assert 89 <= inside <= 100


# On the command line -----------------------------------------------------------------------------


def test_two_curves_are_refused_and_one_is_recorded():
    with pytest.raises(ValueError, match="--spline with --parabola-in L: a spline needs no"):
        FitOptions(spline=True, parabola_in="L").parsed()
    assert FitOptions().parsed().curve == LOG_PARABOLA == _DEFAULT_CURVE
    assert FitOptions(parabola_in="logL").parsed().curve == LOG_PARABOLA
    assert FitOptions(parabola_in="L").parsed().curve == PARABOLA
    given = FitOptions(spline=True)
    assert given.parsed().curve == SPLINE
    assert given.recorded == {"--spline": True}
    assert FitOptions.of_record(given.recorded) == given
    assert given.settings == {"--spline": "yes"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "curve"), [(("--spline",), SPLINE), (("--parabola-in", "L"), PARABOLA)]
)
def test_a_fit_has_the_curve_of_the_option(tmp_path, words, curve):
    N, C, L = runs(noise=0.002)
    frame = pd.DataFrame(
        {"params_total": N, "tokens_seen": C / 6 / N, "train_flops": C, "val_loss": L}
    )
    frame.to_csv(tmp_path / "runs.csv", index=False)
    call = ["fit", str(tmp_path / "runs.csv"), "--law", "surface", *words, "--json"]
    done = CliRunner().invoke(app, call, catch_exceptions=False)
    laws = json.loads(done.output)
    (line,) = [text for text in surface_lines(laws) if "approach 2" in text]
    assert f"best use of C FLOPs by isoFLOPs, {curve} (approach 2): N* ∝ C^0.4" in line
    allocation = laws["allocation"]
    assert (allocation["isoflops_refused"], allocation["isoflops_unused"]) == ([], 0)
    assert allocation["isoflop_curve"] == curve
    assert len(allocation["isoflops"]) == 4
    (second,) = [row for row in allocation["approaches"] if row["approach"] == 2]
    assert second["by"] == f"isoFLOPs, {curve}"
    assert second["a_low"] < A_TRUE < second["a_high"]
    page = (tmp_path / "runs-laws" / "index.html").read_text()
    assert f"isoFLOPs, {curve}" in page
    assert words[0] in page
