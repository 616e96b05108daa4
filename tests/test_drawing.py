"""Figures of a law: band, axes, and colours that differ for colour-blind readers and in print."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from scipy import stats
from test_figures import SIZES, isoflop_rows

from analysis.fitting.fit import fit_law
from analysis.fitting.laws import FLOOR, PURE, SURFACE
from analysis.plots.all_figures import (
    law_band,
    law_figure,
)
from analysis.plots.allocation import APPROACH_STYLES
from analysis.plots.axes import round_numbers, signed, symbol, tick
from analysis.plots.law_panel import LAW_STYLES, fit_label
from analysis.plots.style import (
    CATEGORICAL_COLOURS,
    SINGLE,
    categorical_styles,
    new_figure,
    sequential_styles,
    size_legend,
    size_styles,
)
from analysis.uncertainty.intervals import Interval, prediction_interval

# Viénot, Brettel and Mollon 1999 in linear RGB, as in Machado et al. 2009, Table 1, severity 1.
DEUTERANOPIA = np.array([
    [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
])  # fmt: skip


XYZ = np.array([
    [0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]
])  # fmt: skip


def seen(colour):
    """CIELAB of a colour as seen with deuteranopia (no M cones)."""
    encoded = np.array(to_rgb(colour))
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(XYZ @ np.clip(DEUTERANOPIA @ linear, 1e-3, 1) / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(
    ("looks", "apart"),
    [
        (LAW_STYLES, 30), (APPROACH_STYLES, 30),
        (categorical_styles(range(len(CATEGORICAL_COLOURS))), 30),
        (sequential_styles(range(6)), 12), (sequential_styles(range(10)), 6),
    ],
)  # fmt: skip
def test_adjacent_colours_differ_for_deuteranopia_and_in_gray(looks, apart):
    """A CIELAB difference of 2.3 is just noticeable; for adjacent printed colours it is 6."""
    pairs = list(zip(looks.values(), list(looks.values())[1:], strict=False))
    for one, other in pairs:
        assert np.linalg.norm(seen(one.colour) - seen(other.colour)) > apart
        assert one.marker != other.marker
        assert one.line != other.line


def test_larger_sizes_are_brighter_in_gray_too():
    lightness = [seen(look.colour)[0] for look in sequential_styles(range(10)).values()]
    assert (np.diff(lightness) > 1).all()


def test_the_band_of_a_pure_law_equals_the_textbook_formula():
    """Confidence of the mean of a straight line: t s √(1/n + (x - x̄)² / Sxx), in logs."""
    generator = np.random.default_rng(1)
    loss = (1e-3 * SIZES) ** -0.2 * np.exp(generator.normal(0, 0.01, 6))
    fit = fit_law(PURE, SIZES, loss, "squares")
    at = np.geomspace(1e4, 1e9, 7)
    low, high = law_band(fit, at)
    u, v = np.log(SIZES), np.log(at)
    s = np.sqrt(np.sum(fit.residuals**2) / 4)
    spread = np.sqrt(1 / 6 + (v - u.mean()) ** 2 / np.sum((u - u.mean()) ** 2))
    assert np.log(high / low) / 2 == pytest.approx(stats.t.ppf(0.975, 4) * s * spread, rel=1e-6)
    assert np.sqrt(low * high) == pytest.approx(fit.predict(at))


def test_the_band_of_a_law_with_irreducible_loss_is_near_the_exact_one_at_the_data():
    loss = (2 + (2e-7 * SIZES) ** -0.3) * np.exp(np.random.default_rng(2).normal(0, 1e-3, 6))
    fit = fit_law(FLOOR, SIZES, loss, "squares")
    for x in (SIZES[0], SIZES[-1]):
        exact = prediction_interval(fit, x, new_run=False)
        low, high = law_band(fit, x)
        assert high[0] - low[0] == pytest.approx(exact.high - exact.low, rel=0.1)


def test_a_fixed_irreducible_loss_makes_the_band_narrower():
    loss = (2 + (2e-7 * SIZES) ** -0.3) * np.exp(np.random.default_rng(3).normal(0, 1e-3, 6))
    free, fixed = (fit_law(FLOOR, SIZES, loss, "squares", floor=E) for E in (None, 2.0))
    beyond = SIZES[-1] * 10
    assert np.ptp(law_band(fixed, beyond)) < np.ptp(law_band(free, beyond))


@settings(max_examples=200, deadline=None)
@given(st.floats(-12, 24), st.floats(0.005, 12))
def test_an_axis_has_a_few_round_ticks_with_different_labels(start, decades):
    low, high = 10**start, 10 ** (start + decades)
    places = round_numbers(low, high)
    assert 2 <= len(places) <= 5
    assert ((places >= low * (1 - 1e-6)) & (places <= high * (1 + 1e-6))).all()
    powers = bool(places[-1] >= 1e4 or places[0] < 1e-3)
    assert len({tick(value, powers) for value in places}) == len(places)


def test_numbers_and_symbols_are_typeset_as_in_papers():
    assert tick(0.25) == "0.25"
    assert tick(1e6, powers=True) == "10⁶"
    assert tick(2e-5, powers=True) == "2·10⁻⁵"
    assert symbol("Err_last") == r"$\mathrm{Err}_{\mathrm{last}}$"
    fit = fit_law(PURE, SIZES, SIZES**0.1)
    assert fit_label(fit) == "α = −0.100"


def test_a_law_of_two_variables_draws_no_line_on_one_axis():
    runs = isoflop_rows()
    fit = fit_law(SURFACE, (runs.params_blocks, runs.tokens_seen), runs.val_loss)
    with pytest.raises(ValueError, match="2 variables"):
        law_figure(fit)


def test_extrapolation_is_drawn_lighter_and_dotted():
    panel = law_figure(fit_law(PURE, SIZES, SIZES**-0.1)).axes[0]
    lines = [line for line in panel.lines if len(line.get_xdata()) > 10]
    within = [line for line in lines if line.get_alpha() is None]
    beyond = [line for line in lines if line.get_alpha() is not None]
    assert len(within) == 1
    assert len(beyond) == 2
    assert SIZES[0] == pytest.approx(min(within[0].get_xdata()))
    assert SIZES[-1] == pytest.approx(max(within[0].get_xdata()))
    assert max(beyond[-1].get_xdata()) > 1.2 * SIZES[-1]


def test_figures_with_many_seeds_sizes_or_one_metric_are_legible():
    """Thirty seeds share markers; with many sizes a colour bar replaces the legend."""
    generator = np.random.default_rng(5)
    x = np.repeat(SIZES, 30)
    loss = (2 + (2e-7 * x) ** -0.3) * np.exp(generator.normal(0, 0.01, len(x)))
    drawn = law_figure(fit_law(PURE, x, loss), seeds=list(range(30)) * 6)
    assert drawn.legends[0].get_texts()[0].get_text() == "30 seeds, dark to bright"
    panel = drawn.axes[0]
    points = [line for line in panel.lines if line.get_linestyle() == "None"]
    assert len(points) == 30
    figure, _ = new_figure(SINGLE, 2.5)
    looks = size_styles([*np.geomspace(1e6, 1e7, 20), 3e7, 1e9])
    size_legend(figure, looks, "$N$")
    FigureCanvasAgg(figure).draw()
    assert not figure.legends
    assert len(figure.axes) == 2
    bar = figure.axes[1].collections[-1]
    assert to_hex(bar.cmap(bar.norm(3e7))) == looks[3e7].colour


def test_an_exponent_of_many_digits_is_shown_with_three():
    assert signed(-0.25, ".3f") == "−0.250"
    assert signed(3.3e52, ".3f") == "3.3e+52"
    fit = fit_law(FLOOR, SIZES, 2 + (2e-7 * SIZES) ** -0.3)
    wild = Interval(-1e53, 1e53, 0.95, "made up", "nothing")
    assert "[−1e+53, 1e+53]" in fit_label(fit, wild)
