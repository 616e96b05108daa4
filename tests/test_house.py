"""Rules of the code: no unused config fields, no heavy imports in light commands, short code."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import grimp
import pytest
from pydantic import BaseModel

from pipelines.workspace import settings
from var_scaling import config, datasets, recipe, results

ROOT = Path(__file__).parent.parent
CODE = [
    path
    for room in ("var_scaling", "pipelines", "analysis", "sweeps")
    for path in sorted((ROOT / room).rglob("*.py"))
]
RECORDS = [
    record
    for module in (config, datasets, recipe, settings)
    for record in vars(module).values()
    if isinstance(record, type) and issubclass(record, BaseModel) and record.model_fields
]


def attributes_read() -> set[str]:
    return {
        node.attr
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_every_config_field_is_read_somewhere():
    read = attributes_read()
    fields = {(record.__name__, name) for record in RECORDS for name in record.model_fields}
    # `kind` tells pydantic which record a JSON object is.
    assert {f"{r}.{name}" for r, name in fields if name not in read} <= {
        "DeadLeaves.kind",
        "ImageFiles.kind",
        "TrainedTokenizer.kind",
        "ImportedModel.kind",
    }


def test_every_file_has_a_module_docstring():
    silent = [path for path in CODE if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


@pytest.mark.parametrize("words", [["--help"], ["plan", "imagenet256"], ["status", "smoke"]])
def test_commands_that_only_read_import_no_heavy_packages(words, tmp_path):
    code = (
        "import sys\n"
        f"sys.argv = ['var-scaling', *{words!r}]\n"
        "from pipelines.cli import main as cli\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = ('torch', 'ray', 'mlflow', 'pandas', 'scipy')\n"
        "print('heavy:', [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_every_column_of_the_results_has_a_unit():
    names = {column.name for column in results.COLUMNS}
    assert {"train_flops", "params_total", "tokens_seen", "seconds"} <= names
    assert not {"host", "colour", "path"} & names


def code_lines(path: Path) -> int:
    """Lines of a file without blank lines, comments and docstrings: those may grow."""
    text = path.read_text()
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_the_code_of_one_trial_has_fewer_than_2300_lines():
    """All our code that training a VAR uses: trainer, network, objective."""
    graph = grimp.build_graph("var_scaling", "pipelines", exclude_type_checking_imports=True)
    entries = {"var_scaling.training.trial", "var_scaling.models.var.objective"}
    reached = entries.union(*(graph.find_upstream_modules(entry) for entry in entries))
    files = [ROOT / (name.replace(".", "/") + ".py") for name in reached]
    assert 1000 < sum(code_lines(path) for path in files if path.exists()) < 2300
