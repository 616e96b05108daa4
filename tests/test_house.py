"""Rules of the code: no unused config fields, no heavy imports in light commands, short code."""

import ast
import subprocess
import sys
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


def test_the_code_of_one_trial_has_fewer_than_2800_lines():
    """All our code that training a VAR uses: trainer, network, objective."""
    graph = grimp.build_graph("var_scaling", "pipelines", exclude_type_checking_imports=True)
    entries = {"var_scaling.training.trial", "var_scaling.models.var.objective"}
    reached = entries.union(*(graph.find_upstream_modules(entry) for entry in entries))
    files = [ROOT / (name.replace(".", "/") + ".py") for name in reached]
    assert sum(path.read_text().count("\n") for path in files if path.exists()) < 2800
