"""Published points: the known answers to the last printed digit, and the traps that hid them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import SURFACE
from analysis.fitting.verify import certify
from analysis.uncertainty.bootstrap import Bootstrap, bootstrap

TABLE = Path(__file__).parents[2] / "shared/data/laws/chinchilla_fig4.csv"
pytestmark = pytest.mark.skipif(not TABLE.exists(), reason="the published points are not here")

# Hoffmann et al. 2022, Eq. 10, as printed.
HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}


@pytest.fixture(scope="module")
def points() -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """((N, D), L) of the 240 runs that remain without the five of highest loss."""
    table = pd.read_csv(TABLE).nsmallest(240, "loss")
    N = table["Model Size"].to_numpy()
    return (N, table["Training FLOP"].to_numpy() / (6 * N)), table["loss"].to_numpy()


@pytest.fixture(scope="module")
def fit(points) -> Fit:
    return fit_law(SURFACE, *points)


@pytest.fixture(scope="module")
def resampled(fit) -> Bootstrap:
    return bootstrap(fit, resamples=4000)


@pytest.mark.parametrize(
    ("objective", "digits", "least"),
    [
        ("huber", ("1.81722", "477.83", "2143.42", ".347311", ".367172"), 1.0182740178e-3),
        ("absolute", ("1.81686", "482.01", "2085.44", ".347813", ".365854"), 1.1294947),
    ],
)
def test_the_known_answers_to_the_last_printed_digit(points, objective, digits, least):
    found = fit_law(SURFACE, *points, objective)
    for name, printed in zip(("E", "A", "B", "alpha", "beta"), digits, strict=True):
        digit = 10.0 ** -len(printed.split(".")[1])  # α itself is .34731050, on the edge of one
        assert found[name] == pytest.approx(float(printed), abs=0.502 * digit), name
    assert found.certificate.objective == pytest.approx(
        least, rel=1e-10, abs=5e-8 if least > 1 else 0
    )
    assert found.certificate.agreed == 1
    assert not found.flags


def test_the_numbers_quoted_everywhere_are_of_no_one_objective(points, fit):
    quoted = {"A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658, "E": 1.8172}
    assert fit["A"] == pytest.approx(477.83, abs=5e-3)
    assert certify(SURFACE, *points, quoted).excess > 1e-6


def test_standard_errors_over_runs_are_the_known_ones(resampled):
    known = {"A": 124.5, "B": 1293, "E": 0.0257, "alpha": 0.0154, "beta": 0.0206}
    for name, error in known.items():
        within = 0.1 if name == "B" else 0.05
        assert resampled.standard_error(name) == pytest.approx(error, rel=within), name
    assert (resampled.resamples, resampled.rejected) == (4000, 0)


@pytest.mark.parametrize(("name", "low", "high"), [("alpha", 0.317, 0.373), ("beta", 0.331, 0.415)])
def test_intervals_over_runs_are_the_known_ones(resampled, name, low, high):
    interval = resampled.interval(name)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.004)


def stopped_at_once(points, start: dict[str, float], count: bool) -> tuple[dict[str, float], int]:
    """Where L-BFGS-B stops with its default tolerances, and after how many iterations.

    The objective is the mean over points, or with `count` their sum; it says itself it converged.
    """
    (N, D), L = points
    log_N, log_D, log_L = np.log(N), np.log(D), np.log(L)

    def huber(theta):
        a, alpha, b, beta, e = theta
        terms = [a - alpha * log_N, b - beta * log_D, np.full_like(log_N, e)]
        r = np.abs(np.logaddexp.reduce(terms) - log_L)
        each = np.where(r < 1e-3, r**2 / 2, 1e-3 * (r - 5e-4))
        return each.sum() if count else each.mean()

    logs = [np.log(start["A"]), start["alpha"], np.log(start["B"]), start["beta"]]
    stopped = minimize(huber, [*logs, np.log(start["E"])], method="L-BFGS-B")
    assert stopped.success
    a, alpha, b, beta, e = stopped.x
    found = {"A": np.exp(a), "alpha": alpha, "B": np.exp(b), "beta": beta, "E": np.exp(e)}
    return found, stopped.nit


@pytest.mark.parametrize(
    ("start", "iterations"),
    [({**HOFFMANN, "alpha": 0.3392, "beta": 0.2849}, 2), (HOFFMANN, 12)],
    ids=["as fitted", "as printed"],
)
def test_a_mean_objective_and_default_tolerances_stop_at_once_and_are_caught(
    points, start, iterations
):
    claimed, taken = stopped_at_once(points, start, count=False)
    checked = certify(SURFACE, *points, claimed)
    assert taken <= iterations
    assert not checked.is_optimum
    assert checked.excess == pytest.approx(0.15, abs=0.015)
    assert checked.gradient > 1e-3
    assert checked.words.startswith("NOT an optimum: 1")


def test_a_sum_objective_with_default_tolerances_is_caught_too(points):
    claimed, _ = stopped_at_once(points, HOFFMANN, count=True)
    checked = certify(SURFACE, *points, claimed)
    assert not checked.is_optimum
    assert checked.excess > 0.1


def test_hoffmanns_point_is_no_optimum_of_the_published_points(points):
    checked = certify(SURFACE, *points, HOFFMANN)
    assert not checked.is_optimum
    assert checked.excess > 0.15
    assert "NOT an optimum" in checked.words


@pytest.mark.parametrize("objective", ["huber", "squares", "absolute"])
def test_our_own_optimum_passes_as_one(points, objective):
    found = fit_law(SURFACE, *points, objective)
    checked = certify(SURFACE, *points, found.values, objective)
    assert checked.is_optimum
    assert abs(checked.excess) < 1e-9
    assert checked.words.startswith("an optimum")


def test_leaving_out_the_five_highest_losses_is_a_choice_that_moves_beta(fit):
    table = pd.read_csv(TABLE)
    N = table["Model Size"].to_numpy()
    D = table["Training FLOP"].to_numpy() / (6 * N)
    everything = fit_law(SURFACE, (N, D), table["loss"].to_numpy())
    assert everything.points == 245
    assert everything["beta"] > fit["beta"] + 0.05
