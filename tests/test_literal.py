"""Text of users is shown literally in terminals, tables, pages and spreadsheets."""

import csv
import io
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.progress import Task
from typer.testing import CliRunner

from pipelines.cli import main as cli
from pipelines.cli.terminal import console as screen
from pipelines.stages.attempt import FAILED
from pipelines.workspace.store import Home
from var_scaling.data.dataset import open_images
from var_scaling.datasets import ImageFiles, ReadOptions
from var_scaling.disk import write_json
from var_scaling.text import cell, printable

QUESTION = "Is it [red]hot[/red] or [/b] :smile: \x1b[31mred\x1b[0m \x9b5m \u202eback\u202c \x07?"
SHOWN = (
    "Is it [red]hot[/red] or [/b] :smile: \\x1b[31mred\\x1b[0m \\x9b5m \\u202eback\\u202c \\x07?"
)


@pytest.fixture
def sweep(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(
        "from sweeps.smoke import sweep as smoke\n"
        f"sweep = smoke.model_copy(update={{'name': 'mine', 'question': {QUESTION!r}}})\n"
    )
    return path


def obeyed(text: str) -> set[str]:
    """The control sequences in `text` that a terminal would execute."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"}


def message(*words: str) -> str:
    done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_plan_shows_a_question_as_it_is(sweep, tmp_path):
    shown = message("plan", str(sweep), "--home", str(tmp_path / "runs"))
    assert SHOWN in shown
    assert obeyed(shown) == set()


def test_the_list_of_sweeps_shows_a_question_as_it_is(monkeypatch, sweep):
    from pipelines.workspace.sweeps import find_sweep

    monkeypatch.setattr(cli, "known_sweeps", lambda: [find_sweep(str(sweep))])
    shown = "".join(message("sweeps").split())
    assert "".join(SHOWN.split()) in shown
    assert json.loads(message("sweeps", "--json"))[0]["question"] == QUESTION


def test_status_shows_an_error_as_it_is(sweep, tmp_path):
    home = Home(tmp_path / "runs")
    write_json(home.trial("mine", "d1") / FAILED, {"error": f"ValueError: {QUESTION}"})
    shown = "".join(message("status", str(sweep), "--home", str(home.root)).split())
    assert "".join(SHOWN.split()) in shown
    assert obeyed(shown) == set()


def test_an_error_message_is_shown_as_it_is(monkeypatch, capsys, tmp_path):
    name = "no [red]such[/red] \x1b]0;title\x07 sweep"
    monkeypatch.setattr("sys.argv", ["var-scaling", "plan", name, "--home", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert "no [red]such[/red] \\x1b]0;title\\x07 sweep" in shown
    assert obeyed(shown) == set()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_names_and_notes_as_they_are(terminal):
    out = io.StringIO()
    console = screen.LiteralConsole(file=out, force_terminal=False, width=200)
    if terminal:
        task = Task(0, f"trial {QUESTION}", 9, 3, _get_time=lambda: 0.0, _lock=None)
        task.fields["status"] = QUESTION
        for column in (screen._Description(), screen._Status()):
            console.print(column.render(task))
    else:
        view = screen.View("trial", QUESTION, "running", 3, 9, "steps", note=QUESTION)
        screen._Lines(console)([view])
    assert out.getvalue().count(SHOWN) == 2
    assert obeyed(out.getvalue()) == set()


def test_states_keep_their_colours():
    out = io.StringIO()
    console = screen.LiteralConsole(file=out, force_terminal=True, color_system="standard")
    console.print(screen.coloured("failed"))
    assert out.getvalue() == "\x1b[31mfailed\x1b[0m\n"


@given(st.text())
def test_no_terminal_control_characters_remain(text):
    shown = printable(text)
    assert obeyed(shown) == set()
    shown.encode()  # no lone surrogate
    assert printable("".join(c for c in text if c.isprintable())) == "".join(
        c for c in text if c.isprintable()
    )


def test_any_language_is_shown_as_it_is():
    for text in ("naïve 日本語 Ελληνικά עברית 🙂 a\tb\nc", "100 % − “so”"):
        assert printable(text) == text


# Spreadsheets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1+1", "＋1", "－x", "＠x", "-",
     "\n=1", "=HYPERLINK(\"http://x\",\"y\")", "+", "--1"],
)  # fmt: skip
def test_a_spreadsheet_formula_becomes_text(text):
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-1", "+1.5", "-1e-7", "0", "a=b", "cat", "", "3-4", "-inf"])
def test_numbers_and_other_text_are_unchanged(text):
    assert cell(text) == text


def test_values_that_are_not_text_are_unchanged():
    assert (cell(-3), cell(-0.5), cell(None)) == ("-3", "-0.5", "None")


def test_rejected_csv_holds_no_formula(tmp_path):
    """The CSV of rejected files has file and class names of arbitrary data sets."""
    for name in ("=class", "-dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(60):
            Image.new("RGB", (8, 8)).save(tmp_path / "pets" / name / f"{i}.png")
    (tmp_path / "pets" / "=class" / "=cmd|' C calc'!A0.png").write_bytes(b"")
    data = ImageFiles(name="pets", side=8, classes=2, validation_share=0.01)
    open_images(
        data, "train", ReadOptions(tmp_path / "pets", tmp_path / "survey", 0, lambda *message: None)
    )
    with open(tmp_path / "survey" / "rejected.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "class", "reason"],
        ["'=class/=cmd|' C calc'!A0.png", "'=class", "empty file"],
    ]


def test_every_csv_is_written_through_cells():
    """A writer that does not pass its cells through `cell` could write formulas."""
    root = Path(__file__).parent.parent
    found = [
        (path.relative_to(root).as_posix(), line.strip())
        for room in ("var_scaling", "pipelines", "analysis", "sweeps")
        for path in sorted((root / room).rglob("*.py"))
        for line in path.read_text().splitlines()
        if "csv.writer" in line or "DictWriter" in line or ".to_csv(" in line
    ]
    assert found == [("var_scaling/data/sources.py", "writer = csv.writer(file)")]


# Pages and figures --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_of_strange_names_is_fitted_and_shown_literally(tmp_path):
    names = ["$x", "[/b]", "=1+1", "<b>bold</b>", "$\\frac{", "a\x1b[31m", "{{ 7 * 7 }}"]
    lines = ["trial,params_total,val_loss"]
    lines += [f'"{n}",{10**k},{3 * 10 ** (-0.1 * k)}' for k, n in enumerate(names, 3)]
    (tmp_path / "t.csv").write_text("\n".join([*lines, '"$y",1e4,-3']) + "\n")
    shown = message("fit", str(tmp_path / "t.csv"))
    assert obeyed(shown) == set()
    page = (tmp_path / "t-laws" / "index.html").read_text()
    assert "<b>bold</b>" not in page
    assert "&lt;b&gt;bold" in page
    assert "{{ 7 * 7 }}" in page


def test_a_table_wraps_a_long_path_without_truncation(capsys):
    path = "/somewhere/" + "deep/" * 30 + "tokens.npy"
    table = screen.new_table("stage", "note")
    table.add_row("tokens", f"{path} is damaged")
    with screen.console.capture() as shown:
        screen.console.print(table, width=60)
    assert path in "".join(shown.get().split()).replace("─", "")
