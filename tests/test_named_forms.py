"""Laws in N and D that `fit --law` names: tied, interaction, repeated."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.compute_optimal.surface import fit_surface
from analysis.fitting.laws import REPEATED
from analysis.selection.options import Options
from analysis.study import study
from analysis.table.table import TableError, check
from pipelines.cli.main import app
from pipelines.report.fit_options import FitOptions

TRUE = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 410.0, "beta": 0.28, "R_star": 8.0}


def runs(**columns):
    """36 runs; those of the largest D repeat their data up to 40 times."""
    N, D = (
        each.ravel() for each in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(2e8, 2e10, 6))
    )
    U = np.minimum(D, 5e8)
    noise = np.exp(np.random.default_rng(1).normal(0, 0.002, len(N)))
    content = {
        "trial": [f"r{k}" for k in range(len(N))], "params_total": N, "tokens_seen": D,
        "train_flops": 6 * N * D, "val_loss": REPEATED.predict((N, D, U), TRUE) * noise, "U": U,
    }  # fmt: skip
    return pd.DataFrame({**content, **columns})


def test_a_law_of_repeated_data_is_fitted_with_the_column_of_different_tokens():
    found = study(check(runs()), options=Options(laws=("surface", "repeated"), unique="U"))
    (form,) = found.forms
    assert form.fit.law.name == "repeated"
    span = form.intervals["R_star"]
    assert span.low < TRUE["R_star"] < span.high
    # The surface does not know that data repeat.
    assert form.aicc < found.surfaces["val_loss"].aicc - 20
    assert not found.findings


def test_laws_without_a_name_are_not_fitted_by_default():
    assert study(check(runs().head(12)), options=Options(laws=("surface",))).forms == ()
    assert "tied" not in Options().laws


def test_fixed_E_and_weights_reach_a_named_form():
    for law in ("tied", "interaction", "varying"):
        fits = [
            fit_surface(runs(w=w), "val_loss", "params_total", floor=1.5, weights="w", law=law)
            for w in (1.0, np.geomspace(1, 100, 36))
        ]
        assert {each.fit.law.name for each in fits} == {law}
        assert all(each.fit.floor == 1.5 and "E" not in each.intervals for each in fits)
        assert fits[0].fit["alpha"] != fits[1].fit["alpha"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"laws": ("repeated",)}, "--law repeated: needs --unique-column"),
        ({"unique": "U", "laws": ("surface",)}, "--unique-column U: only with --law repeated"),
        ({"fixed": ("E=1.5",), "laws": ("pure",)}, r"--fixed E=1\.5: --law pure has no E"),
        ({"laws": ("rising",)}, r"--law rising: N = k C\^a is a law of best sizes"),
        ({"laws": ("sigmoid",)}, "--law sigmoid: is a law of a task's score"),
        ({"laws": ("farseer",)}, "the laws are pure, .*, tied, interaction, varying, repeated"),
    ],
)
def test_a_law_that_a_table_cannot_have_is_refused_with_the_reason(options, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**options).parsed()


def test_a_wrong_column_of_different_tokens_is_refused_before_the_first_fit():
    options = Options(laws=("repeated",), unique="unique")
    with pytest.raises(TableError, match="--unique-column unique: there is no such column"):
        study(check(runs()), options=options)


@pytest.mark.slow
def test_named_forms_are_on_the_page_the_terminal_and_in_the_file(tmp_path):
    runs().to_csv(tmp_path / "runs.csv", index=False)
    words = ["fit", str(tmp_path / "runs.csv"), "--law", "surface", "--law", "interaction"]
    words += ["--predict", "N=1e10,D=2e11"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "B N^γ D^-β" in done.output
    assert "AICc less that of the surface" in done.output
    laws = json.loads((tmp_path / "runs-laws" / "laws.json").read_text())
    (form,) = laws["forms"]
    assert set(form["intervals"]) == {"E", "A", "alpha", "B", "beta", "gamma"}
    assert {each["law"] for each in laws["predictions"]} == {"surface", "interaction"}
    page = (tmp_path / "runs-laws" / "index.html").read_text()
    assert 'id="forms"' in page
    assert "interaction" in page
