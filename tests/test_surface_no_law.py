"""A surface that the data contradict is marked in every output, and is not announced."""

import json

import numpy as np
import pytest
from test_surface_law import grid
from typer.testing import CliRunner

from analysis.caveats import caveats
from analysis.compute_optimal.surface import fit_surface
from analysis.study import study
from analysis.summary import announced_laws, main_result
from analysis.table.table import check
from pipelines.cli.main import app
from pipelines.report.publish import law_columns, law_scalars


def without_effect_of_D(noise=0.01):
    """The loss of each size is the same at every number of tokens, but for noise."""
    rows = grid(sizes=6, lengths=6)
    scatter = np.exp(np.random.default_rng(0).normal(0, noise, len(rows)))
    return rows.assign(val_loss=(1.7 + 400 * rows.params_total**-0.34) * scatter)


def rising_with_D():
    rows = grid()
    return rows.assign(val_loss=rows.val_loss * (rows.tokens_seen / 2e8) ** 0.2)


def test_a_surface_of_the_true_law_may_be_announced():
    surface = study(check(grid())).surfaces["val_loss"]
    assert surface.no_law == ""


@pytest.mark.slow
def test_only_a_surface_without_contradiction_is_in_the_table_of_a_paper():
    for rows, announced in ((grid(), ("surface",)), (rising_with_D(), ())):
        found = study(check(rows))
        assert found.mixed_data
        assert announced_laws(found, "val_loss", "params_total") == announced


@pytest.mark.slow
def test_a_surface_whose_exponent_is_not_determined_is_no_law():
    found = study(check(without_effect_of_D(), "flat.csv"))
    surface = found.surfaces["val_loss"]
    assert "exponent of D" in surface.no_law
    assert "exponent of N" not in surface.no_law
    first = caveats(found)[0]
    assert first.metrics == ("val_loss",)
    assert first.text.startswith("L_mean(N_total, D) is no law: ")
    assert main_result(found).sentence == f"No law is announced. {first.text}"


def test_a_loss_that_rises_with_data_is_no_law():
    surface = fit_surface(check(rising_with_D()).finals, "val_loss", "params_total")
    assert "exponent of D" in surface.no_law


def test_an_exponent_at_its_bound_is_no_law():
    # The loss falls so steeply with D that no exponent within the bounds describes it.
    rows = grid(noise=0.0)
    close = 1e9 * (rows.tokens_seen / 2e8) ** 0.04
    fall = 1e3 * (close / 1e9) ** -60.0
    rows = rows.assign(tokens_seen=close, val_loss=1.7 + 400 * rows.params_total**-0.34 + fall)
    surface = fit_surface(
        check(rows.drop(columns="train_flops")).finals, "val_loss", "params_total"
    )
    assert any(bound.startswith("beta") for bound in surface.fit.certificate.bounds)
    assert "its exponent of D is at its bound" in surface.no_law


def test_what_contradicts_the_metric_contradicts_its_surface():
    rows = grid(sizes=6, lengths=6)
    rise = (rows.params_total / 1e7) ** 0.3
    found = study(check(rows.assign(val_loss=rows.val_loss * rise), "over.csv"))
    assert found.contradictions("val_loss")
    surface = found.surfaces["val_loss"]
    assert surface.no_law.startswith(found.contradictions("val_loss")[0])


@pytest.mark.slow
def test_the_reason_is_in_every_output(tmp_path):
    path = tmp_path / "flat.csv"
    without_effect_of_D().to_csv(path, index=False)
    done = CliRunner().invoke(app, ["fit", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "flat-laws"
    laws = json.loads((folder / "laws.json").read_text())
    (surface,) = laws["surfaces"]
    reason = surface["no_law"]
    assert "exponent of D" in reason
    assert laws["main"]["sentence"].startswith("No law is announced")
    text = " ".join(done.output.split())
    assert "NO LAW" in text
    assert f"L_mean(N_total, D), no law: {reason}" in text
    assert "best use of C FLOPs by the surface" not in text
    page = (folder / "index.html").read_text()
    assert f"no law: {reason}" in page[page.index('id="surfaces"') :]
    assert "The best use of C FLOPs by this surface" not in page
    tex = (folder / "laws.tex").read_text()
    assert f"% dagger, no law: L_mean(N_total, D): {reason}." in tex
    assert r"D)$$^\dagger$" in tex
    assert not [name for name in law_scalars(laws) if "surface" in name]
    columns = law_columns(laws)
    assert columns["no_law"][columns["law"].index("L_mean(N_total, D)")] == reason
    announced = json.loads((folder / "laws.json").read_text())
    announced["surfaces"][0]["no_law"] = None
    assert [name for name in law_scalars(announced) if "surface" in name]


@pytest.mark.slow
def test_a_law_in_N_alone_of_runs_of_different_D_contradicts_no_surface():
    """Long runs of small models: L(N) rises, but the surface explains it."""
    rows = grid(sizes=6, lengths=6)
    small = rows.params_total < 1e8
    kept = rows[np.where(small, rows.tokens_seen > 3e9, rows.tokens_seen < 3e9)]
    found = study(check(kept, "mixed.csv"))
    alone = found.get("val_loss", "params_total", "pure")
    if found.contradictions("val_loss"):
        pytest.skip("the table itself contradicts a law")
    assert alone.own_contradictions
    assert found.surfaces["val_loss"].no_law == ""
    assert main_result(found).sentence.startswith("L_mean(N_total, D): a power law in both N and D")


@pytest.fixture(autouse=True)
def _no_color(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
