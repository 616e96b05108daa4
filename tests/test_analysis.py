"""Laws: known ones are recovered, intervals cover, bad tables are refused in their own words."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import LAWS, TableError, fit_law, load_results, study
from analysis.figures import draw_all
from analysis.fit import FitError
from analysis.frontier import frontier
from analysis.holdout import leave_largest_out
from analysis.report import Facts, write_report
from analysis.table import check
from analysis.uncertainty import bootstrap, floor_profile

PURE, FLOOR = LAWS["pure"], LAWS["floor"]
SIZES = 1152.0 * np.arange(1, 9) ** 3


def law(x, E, beta, alpha):
    return E + (beta * x) ** -alpha


@settings(max_examples=60, deadline=None)
@given(
    floor=st.sampled_from([0.0, 0.3, 1.5, 4.0]),
    alpha=st.floats(0.03, 0.6),
    log_size=st.floats(-6, 9),
    unit=st.floats(1e-9, 1e9),
)
def test_a_noise_free_law_is_recovered_in_any_units(floor, alpha, log_size, unit):
    x = SIZES / SIZES.mean() * 10**log_size
    beta = 1 / x.mean()
    fit = fit_law(FLOOR, x, unit * law(x, floor, beta, alpha))
    assert fit.alpha == pytest.approx(alpha, rel=1e-4)
    assert fit.E / unit == pytest.approx(floor, rel=1e-4, abs=1e-3)
    if floor == 0:
        assert fit_law(PURE, x, unit * law(x, 0, beta, alpha)).r == pytest.approx(-1)


def test_the_papers_form_is_the_same_law():
    fit = fit_law(FLOOR, SIZES, law(SIZES, 1.5, 2e-4, 0.2))
    assert fit.beta == pytest.approx(2e-4, rel=1e-6)
    assert fit.predict(1e6) == pytest.approx(1.5 + (2e-4 * 1e6) ** -0.2)


def test_the_answer_does_not_move_when_every_point_counts_more():
    y = law(SIZES, 1.5, 2e-4, 0.2) * np.exp(np.random.default_rng(0).normal(0, 0.01, 8))
    one = fit_law(FLOOR, SIZES, y)
    many = fit_law(FLOOR, np.repeat(SIZES, 50), np.repeat(y, 50))
    assert many.alpha == pytest.approx(one.alpha, rel=1e-8)
    assert pytest.approx(one.E, rel=1e-8) == many.E


def test_the_optimum_is_no_worse_than_any_near_it():
    y = law(SIZES, 1.0, 1e-3, 0.3) * np.exp(np.random.default_rng(1).normal(0, 0.02, 8))
    fit = fit_law(FLOOR, SIZES, y)

    def objective(A, alpha, E):
        return np.square(np.log(FLOOR.predict(SIZES, A, alpha, E) / y)).sum()

    best = objective(fit.A, fit.alpha, fit.E)
    assert best == pytest.approx(fit.certificate.objective)
    generator = np.random.default_rng(2)
    for _ in range(300):
        a, b, c = 1 + generator.normal(0, 0.01, 3)
        assert objective(fit.A * a, fit.alpha * b, fit.E * c) >= best
    assert fit.certificate.converged
    assert fit.certificate.agreed > 0.5


def test_data_that_wants_no_floor_says_so():
    fit = fit_law(FLOOR, SIZES, law(SIZES, 0, 1e-3, 0.1) * (SIZES / SIZES[0]) ** -0.01)
    assert fit.certificate.at_bound
    assert fit.E == 0


def test_pearson_r_hardly_tells_a_floor():
    """LAWS.md: for twelve sizes of E + (2N)^-.23, r goes -1 to -.993 as E goes 0 to 4."""
    n = 73_728 * np.linspace(6, 30, 12) ** 3 / 1e9
    for floor, r, alpha in ((0, -1.0, 0.230), (1, -0.998, 0.126), (4, -0.993, 0.055)):
        fit = fit_law(PURE, n, law(n, floor, 2, 0.23))
        assert round(fit.r, 3) == pytest.approx(r, abs=0.0011)
        assert fit.alpha == pytest.approx(alpha, abs=0.004)


def simulated(seed, noise=0.004, n=8):
    x = 1152.0 * np.arange(1, n + 1) ** 3
    return x, law(x, 1.5, 2e-4, 0.2) * np.exp(np.random.default_rng(seed).normal(0, noise, n))


def test_the_profile_interval_of_the_floor_covers():
    """95 % of 200 simulations, give or take three standard errors."""
    hits = 0
    for seed in range(200):
        x, y = simulated(seed)
        fit = fit_law(FLOOR, x, y)
        interval = floor_profile(x, y, fit.E, fit.certificate.objective)
        hits += interval.low <= 1.5 <= interval.high
    assert 0.90 <= hits / 200 <= 0.99


def test_the_bootstrap_is_repeatable_and_brackets_the_fit():
    x, y = simulated(3)
    first = bootstrap(FLOOR, x, y)
    assert first == bootstrap(FLOOR, x, y)
    fit = fit_law(FLOOR, x, y)
    assert first.alpha.low < fit.alpha < first.alpha.high
    assert first.floor.low < fit.E < first.floor.high
    assert bootstrap(FLOOR, x[:4], y[:4]) is None  # every resample would be the whole


def test_the_largest_is_foretold_from_the_smaller():
    x, y = SIZES, law(SIZES, 1.5, 2e-4, 0.2)
    assert leave_largest_out(FLOOR, x, y).relative_error == pytest.approx(0, abs=1e-6)
    assert leave_largest_out(PURE, x, y).relative_error < 0  # a straight line falls too far
    assert leave_largest_out(FLOOR, x[:3], y[:3]) is None


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, np.nan], [1, 2, 3], "NaN"),
        ([1, 2, 3], [1, 0, 3], "positive"),
        ([1, -2, 3], [1, 2, 3], "positive"),
        ([5, 5, 5], [1, 2, 3], "1 different sizes"),
        ([1, 2], [2, 1], "3 parameters; there are 2"),
    ],
)
def test_points_that_carry_no_law_are_refused(x, y, message):
    with pytest.raises(FitError, match=message):
        fit_law(FLOOR, np.array(x, float), np.array(y, float))


# Tables ---------------------------------------------------------------------------------------


def table(**changes) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = []
    for depth in range(1, 7):
        for step in (50, 100):
            n = 1152 * depth**3
            loss = law(n, 1.5, 2e-4, 0.2) * (1.1 if step == 50 else 1) + generator.normal(0, 0.002)
            rows.append({
                "sweep": "s", "trial": f"d{depth}", "family": "var", "depth": depth,
                "width": 8 * depth, "seed": 0, "step": step, "steps": 100, "learning_rate": 0.1,
                "tokens_seen": step * 30, "params_total": 2 * n, "params_blocks": n,
                "train_flops": 6 * n * step * 30, "val_loss": loss, "val_loss_last": loss * 1.1,
                "val_error": 0.3 + loss / 10, "val_error_last": 0.3 + loss / 9, "status": "done",
                "val_loss_stderr": 0.01, "seconds": 9.0, "epochs": 1.0,
            })  # fmt: skip
    return pd.DataFrame(rows).assign(**changes)


def test_rows_are_dropped_only_with_a_reason():
    frame = table()
    frame.loc[0, "val_loss"] = -1.0
    frame.loc[3, "status"] = "diverged"
    frame = pd.concat([frame, frame.iloc[[5]]], ignore_index=True)
    found = check(frame)
    assert found.dropped == (
        "d1 at step 50: val_loss is not a positive number",
        "d2 at step 100: diverged",
        "d3 at step 100: the same trial and step stands again below",
    )
    assert len(found.rows) == len(frame) - 3


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (table().drop(columns=["val_loss", "seed"]), "columns missing: seed, val_loss"),
        (table().iloc[:0], "empty"),
        (table(val_loss=np.nan), "no usable row.*val_loss is not a positive number"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(frame, message):
    with pytest.raises(TableError, match=message):
        check(frame)


def test_a_csv_from_elsewhere_is_read(tmp_path):
    table().to_csv(tmp_path / "t.csv", index=False)
    assert len(load_results(tmp_path / "t.csv").finals) == 6
    with pytest.raises(TableError, match="no results yet"):
        load_results(tmp_path / "none.parquet")


def test_only_ends_of_finished_trials_make_a_law():
    frame = table()
    frame.loc[frame.trial == "d6", "status"] = "running"
    assert check(frame).finals.trial.tolist() == ["d1", "d2", "d3", "d4", "d5"]


def test_the_frontier_holds_no_point_that_another_beats():
    points = pd.DataFrame({"train_flops": [1, 2, 3, 4.0], "val_loss": [5, 6, 4, 4.0]})
    assert frontier(points, "val_loss").train_flops.tolist() == [1, 3]


def test_a_study_finds_every_law_and_names_what_it_could_not(tmp_path):
    found = study(check(table()))
    assert len(found.findings) == 4 * 3 * 2
    assert not found.refused
    assert pytest.approx(1.5, abs=0.2) == found.get("val_loss", "params_blocks", "floor").fit.E
    few = table()
    few = few[few.depth <= 2]
    small = study(check(few))
    assert any("3 parameters; there are 2" in reason for reason in small.refused)


def test_figures_and_report_come_from_the_study_and_escape_what_they_are_given(tmp_path):
    found = study(check(table()))
    figures = draw_all(found, tmp_path)
    assert {"laws_in_parameters", "laws_in_compute", "curves"} <= set(figures)
    for figure in figures.values():
        assert {path.suffix for path in tmp_path.glob(f"{figure.stem}.*")} == {
            ".svg",
            ".png",
            ".pdf",
        }
    facts = Facts(title="<b>t</b>", question="a & b?", settings={"k": "<i>"}, provenance={})
    write_report(tmp_path / "index.html", found, figures, facts)
    page = (tmp_path / "index.html").read_text()
    assert "&lt;b&gt;t&lt;/b&gt;" in page
    assert "<i>" not in page
    fit = found.get("val_loss", "params_blocks", "floor").fit
    assert f"{fit.alpha:.4f}" in page
    assert f"{fit.r:.5f}" in page
    assert "One seed a size" in page


def test_importing_analysis_takes_no_torch():
    code = (
        "import sys, analysis; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "losses", [[4.85, 4.849, 4.8485, 4.848], [4.848, 4.8482, 4.8483, 4.8484], [4.85] * 4]
)
def test_losses_that_hardly_move_make_a_page_not_a_crash(losses, tmp_path):
    frame = table()
    frame = frame[(frame.depth <= 4) & (frame.step == 100)].assign(val_loss=losses)
    found = study(check(frame))
    figures = draw_all(found, tmp_path, kinds=("svg",))
    write_report(tmp_path / "i.html", found, figures, Facts("t", "q", {}, {}))
    laws = [finding.as_dict() for finding in found.findings]
    json.dumps(laws, allow_nan=False)
    if len(set(losses)) == 1:
        assert found.get("val_loss", "params_blocks", "pure").as_dict()["fit"]["r"] is None


def test_a_steep_noisy_law_keeps_its_floor_below_the_data_and_inside_its_interval():
    x = SIZES[:6]
    for seed in range(40):
        noise = np.exp(np.random.default_rng(seed).normal(0, 0.01, 6))
        y = (3 + (x / x[0]) ** -0.6) * noise
        fit = fit_law(FLOOR, x, y)
        interval = floor_profile(x, y, fit.E, fit.certificate.objective)
        assert y.min() > fit.E
        assert np.isfinite(fit.r)
        assert interval.low <= fit.E <= interval.high


def test_r2_is_of_the_reducible_part():
    x, y = simulated(5, noise=0.02)
    fit = fit_law(FLOOR, x, y)
    reducible = np.log(y - fit.E)
    left = reducible - np.log(fit.A) + fit.alpha * np.log(x)
    spread = np.sum((reducible - reducible.mean()) ** 2)
    assert fit.r2 == pytest.approx(1 - left @ left / spread)
