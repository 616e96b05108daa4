"""Every file and name in the tables of docs/architecture.md exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text()
ANSWERS = re.findall(r"^\| ([^|`]+) \| `([^`]+)` \| `(\w+)` \|$", TEXT, re.M)


def test_the_table_of_questions_is_not_empty():
    assert len(ANSWERS) > 15


@pytest.mark.parametrize(("question", "file", "name"), ANSWERS, ids=[one[0] for one in ANSWERS])
def test_the_file_that_answers_a_question_defines_the_name(question, file, name):
    assert re.search(rf"^(def|class) {name}\b|^{name}\b.*=", (ROOT / file).read_text(), re.M)


def test_every_file_that_the_page_names_exists():
    files = re.findall(r"`([\w/]+\.(?:py|toml|md))`", TEXT)
    assert len(files) > 20
    assert [file for file in files if not (ROOT / file).exists()] in ([], ["metrics.jsonl"])


def test_directories_of_pipelines_and_analysis_have_at_most_12_files():
    folders = [
        p for room in ("pipelines", "analysis") for p in [ROOT / room, *(ROOT / room).rglob("*/")]
    ]
    crowded = {str(p): n for p in folders if (n := len(list(p.glob("*.py")))) > 12}
    assert not crowded
