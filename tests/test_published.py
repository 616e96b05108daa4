"""Published points: the published fits to the last printed digit, and fits that stopped early."""

import importlib.util
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
def test_published_results_are_reproduced_to_the_last_printed_digit(
    points, objective, digits, least
):
    found = fit_law(SURFACE, *points, objective)
    for name, printed in zip(("E", "A", "B", "alpha", "beta"), digits, strict=True):
        digit = 10.0 ** -len(printed.split(".")[1])  # α is .34731050, at a rounding boundary
        assert found[name] == pytest.approx(float(printed), abs=0.502 * digit), name
    assert found.certificate.objective == pytest.approx(
        least, rel=1e-10, abs=5e-8 if least > 1 else 0
    )
    assert found.certificate.agreed == 1
    assert not found.flags


def test_no_single_objective_gives_all_published_numbers(points, fit):
    quoted = {"A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658, "E": 1.8172}
    assert fit["A"] == pytest.approx(477.83, abs=5e-3)
    assert certify(SURFACE, *points, quoted).excess > 1e-6


def published_forms():
    """The module benchmarks/published_forms.py."""
    path = Path(__file__).parents[1] / "benchmarks/published_forms.py"
    spec = importlib.util.spec_from_file_location("published_forms", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_refit_is_reproduced_within_a_tenth_of_its_standard_errors(fit):
    for name, (value, error) in published_forms().PUBLISHED.items():
        assert abs(fit[name] - value) < 0.1 * error, name


def test_the_table_of_forms_in_the_docs_is_that_of_the_command():
    docs = Path(__file__).parents[1] / "docs/laws.md"
    assert published_forms().table_of_forms() in docs.read_text()


def test_standard_errors_over_runs_equal_the_published_ones(resampled):
    known = {"A": 124.5, "B": 1293, "E": 0.0257, "alpha": 0.0154, "beta": 0.0206}
    for name, error in known.items():
        within = 0.1 if name == "B" else 0.05
        assert resampled.standard_error(name) == pytest.approx(error, rel=within), name
    assert (resampled.resamples, resampled.rejected) == (4000, 0)


@pytest.mark.parametrize(("name", "low", "high"), [("alpha", 0.317, 0.373), ("beta", 0.331, 0.415)])
def test_intervals_over_runs_equal_the_published_ones(resampled, name, low, high):
    interval = resampled.interval(name)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.004)


def stopped_at_once(points, start: dict[str, float], count: bool) -> tuple[dict[str, float], int]:
    """Where L-BFGS-B stops with its default tolerances, and after how many iterations.

    The objective is the mean over points, or with `count` their sum; L-BFGS-B reports success.
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
def test_early_stops_of_a_mean_objective_are_detected(points, start, iterations):
    claimed, taken = stopped_at_once(points, start, count=False)
    found = certify(SURFACE, *points, claimed)
    assert taken <= iterations
    assert not found.is_optimum
    assert found.excess == pytest.approx(0.15, abs=0.015)
    assert found.gradient > 1e-3
    assert found.summary.startswith("NOT an optimum: 1")


def test_early_stops_of_a_sum_objective_are_detected(points):
    claimed, _ = stopped_at_once(points, HOFFMANN, count=True)
    found = certify(SURFACE, *points, claimed)
    assert not found.is_optimum
    assert found.excess > 0.1


def test_the_estimate_of_hoffmann_is_not_an_optimum_of_the_published_points(points):
    found = certify(SURFACE, *points, HOFFMANN)
    assert not found.is_optimum
    assert found.excess > 0.15
    assert "NOT an optimum" in found.summary


@pytest.mark.parametrize("objective", ["huber", "squares", "absolute"])
def test_our_optimum_passes_the_check(points, objective):
    law = fit_law(SURFACE, *points, objective)
    found = certify(SURFACE, *points, law.values, objective)
    assert found.is_optimum
    assert abs(found.excess) < 1e-9
    assert found.summary.startswith("an optimum")


def test_leaving_out_the_five_highest_losses_changes_beta(fit):
    table = pd.read_csv(TABLE)
    N = table["Model Size"].to_numpy()
    D = table["Training FLOP"].to_numpy() / (6 * N)
    everything = fit_law(SURFACE, (N, D), table["loss"].to_numpy())
    assert everything.points == 245
    assert everything["beta"] > fit["beta"] + 0.05
