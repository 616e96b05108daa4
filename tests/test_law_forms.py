"""Other forms of laws and objectives: parameters are recovered, derivatives are exact."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from analysis.fitting.fit import fit_law
from analysis.fitting.laws import INTERACTION, RISING, SIGMOID, SURFACE, TIED, VARYING, Law
from analysis.fitting.objectives import HUBER, OBJECTIVES, Objective, objective_of
from analysis.fitting.points import FitError, check_points
from analysis.fitting.solver import _derivatives, _objective
from analysis.fitting.terms import terms_of
from analysis.fitting.verify import certify
from analysis.report.checklist import _objective as objective_line
from analysis.selection.select import aicc, choose
from analysis.uncertainty.bootstrap import bootstrap
from analysis.uncertainty.intervals import interval, prediction_interval

N, D = (
    each.ravel() for each in np.meshgrid(10 ** np.linspace(6, 8.5, 7), 10 ** np.linspace(8, 11, 7))
)
C = 10 ** np.linspace(18, 24, 13)
LOSSES = np.linspace(1.6, 3.8, 23)
CASES = {
    "tied": (TIED, (N, D), {"A": 90.0, "alpha": 0.31, "B": 420.0, "E": 1.7}),
    "interaction": (
        INTERACTION,
        (N, D),
        {"A": 80.0, "alpha": 0.3, "B": 60.0, "beta": 0.33, "E": 1.6, "gamma": 0.09},
    ),
    "varying": (
        VARYING,
        (N, D),
        {"A": 80.0, "alpha": 0.3, "B": 3.5, "beta": 0.1, "E": 1.6, "gamma": 0.25, "delta": 0.012},
    ),
    "rising": (RISING, C, {"k": 0.2, "a": 0.49}),
    "falling": (RISING, C, {"k": 3e7, "a": -0.12}),
    "sigmoid": (SIGMOID, LOSSES, {"L0": 2.7, "k": 3.5, "E": 0.25, "S": 0.85}),
    "sigmoid from 0": (SIGMOID, LOSSES, {"L0": 2.5, "k": 2.5, "E": 0.02, "S": 0.6}),
}
VARIANTS = [
    name + option
    for name in OBJECTIVES
    for option in ("", ":L", ":above=0.3", ":L:above=0.3")
]  # fmt: skip
laws = pytest.mark.parametrize(("law", "x", "values"), CASES.values(), ids=CASES)


def noisy(y, noise, seed=0):
    return y * np.exp(np.random.default_rng(seed).normal(0, noise, len(y)))


@laws
@pytest.mark.parametrize("objective", VARIANTS)
def test_parameters_are_recovered_from_points_on_the_law(law, x, values, objective):
    fit = fit_law(law, x, law.predict(x, values), objective)
    for name, value in values.items():
        assert fit[name] == pytest.approx(value, rel=1e-6), name
    assert fit.certificate.converged
    assert set(fit.flags) <= {f"N falls with C: a = {values.get('a', 0):.3g}"}


@laws
@pytest.mark.parametrize("objective", ["squares", "huber", "squares:L"])
def test_the_intervals_of_noisy_points_contain_the_truth(law, x, values, objective):
    y = noisy(law.predict(x, values), 0.004 if law is not RISING else 0.05, seed=5)
    fit = fit_law(law, x, y, objective)
    for name, value in values.items():
        span = interval(fit, name, 0.99)
        assert span.low <= value <= span.high, name
        assert span.low < fit[name] < span.high, name
    middle = len(y) // 2
    at = tuple(each[middle] for each in x) if isinstance(x, tuple) else x[middle]
    span = prediction_interval(fit, at, new_run=False)
    assert span.low < float(np.squeeze(fit.predict(at))) < span.high


@laws
@pytest.mark.parametrize("objective", ["squares:L", "huber", "huber:L", "huber:L:above=0.3"])
def test_gradient_and_hessian_equal_finite_differences(law, x, values, objective):
    loss = objective_of(objective).at(0.02 if "huber" in objective else math.inf)
    data = check_points(law, x, noisy(law.predict(x, values), 0.03))
    points, weights = data.points, data.weights[None]
    theta = data.theta(values)[None]
    columns = [j for j in range(points.parameters) if j not in points.idle]

    def moved(j: int, step: float) -> np.ndarray:
        there = theta.copy()
        there[:, j] += step
        there[:, points.idle] = there[:, 1:2]
        return there

    def at(there):
        terms = terms_of(points, there, points.z)
        value = float(_objective(terms, points.z, weights, loss)[0])
        return value, _derivatives(points, there, terms, points.z, weights, loss)

    _, (gradient, hessian, _) = at(theta)
    for j in columns:
        (high, above), (low, below) = at(moved(j, 1e-6)), at(moved(j, -1e-6))
        assert gradient[0, j] == pytest.approx((high - low) / 2e-6, rel=1e-5, abs=1e-5)
        if objective.startswith("huber"):  # squares have the Hessian of Gauss and Newton
            slope = (above[0] - below[0])[0, columns] / 2e-6
            size = np.abs(hessian[0]).max()
            assert hessian[0, j, columns] == pytest.approx(slope, rel=1e-4, abs=1e-5 * size)


@laws
def test_published_parameters_of_other_forms_can_be_checked(law, x, values):
    y = noisy(law.predict(x, values), 0.01)
    best = fit_law(law, x, y)
    assert best.data.theta(best.values) == pytest.approx(best.theta, rel=1e-9)
    assert certify(law, x, y, best.values).is_optimum
    last = law.names[-1]
    wrong = {**best.values, last: best[last] * 1.3 + 0.1}
    assert not certify(law, x, y, wrong).is_optimum


@laws
def test_no_form_raises_numeric_warnings(law, x, values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in VARIANTS:
            fit_law(law, x, noisy(law.predict(x, values), 0.01), name)


def test_a_sigmoid_that_starts_at_0_has_a_flag():
    y = SIGMOID.predict(LOSSES, {"L0": 2.5, "k": 2.5, "E": 0.0, "S": 0.6})
    fit = fit_law(SIGMOID, LOSSES, y, "squares")
    assert abs(fit.E) < 1e-6
    assert fit["S"] == pytest.approx(0.6, rel=1e-5)
    assert fit.flags == ("E at its lower bound, no score at infinite loss",)


@laws
def test_other_forms_have_a_bootstrap(law, x, values):
    fit = fit_law(law, x, noisy(law.predict(x, values), 0.004), "squares")
    drawn = bootstrap(fit, 60)
    assert drawn.unconverged == 0
    for name in law.names:
        span = drawn.interval(name, 0.999)
        assert span.low <= fit[name] <= span.high, name


def test_the_tied_law_is_the_law_of_compute_and_tokens_per_parameter():
    """Gadre et al. 2024, arXiv 2403.08540: L = E + (a M^η + b M^-η) C^-η."""
    values = CASES["tied"][2]
    eta, compute, per_parameter = values["alpha"] / 2, 6 * N * D, D / N
    a, b = 6**eta * values["A"], 6**eta * values["B"]
    theirs = values["E"] + (a * per_parameter**eta + b / per_parameter**eta) * compute**-eta
    assert TIED.predict((N, D), values) == pytest.approx(theirs, rel=1e-12)


def test_a_surface_with_equal_exponents_is_the_tied_law_and_without_gamma_the_surface():
    y = noisy(TIED.predict((N, D), CASES["tied"][2]), 0.01)
    tied, free, crossed = (
        fit_law(law, (N, D), y, "squares") for law in (TIED, SURFACE, INTERACTION)
    )
    least = [fit.certificate.objective for fit in (crossed, free, tied)]
    assert least == sorted(least)
    assert (tied.free, free.free, crossed.free) == (4, 5, 6)
    plane = {"A": 30.0, "alpha": 0.25, "B": 200.0, "beta": 0.3, "E": 1.5}
    exact = fit_law(INTERACTION, (N, D), SURFACE.predict((N, D), plane), "squares")
    assert exact["gamma"] == pytest.approx(0, abs=1e-6)
    assert exact["B"] == pytest.approx(200, rel=1e-4)


@pytest.mark.parametrize("a", [-0.7, -0.05, 0.0, 0.05, 0.5, 1.2])
def test_the_data_decide_the_sign_of_a_rising_law(a):
    fit = fit_law(RISING, C, 5 * (C / 1e20) ** a)
    assert fit["a"] == pytest.approx(a, abs=1e-9)
    assert fit.predict(C) == pytest.approx(5 * (C / 1e20) ** a)
    assert fit.paper_beta is None
    assert any("N falls with C" in flag for flag in fit.flags) == (fit["a"] < 0)
    if a:
        assert fit.r == pytest.approx(math.copysign(1, a))


def test_a_rising_law_may_have_an_additive_constant():
    law = Law("rising", "N = E + k C^a", ("C",), (("k", "a"),), floor=True, rising=True)
    y = 3 + 2 * (C / 1e18) ** 0.4
    fit = fit_law(law, C, y)
    assert (fit["a"], fit.E) == pytest.approx((0.4, 3), rel=1e-6)


def test_the_score_at_infinite_loss_may_be_fixed_at_chance_level():
    values = CASES["sigmoid"][2]
    y = noisy(SIGMOID.predict(LOSSES, values), 0.004)
    fit = fit_law(SIGMOID, LOSSES, y, "squares:L", floor=0.25)
    assert (fit.E, fit.free) == (0.25, 3)
    for name in ("L0", "k", "S"):
        span = interval(fit, name, 0.99)
        assert span.low <= values[name] <= span.high
    with pytest.raises(FitError, match="E is not a fitted parameter"):
        interval(fit, "E")
    without = fit_law(SIGMOID, LOSSES, SIGMOID.predict(LOSSES, {**values, "E": 0.0}), floor=0)
    assert without["S"] == pytest.approx(values["S"], rel=1e-6)


def test_the_sigmoid_does_not_depend_on_the_units_of_score_and_loss():
    y = noisy(SIGMOID.predict(LOSSES, CASES["sigmoid"][2]), 0.01)
    one = fit_law(SIGMOID, LOSSES, y, "squares:L")
    other = fit_law(SIGMOID, LOSSES / math.log(2), 100 * y, "squares:L")
    assert other["S"] == pytest.approx(100 * one["S"], rel=1e-6)
    assert other["L0"] == pytest.approx(one["L0"] / math.log(2), rel=1e-6)
    assert other["k"] == pytest.approx(one["k"] * math.log(2), rel=1e-6)


def test_a_score_that_rises_with_the_loss_is_flagged():
    values = {"L0": 2.7, "k": 3.5, "E": 0.8, "S": 0.3}
    fit = fit_law(SIGMOID, LOSSES, SIGMOID.predict(LOSSES, values))
    assert fit.flags == ("the score rises with the loss: E = 0.8, S = 0.3",)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"powers": (("A", "alpha"), ("B", "alpha"))}, "alpha"),
        ({"powers": (("A", "alpha"), ("A", "beta"))}, "A"),
        ({"powers": (("A", "alpha"), ("E", "beta")), "floor": True}, "E"),
        ({"powers": (("A", "alpha"), ("B", "beta")), "cross": "alpha"}, "alpha"),
    ],
)
def test_a_law_with_a_repeated_parameter_name_is_refused(fields, name):
    with pytest.raises(ValueError, match=rf"'twice': the parameter name {name} is repeated"):
        Law("twice", "L = ...", ("N", "D"), **fields)


def test_a_tied_law_with_two_exponents_is_refused():
    with pytest.raises(ValueError, match="the same exponent, not alpha, beta"):
        Law("two", "L = ...", ("N", "D"), (("A", "alpha"), ("B", "beta")), tied=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"powers": (("A", "alpha"),), "cross": "gamma"},
        {"powers": (("A", "alpha"), ("B", "beta")), "cross": "gamma", "repeats": True},
        {"powers": (("A", "alpha"), ("B", "beta")), "bend": "delta"},
        {"powers": (("L0", "k"),), "sigmoid": True},
        {"powers": (("L0", "k"),), "sigmoid": True, "floor": True, "odds": True},
    ],
)
def test_a_law_that_the_solver_cannot_fit_is_refused(fields):
    with pytest.raises(ValueError, match="law 'mixed': a"):
        Law("mixed", "L = ...", ("N", "D", "U"), **fields)


def test_an_exponent_at_its_bound_is_flagged_in_every_form():
    steep = 1.02 ** np.arange(16)
    n, d = (each.ravel() for each in np.meshgrid(steep[:4], steep[:4]))
    step = np.where(np.arange(16) < 1, 9.0, 3.0) * (1 + 1e-4 * np.arange(16) % 3e-4)
    tied = fit_law(TIED, (n, d), step, strict=False)
    assert "alpha at its upper bound" in tied.flags
    assert tied.certificate.bounds.count("alpha at its upper bound") == 1
    y = 1 + n**-0.5 * (1 + n**40.0 * d**-0.5)
    crossed = fit_law(INTERACTION, (n, d), y, strict=False)
    assert "gamma at its upper bound" in crossed.flags
    rising = fit_law(RISING, steep, steep**45.0, strict=False)
    assert "a at its upper bound" in rising.flags
    falling = fit_law(RISING, steep, steep**-45.0, strict=False)
    assert "a at its lower bound" in falling.flags
    jump = np.where(LOSSES < 2.75, 0.8, 0.2)
    sharp = fit_law(SIGMOID, LOSSES, jump, strict=False)
    assert "k at its upper bound" in sharp.flags


def test_the_name_of_an_objective_gives_it_back():
    for name in VARIANTS:
        assert objective_of(name).name == name
        assert objective_of(objective_of(name).name) == objective_of(name)
    assert objective_of("huber:above=1") == HUBER


@pytest.mark.parametrize("name", ["huber:l", "huber:above", "huber:above=2", "huber:above=0", "L"])
def test_another_objective_is_refused_with_what_is_allowed(name):
    allowed = r"one of huber, squares, absolute" if name == "L" else r":above=FACTOR"
    with pytest.raises(ValueError, match=rf"objective '{name}': .*{allowed}"):
        objective_of(name)


def total(objective: Objective, law: Law, x, y, values) -> float:
    """The objective in its own units, implemented again from its definition."""
    predicted = law.predict(x, values)
    r = np.log(predicted / y)
    if objective.of_loss:
        r = (predicted - y) / np.exp(np.log(y).mean())
    each = {
        "squares": r**2,
        "absolute": np.abs(r),
        "huber": np.where(np.abs(r) < 1e-3, r**2 / 2, 1e-3 * np.abs(r) - 5e-7),
    }[objective.kind]
    return float(np.where(y > predicted, objective.above * each, each).sum())


@pytest.mark.parametrize("name", VARIANTS)
@laws
def test_the_optimum_of_every_objective_is_below_all_neighbours(law, x, values, name):
    objective = objective_of(name)
    y = noisy(law.predict(x, values), 0.01)
    fit = fit_law(law, x, y, name)
    best = total(objective, law, x, y, fit.values)
    assert best == pytest.approx(fit.certificate.objective, rel=1e-8)
    assert best <= total(objective, law, x, y, values)
    generator = np.random.default_rng(1)
    for width in 10.0 ** generator.uniform(-6, -0.5, 100):
        near = {key: fit[key] * math.exp(generator.normal(0, width)) for key in law.names}
        assert total(objective, law, x, y, near) >= best * (1 - 1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_objective_depends_on_the_unit_of_the_loss_or_a_factor_of_the_weights(name):
    values = {"A": 30.0, "alpha": 0.25, "B": 200.0, "beta": 0.3, "E": 1.5}
    y = noisy(SURFACE.predict((N, D), values), 0.01)
    one = fit_law(SURFACE, (N, D), y, name)
    other = fit_law(SURFACE, (1e-9 * N, D), 1e4 * y, name, weights=np.full(len(y), 1e-6))
    assert other["alpha"] == pytest.approx(one["alpha"], rel=1e-6)
    assert pytest.approx(1e4 * one.E, rel=1e-6) == other.E
    assert other.as_dict()["residuals_of"] == ("L" if ":L" in name else "log L")


def test_absolute_residuals_with_a_factor_give_a_quantile():
    x = np.repeat(10.0 ** np.linspace(6, 9, 40), 5)
    y = noisy(3 * x**-0.1, 0.05)
    law = Law("pure", "L = A x^-α", ("x",), (("A", "alpha"),))
    for above in (1.0, 0.25, 0.05):
        fit = fit_law(law, x, y, f"absolute:above={above}")
        below = float(np.mean(y < fit.predict(x)))
        assert below == pytest.approx(above / (1 + above), abs=0.015)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_runs_that_are_not_tuned_move_the_law_less_with_a_factor(kind):
    values = {"A": 30.0, "alpha": 0.25, "B": 200.0, "beta": 0.3, "E": 1.5}
    truth = noisy(SURFACE.predict((N, D), values), 0.002)
    generator = np.random.default_rng(3)
    untuned = generator.uniform(size=len(N)) < 0.6
    y = truth * np.where(untuned, 1 + generator.uniform(0, 0.1, len(N)), 1)
    errors = [
        np.abs(np.log(fit_law(SURFACE, (N, D), y, name).predict((N, D)) / truth)).mean()
        for name in (kind, f"{kind}:above=0.1")
    ]
    assert errors[1] < 0.6 * errors[0]


def test_aicc_compares_residuals_of_the_loss_and_of_its_log():
    """Both are likelihoods of the same data; the data choose the noise they were made with."""
    plane = {"A": 3000.0, "alpha": 0.5, "B": 3e5, "beta": 0.6, "E": 0.5}
    clean = SURFACE.predict((N, D), plane)
    rest = np.random.default_rng(0).normal(0, 0.03, len(clean))
    for y, better in ((clean * np.exp(rest), "squares"), (clean + rest, "squares:L")):
        fits = {name: fit_law(SURFACE, (N, D), y, name) for name in ("squares", "squares:L")}
        assert min(fits, key=lambda name: aicc(fits[name])) == better
        logs, plain = fits["squares"], fits["squares:L"]
        r, s = np.log(y / logs.predict((N, D))), y - plain.predict((N, D))
        # The density of L is that of log L, divided by L.
        likelihood_logs = (stats.norm.logpdf(r, 0, r.std()) - np.log(y)).sum()
        likelihood_plain = stats.norm.logpdf(s, 0, np.sqrt(np.mean(s**2))).sum()
        assert aicc(logs) - aicc(plain) == pytest.approx(
            -2 * (likelihood_logs - likelihood_plain), abs=0.05
        )


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_aicc_with_a_factor_is_that_of_a_density(kind):
    y = noisy(TIED.predict((N, D), CASES["tied"][2]), 0.01)
    objective = objective_of(f"{kind}:above=0.3")
    fit = fit_law(TIED, (N, D), y, objective)
    r, plain = fit.misfits, objective_of(kind)
    grid = np.linspace(-1, 1, 400_001)

    def misfit(s: float) -> float:
        density = np.exp(-objective.value(grid) / s)
        return 2 * len(r) * np.log(density.sum() * 5e-6) + 2 * objective.value(r).sum() / s

    mean = float(objective.value(r).mean())
    least = min(misfit(mean * factor) for factor in np.geomspace(0.5, 3, 120))
    # The constants that `aicc` omits: those of the symmetric density with the same mean loss.
    constant = {"squares": 1 + np.log(np.pi), "absolute": 2 + 2 * np.log(2), "huber": 0}[kind]
    if kind == "squares":
        constant = 1 + np.log(2 * np.pi)
    n, k = len(r), fit.free + 1
    correction = 2 * k + 2 * k * (k + 1) / (n - k - 1)
    assert plain.kind == kind
    assert aicc(fit) == pytest.approx(least - n * constant + correction, abs=0.05)


def test_the_checklist_and_the_choice_name_the_residuals_and_the_factor():
    def line(name: str) -> str:
        return objective_line(SimpleNamespace(objective=name))

    assert line("squares") == "sum of squared log residuals, log(measured / predicted)"
    assert line("huber:L") == (
        "sum of Huber losses of residuals of L, (measured - predicted) / geometric mean of L, "
        "δ = 0.001"
    )
    assert line("absolute:above=0.2").endswith("; runs above the law count 0.2 times")
    sizes = 10.0 ** np.linspace(5, 8, 10)
    choice = choose(sizes, noisy(1.5 + 40 * sizes**-0.3, 0.002), "squares:L:above=0.5")
    assert choice.likelihood.startswith("Gaussian L, ")
    assert "above the law times 0.5" in choice.likelihood


def test_a_law_with_a_varying_exponent_keeps_its_predictions_in_other_units():
    values = CASES["varying"][2]
    y = noisy(VARYING.predict((N, D), values), 0.01)
    one = fit_law(VARYING, (N, D), y, "squares")
    other = fit_law(VARYING, (N / 1e6, D / 1e9), y, "squares")
    assert other.predict((N / 1e6, D / 1e9)) == pytest.approx(one.predict((N, D)), rel=1e-7)
    # The exponent of D at N = 1e6, and that of the change, which has no unit.
    assert other["beta"] == pytest.approx(one["beta"] + one["delta"] * math.log(1e6), rel=1e-5)
    assert other["delta"] == pytest.approx(one["delta"], rel=1e-5)
    plane = {"A": 30.0, "alpha": 0.25, "B": 200.0, "beta": 0.3, "E": 1.5}
    exact = fit_law(VARYING, (N, D), SURFACE.predict((N, D), plane), "squares")
    assert (exact["gamma"], exact["delta"]) == pytest.approx((0, 0), abs=1e-6)
