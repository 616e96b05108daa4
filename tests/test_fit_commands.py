"""The commands that fit a sweep, a table or an experiment, and compare two fits."""

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.cli.main import app


def says(*words: str) -> str:
    """What the command prints. Raises what the command raises."""
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def table(folder, **columns) -> str:
    """Twelve runs of a law with irreducible loss, with third-party column names."""
    sizes = np.geomspace(1e6, 1e9, 12)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.002, 12))
    losses = (1.8 + 90 * sizes**-0.3) * noise
    columns = {"Model Size": sizes, "Training FLOP": 120 * sizes**2, "loss": losses, **columns}
    lines = [
        ",".join(columns),
        *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True)),
    ]
    (folder / "runs.csv").write_text("\n".join(lines))
    return str(folder / "runs.csv")


THEIRS = ("--column", "Model Size=params_total", "--column", "loss=val_loss")


def test_a_third_party_table_gives_laws_figures_and_a_report(tmp_path):
    path = table(tmp_path)
    laws = json.loads(says("fit", path, *THEIRS, "--json"))
    (floor,) = [law for law in laws["laws"] if law["fit"]["law"] == "floor"]
    assert floor["intervals"]["E"]["low"] < 1.8 < floor["intervals"]["E"]["high"]
    assert floor["trials"][:2] == ["row-1", "row-2"]
    folder = tmp_path / "runs-laws"
    assert "row-12" in (folder / "index.html").read_text()
    names = {file.name for file in folder.iterdir()}
    assert {"laws_in_parameters.png", "laws.tex", "laws.json"} <= names
    assert not [name for name in names if name.endswith((".pdf", ".svg"))]


def test_vector_figures_are_written_on_request_and_the_page_needs_no_file(tmp_path):
    says("fit", table(tmp_path), *THEIRS, "--formats", "pdf, svg")
    folder = tmp_path / "runs-laws"
    pngs = {file.stem for file in folder.glob("*.png")}
    assert pngs == {file.stem for file in folder.glob("*.pdf")} != set()
    assert pngs == {file.stem for file in folder.glob("*.svg")}
    page = (folder / "index.html").read_text()
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert sum(link.startswith("data:image/png;base64,") for link in links) == len(pngs)
    assert [link for link in links if not link.startswith(("#", "data:"))] == []


def test_an_unknown_objective_is_refused_before_anything_is_fitted(tmp_path, command):
    code, _, err = command("fit", table(tmp_path), *THEIRS, "--objective", "mean")
    assert code == 2
    words = " ".join(err.replace("│", " ").split())
    assert "'--objective': 'mean': one of huber, squares, absolute" in words
    assert "allowed are NAME, NAME:L, NAME:above=F and NAME:L:above=F" in words
    assert not (tmp_path / "runs-laws").exists()


def test_an_objective_of_the_command_line_has_its_options(tmp_path):
    words = ("--law", "pure", "--objective", "squares:L:above=0.50", "--json")
    laws = json.loads(says("fit", table(tmp_path), *THEIRS, *words))
    assert laws["objective"] == "squares:L:above=0.5"
    (law,) = laws["laws"]
    assert (law["fit"]["residuals_of"], law["fit"]["factor_above"]) == ("L", 0.5)


@pytest.mark.parametrize("wrong", ["huber:above=2", "huber:L:M", "squares:above=x"])
def test_a_wrong_option_of_an_objective_is_refused_by_every_command(wrong, command):
    for words in (("fit", "runs.csv"), ("coverage",), ("report", "smoke")):
        code, _, err = command(*words, "--objective", wrong)
        assert code == 2
        assert f"'--objective': '{wrong}'" in " ".join(err.replace("│", " ").split())


def test_coverage_takes_an_objective_with_options():
    words = ("--points", "6", "--simulations", "10", "--objective", "squares:L", "--json")
    rows = json.loads(says("coverage", *words))
    assert {row["points"] for row in rows} == {6}
    assert all(0 <= row["covered"] <= 1 for row in rows)


@pytest.mark.slow
def test_a_report_keeps_the_options_of_the_latest_fit(smoke):
    home = ("--home", str(smoke))
    says("fit", "smoke", "--objective", "huber:L", "--law", "pure", "--where", "depth > 0", *home)
    path = smoke / "smoke" / "laws.json"
    fitted = json.loads(path.read_text())
    says("report", "smoke", *home)
    again = json.loads(path.read_text())
    assert again["objective"] == "huber:L"
    assert again["options"] == fitted["options"] == {"--where": "depth > 0", "--law": ["pure"]}
    says("report", "smoke", "--objective", "absolute", *home)
    assert json.loads(path.read_text())["objective"] == "absolute"


def test_the_title_has_the_number_of_runs_and_of_sizes(tmp_path):
    assert "12 runs of 12 sizes" in says("fit", table(tmp_path), *THEIRS)


def test_an_unknown_format_is_refused_before_anything_is_fitted(tmp_path):
    with pytest.raises(ValueError, match="--formats eps: each format is one of png, pdf, svg"):
        says("fit", table(tmp_path), *THEIRS, "--formats", "pdf,eps")
    assert not (tmp_path / "runs-laws").exists()


@pytest.mark.thorough
def test_tokens_are_derived_by_a_convention_only_if_requested(tmp_path):
    path = table(tmp_path)
    names = (*THEIRS, "--column", "Training FLOP=train_flops", "--complete", "tokens_seen")
    laws = json.loads(says("fit", path, *names, "--json", "--out", str(tmp_path / "here")))
    assert any("C = 6 N D" in note for note in laws["notes"])
    assert (tmp_path / "here" / "index.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--column", "loss"), "THEIRS=OURS"),
        (("--column", "Loss=val_loss"), "Loss"),
        ((), "score"),
    ],
)
def test_a_table_that_does_not_fit_the_options_is_refused_with_a_message(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        says("fit", table(tmp_path), *words)


@pytest.mark.slow
def test_a_sweep_is_fitted_with_the_options_of_a_table(smoke):
    words = ("--home", str(smoke), "--json")
    laws = json.loads(says("fit", "smoke", "--law", "pure", "--where", "depth > 0", *words))
    assert {law["fit"]["law"] for law in laws["laws"]} <= {"pure"}
    assert laws["options"] == {"--where": "depth > 0", "--law": ["pure"]}
    with pytest.raises(ValueError, match=r"--where .dept > 0.: there is no column dept"):
        says("fit", "smoke", "--where", "dept > 0", *words)
    assert json.loads(says("fit", "smoke", *words))["options"] == {}


@pytest.mark.slow
def test_a_report_compared_with_itself_has_no_differences(smoke):
    message = json.loads(
        says("report", "smoke", "--against", "smoke", "--home", str(smoke), "--json")
    )
    assert message["runs_a"] == message["runs_b"] == message["changed"] == []
    assert {
        both["difference"] for law in message["laws"] for both in law["parameters"].values()
    } == {0.0}
    assert (smoke / "smoke" / "report" / "against-smoke.html").exists()


def test_a_comparison_with_missing_or_old_laws_is_refused(smoke, tmp_path):
    with pytest.raises(ValueError, match=r"quickstart: 6 trials of 6 not finished \(d1, .*run"):
        says("report", "smoke", "--against", "quickstart", "--home", str(smoke))
    with pytest.raises(ValueError, match="quickstart: 6 trials of 6 not finished"):
        says("report", "quickstart", "--against", "smoke", "--home", str(smoke))
    missing = str(tmp_path / "none" / "laws.json")
    with pytest.raises(ValueError, match="the file does not exist"):
        says("report", "smoke", "--against", missing, "--home", str(smoke))
    (tmp_path / "laws.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="written by an older version"):
        says("report", "smoke", "--against", str(tmp_path / "laws.json"), "--home", str(smoke))


def test_the_coverage_command_prints_the_coverage():
    rows = json.loads(says("coverage", "--points", "6", "--simulations", "40", "--json"))
    assert {row["quantity"] for row in rows} == {"A", "alpha", "E", "L(target)", "new run"}
    assert all(row["covered"] > 0.8 for row in rows)
    assert "new run" in says("coverage", "--points", "6", "--simulations", "40")
