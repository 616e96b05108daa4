"""Every field of laws.json is in the table of docs/laws_json.md, and the reverse; all warnings are
on the page, on the terminal and in laws.json.
"""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from test_plausible import SIZES, good
from typer.testing import CliRunner

from analysis.caveats import caveats
from analysis.comparison.var_paper import paper_table
from analysis.compute_optimal.allocation import _agreement
from analysis.export import FORMAT, laws_of, laws_of_all
from analysis.fitting.laws import PURE, Law
from analysis.format import FORMS, span
from analysis.report.compare import difference
from analysis.report.html import Facts, write_report
from analysis.report.latex import law_table
from analysis.selection.holdout import rolling
from analysis.selection.options import Options
from analysis.study import studies, study
from analysis.summary import verdicts
from analysis.table.table import check
from pipelines.cli.main import app
from pipelines.cli.terminal import laws as screen
from pipelines.report.publish import LAWS_FORMAT
from var_scaling.disk import read_json

PAGE = Path(__file__).parent.parent / "docs" / "laws_json.md"
DOCUMENTED = set(re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE))
# Fields of a sweep with damaged stages, artifacts, scored samples or options; `smoke` has none.
RARE = {"damaged.{stage}", "options.{option}", "made.stamp", "families", "families.{quantity}",
        "families_order"}  # fmt: skip
# Records with the fields of another one, which are documented once.
SAME = {
    "groups.{group}": "",
    "surfaces[].fit": "laws[].fit",
    "forms": "surfaces",
    "surfaces[].intervals": "laws[].intervals",
    "surfaces[].held_out": "laws[].held_out",
    "predictions[].interval": "laws[].intervals.{parameter}",
    "allocation.isoflops[].N_interval": "laws[].intervals.{parameter}",
    "allocation.isoflops[].L_interval": "laws[].intervals.{parameter}",
}
FACTS = Facts(title="title", question="question?", settings={}, provenance={})


def fields(value, prefix="") -> set[str]:
    """The paths of all keys; a key that is documented as {name} has that name."""
    if isinstance(value, list | tuple):
        return {path for item in value for path in fields(item, f"{prefix}[]")}
    if not isinstance(value, dict):
        return set()
    start = f"{prefix}." if prefix else ""
    named = [each for each in DOCUMENTED if re.fullmatch(re.escape(start) + r"\{\w+\}", each)]
    paths = set()
    for key, item in value.items():
        path = named[0] if named else start + key
        paths |= {path} | fields(item, SAME.get(path, path))
    return paths


def rich_table():
    """Two seeds, two learning rates, a diverged run."""
    frame = good()
    fast = frame.assign(trial=frame.trial + "-fast", learning_rate=2 * frame.learning_rate)
    frame = pd.concat([frame, fast.assign(val_loss=1.01 * fast.val_loss)])
    frame.loc[frame.trial == "d1-0", "status"] = "diverged"
    return frame


def surface_table():
    """Seven sizes with seven numbers of tokens each, and seven sizes of one budget."""
    grid = np.meshgrid(np.geomspace(1e6, 1e9, 7), np.geomspace(2e9, 1e12, 7))
    N, D = (each.ravel() for each in grid)
    best = (0.34 / 0.28) ** (1 / 0.62) * (1e20 / 6) ** (0.28 / 0.62)
    sizes = best * np.geomspace(1 / 3, 3, 7)
    N, D = np.append(N, sizes), np.append(D, 1e20 / 6 / sizes)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.002, len(N)))
    loss = (1.8 + 400 * N**-0.34 + 400 * D**-0.28) * noise
    return pd.DataFrame(
        {"params_total": N, "tokens_seen": D, "train_flops": 6 * N * D, "val_loss": loss}
    )


@pytest.fixture(scope="module")
def over():
    """The laws of runs that were over-fitted to few images: larger models are worse."""
    frame = good(noise=0.01)
    rise = (frame.params_blocks / SIZES[0]) ** 0.35 * np.where(frame.step == 1000, 0.9, 1.0)
    return study(check(frame.assign(val_loss=frame.val_loss * rise), "over.csv"))


def test_every_field_is_documented_and_every_documented_field_is_written(smoke):
    single = laws_of_all(studies(check(rich_table(), "runs.csv")))
    two = pd.concat([good(), good().assign(tokenizer="u", trial="u" + good().trial)])
    grouped = laws_of_all(studies(check(two, "runs.csv")))
    assert len(grouped["groups"]) == 2
    at = Options(at={"N": 2e9, "D": 1e12})
    of_surface = laws_of_all(studies(check(surface_table(), "runs.csv"), options=at))
    of_sweep = read_json(smoke / "smoke" / "laws.json")
    written = fields(single) | fields(grouped) | fields(of_surface) | fields(of_sweep)
    assert written - DOCUMENTED == set()
    assert DOCUMENTED - written <= RARE
    assert single["format"] == FORMAT == LAWS_FORMAT
    assert f"This is format {FORMAT} " in PAGE.read_text()


def test_no_law_is_announced_for_over_fitted_runs(over, tmp_path):
    write_report(tmp_path / "index.html", over, {}, FACTS)
    page = (tmp_path / "index.html").read_text()
    first = page.index("No law is announced.")
    assert "val_loss rises with size" in page[first : first + 200]
    assert first < page.index("finished run") < page.index("<nav")
    of_loss = [each for each in verdicts(over) if each.metric == "val_loss"]
    assert of_loss
    for verdict in of_loss:
        assert verdict.headline.startswith("No law: val_loss rises with size; over-fitting")
        assert verdict.preferred is None
    assert "A pure power law" not in page
    assert over.choices["val_loss", "params_blocks"].preferred is None
    assert r"$^\dagger$" in law_table(over)


def test_over_fitted_runs_are_not_compared_with_published_exponents(over):
    rows = [row for row in paper_table(over.findings) if row.printed.metric == "val_loss"]
    fitted = [row for row in rows if row.alpha is not None]
    assert fitted
    assert all(row.agrees is None for row in rows)
    assert all(row.why_not.startswith("not comparable: val_loss rises") for row in fitted)


def test_an_interval_without_an_end_agrees_with_nothing():
    found = study(check(good()))
    law = found.get("val_loss", "params_blocks", "pure")
    closed = replace(law.intervals["alpha"], low=0.1, high=0.3)
    (agreeing,) = paper_table([replace(law, intervals={"alpha": closed})])[:1]
    assert agreeing.agrees is True
    opened = replace(closed, high=np.inf)
    (compared,) = paper_table([replace(law, intervals={"alpha": opened})])[:1]
    assert compared.agrees is None
    assert compared.why_not == "not comparable: the interval of our α has no end"
    assert replace(agreeing, low=-np.inf).agrees is None
    assert _agreement(closed, closed) == "overlap"
    assert _agreement(closed, replace(closed, low=0.4, high=0.5)) == "do not overlap"
    assert _agreement(closed, opened) == "cannot be compared, because one has no end"
    held = replace(rolling(PURE, law.x, law.y, "squares")[0], interval=opened)
    assert held.covered is None


def test_a_warning_of_one_report_alone_is_in_their_comparison(over):
    compared = difference(laws_of(over), laws_of(study(check(good(noise=0.01), "good.csv"))))
    alone, _ = compared.lines["warnings"]
    assert any(text.startswith("Over-fitting") for text in alone)


def test_a_flat_loss_is_no_law():
    frame = good(noise=0.01)
    flat = frame[frame.step == 2000].assign(val_loss=3.0, val_error=None)
    generator = np.random.default_rng(1)
    flat["val_loss"] *= np.exp(generator.normal(0, 0.01, len(flat)) - 0.001 * flat.depth)
    found = study(check(flat))
    (law,) = [
        f for f in found.findings if (f.variable, f.fit.law.name) == ("params_blocks", "pure")
    ]
    assert law.intervals["alpha"].low < 0 < law.intervals["alpha"].high
    assert "contains 0" in law.no_law or "rises with size" in law.no_law
    assert caveats(found)[0].metrics == ("val_loss",)


def test_an_exponent_at_its_bound_is_marked_in_every_output(tmp_path):
    """A fall that is steeper than any exponent that the fit allows."""
    x = np.geomspace(1, 1.2, 6)
    frame = pd.DataFrame({"params_total": 1000 * x, "val_loss": 1 + 1e3 * x**-60.0})
    found = study(check(frame, "steep.csv"))
    at_bound = [each for each in found.findings if each.fit.certificate.bounds]
    assert at_bound
    assert all("at its bound" in each.no_law for each in at_bound)
    laws = laws_of_all({"": found})
    assert any(law["exponent_at_bound"] for law in laws["laws"])
    shown = Console(file=io.StringIO(), width=200)
    shown.print(screen.law_tables({**laws, "sweep": "steep"}))
    assert "(at its bound)" in shown.file.getvalue()
    assert r"$^\dagger$" in law_table(found)
    write_report(tmp_path / "index.html", found, {}, FACTS)
    page = (tmp_path / "index.html").read_text()
    assert "no law: its exponent is at its bound" in page[page.index('id="laws"') :]


def test_every_warning_flag_note_and_dropped_row_is_in_every_output(tmp_path):
    path = tmp_path / "runs.csv"
    frame = rich_table().assign(val_loss_stderr="?")
    frame.loc[frame.trial == "d6-1", "val_loss"] *= 1.3
    frame.to_csv(path, index=False)
    done = CliRunner().invoke(app, ["fit", str(path)], catch_exceptions=False)
    assert done.exit_code == 0
    laws = json.loads((tmp_path / "runs-laws" / "laws.json").read_text())
    page = (tmp_path / "runs-laws" / "index.html").read_text()
    flags = [flag for law in laws["laws"] for flag in law["fit"]["flags"]]
    warned = [each["text"] for each in laws["warnings"]]
    assert warned
    assert laws["notes"]
    assert laws["dropped"]
    for text in (*warned, *flags, *laws["notes"], *laws["dropped"]):
        assert text in done.output, text
        assert text.replace("'", "&#39;") in page, text


def test_rows_that_were_dropped_are_not_lost_in_a_table_of_groups():
    two = pd.concat([good(), good().assign(tokenizer="u", trial="u" + good().trial)])
    two.loc[two.trial == "d1-0", "status"] = "diverged"
    grouped = laws_of_all(studies(check(two, "runs.csv")))["groups"]
    for laws in grouped.values():
        assert [row for row in laws["dropped"] if "d1-0" in row] != []


@pytest.mark.parametrize("name", sorted(FORMS))
@pytest.mark.parametrize("value", [1e53, -1e53, 1e-53, -1e-53, 123456789.123, 1e308])
def test_no_format_shows_more_digits_than_can_be_read(name, value):
    text = FORMS[name](value)
    assert len(text) <= 12
    assert len(span((value, value), name)) <= 28
    if abs(value) == 1e53:
        assert "e5" in text


@pytest.mark.parametrize("spec", [".4f", ".3f", ".2e", "+.1%"])
def test_the_terminal_shows_no_long_number(spec):
    for value in (1e53, 1e-53, -1e53):
        assert len(screen.number(value, spec)) <= 10
    assert screen.number(0.0581, ".4f") == "0.0581"


def test_a_law_with_two_parameters_of_one_name_is_refused():
    with pytest.raises(ValueError, match="the parameter name alpha is repeated"):
        Law("twice", "L = A N^-α + B D^-α", ("N", "D"), (("A", "alpha"), ("B", "alpha")))
    with pytest.raises(ValueError, match="the parameter name E is repeated"):
        Law("floor", "L = E + E x^-α", ("x",), (("E", "alpha"),), floor=True)
