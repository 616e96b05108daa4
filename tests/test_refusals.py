"""Points without a law and invalid claims are refused or flagged, each with its own message."""

import numpy as np
import pytest
from test_laws import SIZES, grid, surface

from analysis.fitting.fit import fit_law
from analysis.fitting.laws import FLOOR, LOGIT, PURE, REPEATED, SURFACE
from analysis.fitting.objectives import Objective
from analysis.fitting.points import FitError
from analysis.fitting.verify import certify

GOOD = 1.5 + 8 * SIZES**-0.25


def put(place, value, array=GOOD):
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("law", "x", "y", "named", "message"),
    [
        (PURE, SIZES, put(3, np.nan), {}, "L is NaN or infinite at point 3"),
        (PURE, SIZES, put([2, 3], np.inf), {}, "L is NaN or infinite at points 2, 3"),
        (PURE, put(0, np.nan, SIZES), GOOD, {}, "x is NaN or infinite at point 0"),
        (PURE, put(1, 0, SIZES), GOOD, {}, "x is 0 at point 1: a power law needs a size to be"),
        (PURE, SIZES, put(4, -0.5), {}, "L is -0.5 at point 4: .* a loss or error to be positive"),
        (PURE, np.full(12, 5.0), GOOD, {}, "at one x = 5: a law needs several"),
        (PURE, SIZES[:2], GOOD[:2], {}, "has 2 parameters and only 2 points.* at least 3"),
        (FLOOR, SIZES[:3], GOOD[:3], {}, "has 3 parameters and only 3 points.* at least 4"),
        (FLOOR, SIZES[[0, 0, 1, 1]], GOOD[:4], {}, "as many different sizes, not 2"),
        (PURE, SIZES, GOOD[:5], {}, r"x has shape \(12,\) and the losses \(5,\)"),
        (PURE, SIZES[:, None], GOOD, {}, r"shape \(12, 1\) .* must be one-dimensional"),
        (PURE, [], [], {}, "there are no points"),
        (PURE, SIZES, ["low"] * 12, {}, "points must be numbers: could not convert"),
        (SURFACE, (SIZES,), GOOD, {}, r"takes \(N, D\), a tuple of 2 arrays; 1 were given"),
        (SURFACE, SIZES, GOOD, {}, r"takes \(N, D\), a tuple of 2 arrays"),
        (REPEATED, (SIZES, SIZES), GOOD, {}, r"takes \(N, D, U\), a tuple of 3 arrays"),
        (SURFACE, (SIZES, 20 * SIZES), GOOD, {}, r"log N and log D are collinear \(r = 1.00000\)"),
        (FLOOR, SIZES, GOOD, {"floor": 2.5}, "the fixed E = 2.5 must be below all"),
        (FLOOR, SIZES, GOOD, {"floor": -1}, "floor = -1: a fixed E must be finite and at least 0"),
        (FLOOR, SIZES, GOOD, {"floor": np.nan}, "floor = nan: a fixed E must be"),
        (PURE, SIZES, GOOD, {"floor": 1}, "has no irreducible loss E to fix"),
        (LOGIT, SIZES, GOOD, {}, r"odds need an error rate below 1 \(is it in per cent\?\)"),
        (PURE, SIZES, GOOD, {"weights": np.zeros(12)}, "weights must be positive numbers"),
        (PURE, SIZES, GOOD, {"weights": [1, 2]}, "weights must be .* one for each point"),
        (PURE, SIZES, GOOD, {"weights": ["a"] * 12}, "points must be numbers: could not convert"),
        (PURE, SIZES, np.ma.masked_greater(GOOD, GOOD[1]), {}, "L is NaN or infinite at point 0"),
        (
            FLOOR, np.geomspace(1e21, 1e24, 10), [9, *(3 + 1e-9 * np.arange(9) % 2)], {},
            "A overflows a float",
        ),
        (
            SURFACE, (np.repeat([1e6, 1e7], 6), np.tile(np.geomspace(1e8, 1e10, 6), 2)), GOOD, {},
            "only two different values of N: its power law cannot",
        ),
        (PURE, SIZES, GOOD, {"weights": put(3, np.nan)}, "weights must be positive numbers"),
        (PURE, SIZES, GOOD, {"objective": "mean"}, "'mean': one of huber, squares, absolute"),
        (
            REPEATED, (*grid(), np.full(36, 1e11)), surface(*grid()), {},
            r"no run repeats its data \(D > U nowhere\).* fit `surface`",
        ),
    ],
)  # fmt: skip
def test_invalid_points_are_refused_with_a_message(law, x, y, named, message):
    with pytest.raises(ValueError, match=message):
        fit_law(law, x, y, **named)


def test_losses_that_rise_are_flagged():
    assert "L rises with x: alpha = -0.1" in fit_law(PURE, SIZES, SIZES**0.1).flags


def test_only_ratios_of_weights_matter():
    one, huge = (fit_law(PURE, SIZES, GOOD, weights=np.full(12, w)) for w in (1.0, 1e308))
    assert one.alpha == huge.alpha


@pytest.mark.parametrize("delta", [0.0, -1.0, np.nan])
def test_the_huber_objective_needs_a_positive_width(delta):
    with pytest.raises(ValueError, match="the width of a loss must be positive"):
        Objective("huber", delta)


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        ({"A": 1.0}, "no value for alpha, E"),
        ({"A": 1.0, "alpha": 0.1, "E": 1.0, "gamma": 2}, "unknown: gamma"),
        ({"A": "x", "alpha": 0.1, "E": 1.0}, "claimed values must be numbers"),
        ({"A": 1.0, "alpha": np.nan, "E": 1.0}, "finite"),
        ({"A": 0.0, "alpha": 0.1, "E": 1.0}, "coefficients and R. must be positive"),
        ({"A": 1.0, "alpha": 0.1, "E": -1.0}, "E = -1: the irreducible loss E cannot be negative"),
    ],
)
def test_an_invalid_claim_is_refused(claimed, message):
    with pytest.raises(FitError, match=message):
        certify(FLOOR, SIZES, GOOD, claimed)


def test_the_truth_of_points_without_noise_is_an_optimum():
    values = {"A": 9.0, "alpha": 0.2, "E": 1.0}
    y = FLOOR.predict(SIZES, values)
    assert certify(FLOOR, SIZES, y, {**values, "alpha": 0.2 + 1e-9}).is_optimum
    assert not certify(FLOOR, SIZES, y, {**values, "alpha": 0.21}).is_optimum


def test_duplicate_points_are_flagged():
    fit = fit_law(PURE, np.append(SIZES, SIZES[0]), np.append(GOOD, GOOD[0]))
    assert "1 points are exact duplicates of others; each counts as a run" in fit.flags
