"""The law in size and data, L(N, D): found in a table, printed first where D varies, or refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.compute_optimal.allocation import approaches
from analysis.compute_optimal.surface import fit_surface, mixed_data
from analysis.plots.style import save
from analysis.plots.surface import size_and_data
from analysis.report.html import Facts, write_report
from analysis.report.latex import law_table
from analysis.selection.options import Options
from analysis.study import study
from analysis.summary import verdicts
from analysis.table.table import check, complete, load_table
from pipelines.cli.main import app
from pipelines.report.publish import law_columns, law_scalars

TRUE = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28}
CHINCHILLA = Path("/work/shared/data/laws/chinchilla_fig4.csv")


def grid(noise=0.003, sizes=5, lengths=5):
    """Runs of every size with every number of tokens."""
    N, D = (
        each.ravel().round()
        for each in np.meshgrid(np.geomspace(1e7, 1e9, sizes), np.geomspace(2e8, 2e10, lengths))
    )
    scatter = np.exp(np.random.default_rng(0).normal(0, noise, N.size))
    L = (TRUE["E"] + TRUE["A"] * N ** -TRUE["alpha"] + TRUE["B"] * D ** -TRUE["beta"]) * scatter
    return pd.DataFrame(
        {"trial": [f"r{k}" for k in range(N.size)], "seed": 0, "params_total": N,
         "tokens_seen": D, "train_flops": 6 * N * D, "val_loss": L}
    )  # fmt: skip


def with_outlier():
    rows = grid()
    rows.loc[7, "val_loss"] *= 1.3
    return rows


@pytest.fixture(scope="module")
def found():
    return study(check(grid()))


def printed(folder, rows, *words):
    rows.to_csv(folder / "runs.csv", index=False)
    done = CliRunner().invoke(
        app, ["fit", str(folder / "runs.csv"), *words], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.output


def test_every_true_parameter_is_in_its_interval(found):
    surface = found.surfaces["val_loss"]
    assert set(surface.intervals) == set(TRUE)
    for name, value in TRUE.items():
        assert surface.intervals[name].low < value < surface.intervals[name].high
    assert surface.flags == ()
    assert surface.held_out is not None
    assert abs(surface.held_out.relative_error) < 0.01


def test_the_surface_of_the_study_is_that_of_approach_3(found):
    third = found.allocation.fit
    assert third.values == pytest.approx(found.surfaces["val_loss"].fit.values, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["huber", "absolute"])
def test_the_objective_reaches_the_surface_and_approach_3(objective):
    squares, robust = (study(check(with_outlier()), name) for name in ("squares", objective))
    for fits in (
        [each.surfaces["val_loss"].fit for each in (squares, robust)],
        [each.allocation.fit for each in (squares, robust)],
    ):
        assert [fit.objective.name for fit in fits] == ["squares", objective]
        assert abs(fits[0]["beta"] - TRUE["beta"]) > 0.05  # moved by the outlier
        assert abs(fits[1]["beta"] - TRUE["beta"]) < 0.03
    frontier = robust.get("val_loss", "train_flops", "floor")
    assert frontier.fit.objective.name == objective


def test_approaches_fit_the_surface_by_the_given_objective():
    rows = with_outlier().rename(columns={"params_total": "params_blocks"})
    for name in ("squares", "huber"):
        given = approaches(rows, "val_loss", objective=name, resamples=30)
        assert given.fit.objective.name == name


def test_the_surface_is_printed_first_and_no_power_law_in_size_is_announced(tmp_path):
    output = printed(tmp_path, grid())
    first, *rest = output.split("pure: L")
    assert "E + A N^-α + B D^-β" in first
    assert all(f"{symbol} [95 %]" in first for symbol in "EAαBβ")
    assert len(rest) == 1
    assert "L_mean(N_total) " not in rest[0]
    assert "25 points, 5 N, 5 D" in output
    assert "no law in N_total alone: runs of one size have different D at 5 of 5 sizes" in output
    assert "a power law in it alone has r = -0.67" in output
    assert "N* ∝ C^0.4" in output
    assert "data do not decide" not in output


def test_laws_json_has_the_surface_and_the_approaches(tmp_path):
    laws = json.loads(printed(tmp_path, grid(), "--json"))
    (surface,) = laws["surfaces"]
    assert surface["label"] == "L_mean(N_total, D)"
    assert surface["intervals"]["beta"]["low"] < 0.28 < surface["intervals"]["beta"]["high"]
    assert surface["fit"]["certificate"]["converged"]
    assert len(surface["N"]) == len(surface["D"]) == len(surface["trials"]) == 25
    assert [row["approach"] for row in laws["allocation"]["approaches"]] == [1, 2, 3]
    scalars = law_scalars(laws)
    assert scalars["law/L_mean_of_N_D/surface/beta"] == surface["fit"]["values"]["beta"]
    assert scalars["law/L_mean_of_N_D/surface/E_low"] < 1.7
    assert not any("_of_N_total/" in name for name in scalars)  # runs of different D
    table = law_columns(laws)
    row = table["law"].index("L_mean(N_total, D)")
    assert table["exponent_of_D"][row] == surface["fit"]["values"]["beta"]
    assert table["exponent_of_D_low"][row] < 0.28 < table["exponent_of_D_high"][row]
    assert len({len(column) for column in table.values()}) == 1


def test_the_page_and_the_latex_table_have_the_surface_first(found, tmp_path):
    write_report(tmp_path / "index.html", found, {}, Facts("t", "q", {}, {}))
    page = (tmp_path / "index.html").read_text()
    assert page.index('id="surfaces"') < page.index('id="laws"')
    assert "runs of different D" in page
    assert verdicts(found)[0].headline.startswith("L_mean(N_total, D): a power law in both N and D")
    tex = law_table(found)
    assert tex == (tmp_path / "laws.tex").read_text()
    assert tex.index(r"$L_{\mathrm{mean}}(N_{\mathrm{total}}, D)$") < tex.index("Form")
    rows = [line for line in tex.split("\\end")[0].splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in rows} == {9}


def test_the_first_screen_shows_the_figure_of_the_surface_and_only_once(found, tmp_path):
    png = save(size_and_data(found), tmp_path, "size_and_data")
    write_report(tmp_path / "index.html", found, {"size_and_data": png}, Facts("t", "q", {}, {}))
    page = (tmp_path / "index.html").read_text()
    assert page.count('id="size_and_data"') == 1
    assert page.index('id="size_and_data"') < page.index('id="surfaces"') < page.index('id="laws"')
    assert "More figures" not in page


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[rows.tokens_seen == 2e8], "5 points at one D"),
        (lambda rows: rows.drop(columns="tokens_seen"), "--complete tokens_seen computes it"),
        (lambda _: grid(sizes=7, lengths=7).iloc[::8], "log N and log D are collinear"),
        (lambda rows: rows[rows.tokens_seen < 1e9], "only two different values of D"),
    ],
)
def test_without_a_surface_one_line_says_why(change, reason, tmp_path):
    output = printed(tmp_path, change(grid()))
    (line,) = [line for line in output.splitlines() if "not fitted: L_mean(N_total, D)" in line]
    assert reason in line


def test_runs_that_differ_in_flops_alone_also_have_no_law_in_size():
    found = study(check(grid().drop(columns="tokens_seen")))
    assert "different C at 5 of 5 sizes" in found.verdict("val_loss", "params_total")


def test_where_the_length_does_not_follow_from_size_the_surface_comes_first(tmp_path):
    rows = grid(sizes=9, lengths=9)
    lengths = sorted(rows.tokens_seen.unique())
    order = [4, 0, 7, 2, 8, 5, 1, 6, 3]
    N = sorted(rows.params_total.unique())
    chosen = [
        rows[(rows.params_total == n) & (rows.tokens_seen == lengths[k])]
        for n, k in zip(N, order, strict=True)
    ]
    rows = pd.concat(chosen)
    found = study(check(rows))
    assert "differs between neighbouring sizes at 8 of 8" in found.mixed_data["val_loss"]
    assert found.surfaces["val_loss"].flags == ()
    output = printed(tmp_path, rows)
    assert output.index("B D^-β") < output.index("pure: L")
    assert "no law in N_total alone" in output


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_a_rule_that_sets_the_length_by_size_mixes_nothing(exponent):
    N = np.repeat(np.geomspace(1e6, 1e9, 9), 2)
    noise = np.repeat(np.exp(np.random.default_rng(0).normal(0, 0.1, 9)), 2)
    runs = pd.DataFrame({"params_total": N, "tokens_seen": 1e9 * (N / 1e6) ** exponent * noise})
    assert mixed_data(runs, "params_total") is None


def test_tokens_that_differ_by_rounding_are_one_length():
    rows = grid(lengths=1)
    again = rows.assign(tokens_seen=rows.tokens_seen * 1.0001)
    assert mixed_data(pd.concat([rows, again]), "params_total") is None
    longer = rows.assign(tokens_seen=rows.tokens_seen * 1.5)
    assert "up to 1.5 times" in mixed_data(pd.concat([rows, longer]), "params_total")


def test_a_parameter_at_its_bound_is_flagged():
    rows = grid(noise=0)
    rows["val_loss"] -= 1.8  # E would be negative
    surface = fit_surface(check(rows).finals, "val_loss", "params_total")
    assert any("E went to zero" in flag for flag in surface.flags)


@pytest.mark.slow
@pytest.mark.skipif(not CHINCHILLA.exists(), reason="the published table is not here")
def test_the_published_table_gives_the_published_refit():
    """Besiroglu et al. 2024: E 1.8172, α .3478, β .3658; A and B by either of two objectives."""
    names = {"Model Size": "params_total", "Training FLOP": "train_flops", "loss": "val_loss"}
    table = complete(load_table(CHINCHILLA, names), "tokens_seen")
    kept = table.rows.sort_values("val_loss").head(240).reset_index(drop=True)
    surface = study(replace(table, rows=kept), "huber").surfaces["val_loss"]
    assert surface.fit["E"] == pytest.approx(1.81722, abs=1e-4)
    assert surface.fit["A"] == pytest.approx(477.83, abs=0.1)
    assert surface.fit["B"] == pytest.approx(2143.42, abs=1)
    for name, value in {
        "E": 1.8172,
        "A": 482.01,
        "B": 2085.43,
        "alpha": 0.3478,
        "beta": 0.3658,
    }.items():
        assert surface.intervals[name].low < value < surface.intervals[name].high
    assert surface.intervals["alpha"].high - surface.intervals["alpha"].low == pytest.approx(
        2 * 1.96 * 0.0154, rel=0.15
    )


@pytest.mark.slow
def test_other_laws_in_n_and_d_are_in_the_latex_table_and_in_mlflow(tmp_path):
    named = ("--law", "tied", "--law", "interaction")
    laws = json.loads(printed(tmp_path, grid(), *named, "--json"))
    scalars, table = law_scalars(laws), law_columns(laws)
    assert [form["fit"]["law"] for form in laws["forms"]] == ["tied", "interaction"]
    for form in laws["forms"]:
        base = f"law/L_mean_of_N_D/{form['fit']['law']}"
        for name, value in form["fit"]["values"].items():
            if not form["no_law"]:
                assert scalars[f"{base}/{name}"] == value
        assert form["fit"]["formula"] in table["form"]
    assert len({len(column) for column in table.values()}) == 1
    tex = law_table(study(check(grid()), options=Options(laws=("tied", "interaction"))))
    body = tex.split("Parameters")[1].split(r"\end")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in rows[1:]} == {5}
    shown = [name for name in (r"\alpha", "E", r"\gamma") if f"${name}$ " in tex]
    assert shown == [r"\alpha", "E", r"\gamma"]
