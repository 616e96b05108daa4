"""Every number and figure of a result in README and docs comes from a committed table."""

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))

import comparison_values  # noqa: E402
import published_laws  # noqa: E402
import quickstart_values  # noqa: E402
import result_figures  # noqa: E402
import result_values  # noqa: E402
import results  # noqa: E402

PAGES = dict(results.pages())
needs_points = pytest.mark.skipif(
    not published_laws.POINTS.exists(), reason="the published points are not here"
)


@pytest.fixture(scope="module")
def tables() -> list[results.Table]:
    return [*results.recorded_tables(), *result_values.computed_tables()]


@pytest.mark.parametrize("page", PAGES)
def test_the_page_has_the_numbers_of_the_tables(page, tables):
    text, missing = results.renewed(page, PAGES[page], result_values.values(), tables)
    assert missing == []
    assert PAGES[page].splitlines() == text.splitlines(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES)
def test_every_number_that_looks_like_a_result_is_in_a_list(page, tables):
    assert results.unlisted_numbers(page, PAGES[page], tables) == []


def test_quotes_and_tables_name_pages_that_exist(tables):
    lists = results._toml("not_results.toml").keys() - {"every page"}
    named = {quote.page for quote in results.quotes()} | {table.page for table in tables} | lists
    assert named <= PAGES.keys()


def test_recorded_numbers_say_where_they_were_measured():
    for quote in results.quotes():
        assert quote.names, quote.text
        quote.numbers(result_values.values())  # raises where a recorded number has no source
    assert all("transcribed from" in table.source for table in results.recorded_tables())


@pytest.mark.parametrize("comparison", comparison_values.COMPARISONS, ids=lambda one: one.sweep)
def test_the_rows_of_a_comparison_are_those_of_its_sweep(comparison):
    sweep = importlib.import_module(f"sweeps.{comparison.sweep}").sweep
    rows = comparison.rows.drop_duplicates("trial")
    steps = {trial.name: trial.steps for trial in sweep.trials}
    assert dict(zip(rows.trial, rows.steps, strict=True)) == steps
    assert set(rows.tokenizer) == {trial.tokenizer.name for trial in sweep.trials}
    assert set(comparison.rows.set) == {scoring.name for scoring in sweep.scorings}


def test_the_recorded_law_of_900_tokenizer_steps_is_that_of_the_quickstart():
    row = result_values.recorded("tokenizer_quality")["900"]
    fit = quickstart_values.laws_of("quickstart", "params_blocks")[0].fit
    assert row["α of L_mean(N)"] == quickstart_values.alpha_text(fit)
    assert row["r"] == published_laws.short(fit.r, 4)
    assert row["PSNR, dB"] == result_values.values()["quickstart.psnr"]


def test_a_changed_number_of_a_page_is_found(tables):
    """Of each quote and table in turn, one digit on the page is changed."""
    values = result_values.values()
    for page, text in PAGES.items():
        pieces = [q.pattern for q in results.quotes() if q.page == page]
        pieces += [table.pattern for table in tables if table.page == page]
        for piece in pieces:
            found = piece.search(text)
            last = [m.start() for m in re.finditer(r"\d", found[0])][-1] + found.start()
            if found.re.groups:
                last = found.end(found.re.groups) - 1
            digit = "1" if text[last] == "½" else str((int(text[last]) + 1) % 10)
            changed = text[:last] + digit + text[last + 1 :]
            assert results.renewed(page, changed, values, tables)[0] != changed, found[0]


def test_a_changed_value_of_a_table_is_found(tables):
    names = [name for quote in results.quotes() for name in quote.names]
    values = result_values.values()
    for name in values.keys() & set(names):
        number = values[name]
        other = values | {name: number[:-1] + str((int(number[-1]) + 1) % 10)}
        for page in {quote.page for quote in results.quotes() if name in quote.names}:
            assert results.renewed(page, PAGES[page], other, tables)[0] != PAGES[page], name


def test_a_new_number_is_found(tables):
    for sentence in (
        "\nThe exponent is α = .123 [.100, .150].\n",
        "\nIts r is −.9876.\n",
        "\nSampling takes 73 ms.\n",
        "\nIt is 17 × as fast, and 13 % smaller.\n",
        "\n| size | loss |\n|---|---|\n| d1 | 2.71 |\n",
    ):
        found = results.unlisted_numbers("README.md", PAGES["README.md"] + sentence, tables)
        assert found, sentence


def test_the_page_of_published_laws_is_that_of_the_command():
    page = (ROOT / "docs/published_laws.md").read_text()
    assert page == published_laws.page(), "run `make docs`"


def test_the_page_of_coverage_is_that_of_its_table():
    spec = importlib.util.spec_from_file_location("simulate", ROOT / "benchmarks/coverage.py")
    simulate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(simulate)
    page = (ROOT / "docs/coverage.md").read_text()
    assert page == simulate.page(), "run `python benchmarks/coverage.py --page`"


def test_printed_intervals_cover_92_to_97_percent_under_the_true_law():
    """Up to two standard errors of the simulations more. Not of laws without E, which are not the
    true law.
    """
    known = json.loads((ROOT / "docs/tables/coverage.json").read_text())
    true, forms = known["worlds"]["true law"], known["forms"]
    cells = [
        (name, cell["covered"], forms["of_huber" if "Huber" in name else "simulations"])
        for column in forms["designs"].values()
        for name, cell in column.items()
    ] + [
        (name, cell["covered"], true["simulations"])
        for column in true["designs"].values()
        for name, cell in column.items()
        if "without E" not in name and cell["covered"] is not None
    ]
    assert len(cells) > 100
    for name, covered, simulations in cells:
        error = (0.95 * 0.05 / simulations) ** 0.5
        assert 0.92 <= covered <= 0.97 + 2 * error, name


def test_figures_are_those_of_their_tables_or_records():
    assert result_figures.stale() == []


def test_every_figure_is_in_one_list_and_on_a_page():
    names = sorted(path.name for path in (ROOT / "docs").glob("*.png"))
    drawn = {f"{name}.png" for name in result_figures.DRAWN}
    assert sorted([*drawn, *result_figures.recorded_figures()]) == names
    shown = {Path(target).name for text in PAGES.values() for target in images_of(text)}
    assert set(names) == shown


def images_of(text: str) -> list[str]:
    return re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)


@needs_points
@pytest.mark.slow
def test_the_committed_refits_are_those_of_the_points():
    known, again = published_laws.chinchilla(), published_laws.measured()
    same = json.loads(json.dumps(again))
    assert flat(same).keys() == flat(known).keys()
    for name, value in flat(known).items():
        # Gradients at an optimum are rounding errors.
        if isinstance(value, float) and "gradient" not in name:
            assert flat(same)[name] == pytest.approx(value, rel=2e-3, abs=1e-9), name


def flat(value: object, name: str = "") -> dict[str, object]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    leaves: dict[str, object] = {}
    for key, one in items:
        path = f"{name}.{key}"
        leaves |= flat(one, path) if isinstance(one, dict | list) else {path: one}
    return leaves


@pytest.mark.slow
@pytest.mark.parametrize("name", result_figures.DRAWN)
def test_a_figure_drawn_again_shows_the_same(name, tmp_path):
    needs = result_figures.DRAWN[name].needs
    if needs is not None and not needs.exists():
        pytest.skip(f"{needs} is not here")
    again = result_figures.redraw(name, tmp_path)
    first, second = (
        np.asarray(Image.open(path).convert("L"), dtype=float)
        for path in (ROOT / "docs" / f"{name}.png", again)
    )
    # Versions of Matplotlib differ at the edges of lines and letters.
    assert np.abs(np.subtract(first.shape, second.shape)).max() <= 4
    rows, columns = np.minimum(first.shape, second.shape)
    assert np.abs(first[:rows, :columns] - second[:rows, :columns]).mean() < 2
