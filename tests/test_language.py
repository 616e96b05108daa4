"""Code and docs use the terms of the field: no names of earlier versions, no obscure words; every
citation and command of the docs exists.
"""

import ast
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pipelines.cli.main import TASKS, app

ROOT = Path(__file__).parent.parent
CODE = [
    path
    for folder in ("var_scaling", "pipelines", "analysis", "sweeps", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
TESTS = [path for path in sorted((ROOT / "tests").glob("*.py")) if path != Path(__file__)]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TEMPLATES = sorted((ROOT / "analysis" / "report" / "templates").glob("*"))
OBSCURE = (
    "foretold", "foretell", "heed", "nobody", "somebody", "whoever", "stranger", "kin", "hangs on",
    "told the class", "as it came", "forgive",
)  # fmt: skip


def defined_names(path: Path) -> set[str]:
    """Classes, functions, parameters, annotated fields and the file's own name."""
    names = {path.stem}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        if isinstance(node, ast.arg):
            names.add(node.arg)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_no_name_of_an_earlier_version_is_defined():
    lines = (ROOT / "tests" / "data" / "old_names.txt").read_text().splitlines()
    old = {line for line in lines if line and not line.startswith("#")}
    found = {str(path.relative_to(ROOT)): sorted(defined_names(path) & old) for path in CODE}
    assert {path: names for path, names in found.items() if names} == {}


def test_no_obscure_word_is_used():
    pattern = re.compile(r"\b(" + "|".join(OBSCURE) + r")\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in (*CODE, *TESTS, *DOCS, *NOTEBOOKS, *TEMPLATES)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line.replace("_", " "))
    ]
    assert found == []


def tracked_files() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return set(listed.stdout.split())


def test_every_link_of_the_docs_leads_to_a_file():
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in DOCS
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert broken == []


def test_every_document_that_code_or_docs_cite_is_in_the_repository():
    known = {Path(name).name for name in tracked_files()}
    known |= {path.name for path in DOCS}
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (*CODE, *TESTS, *DOCS, *NOTEBOOKS)
        for name in re.findall(r"[\w./-]*\b([\w-]+\.md)\b", path.read_text())
        if name not in known
    ]
    assert missing == []


def test_every_paper_is_cited_by_a_well_formed_number():
    cited = [
        (path.name, number)
        for path in (*CODE, *DOCS)
        for number in re.findall(r"arXiv[: ]([\d.v]+\d)", path.read_text())
    ]
    assert cited
    assert [one for one in cited if not re.fullmatch(r"\d{4}\.\d{4,5}(v\d+)?", one[1])] == []


@pytest.mark.parametrize("name", ["cli.md", "settings.md"])
def test_the_generated_pages_match_the_code(name):
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (ROOT / "docs" / name).read_text() == generate.PAGES[name](), "run `make docs`"


def commands_of(path: Path) -> list[str]:
    """Every `var-scaling …` line of the code blocks without a language, continued lines joined."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    commands = "\n".join(text for language, text in fences if not language)
    lines = commands.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip().startswith("var-scaling ")]


def test_the_help_lists_every_command_once():
    commands = typer.main.get_command(app).commands
    listed = [name for names in TASKS.values() for name in names]
    assert sorted(listed) == sorted(commands)


def test_the_help_has_a_whole_sentence_for_each_command():
    shown = CliRunner().invoke(app, ["--help"], terminal_width=80).output
    assert "..." not in shown.replace("COMMAND [ARGS]...", "")


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_the_docs_parses(path):
    """Command, options and number of arguments exist; nothing is run."""
    commands = typer.main.get_command(app).commands
    for line in commands_of(path):
        name, *words = shlex.split(line, comments=True)[1:]
        assert name in commands, line
        try:
            commands[name].make_context(name, words)
        except typer.BadParameter as error:
            if "does not exist" not in error.message:  # the files of examples need not exist
                raise
