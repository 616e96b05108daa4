"""Load sweeps by name or path. Each is a Python file that defines `sweep`."""

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

import sweeps
from pipelines.workspace.modules import export_python_path, module_names
from pipelines.workspace.store import IMPORTED
from var_scaling.experiment import Sweep
from var_scaling.explain import explain
from var_scaling.record import Record


class SweepError(ValueError):
    """The sweep does not exist, or its file does not define one; the message says what to fix."""


def known_sweeps() -> list[Sweep]:
    return [_load(name) for name in _names()]


def find_sweep(name: str) -> Sweep:
    """The sweep `name`, or the sweep in the file with that path. Raises SweepError."""
    if Path(name).suffix == ".py":
        return _load(name)
    if Path(name).is_file():
        raise SweepError(f"{name}: a sweep is a Python file, whose name ends in .py")
    if name not in _names():
        raise SweepError(
            f"no sweep is called {name!r}; available are {', '.join(_names())}. To use your own "
            "file, give its path: var-scaling run ./mine.py"
        )
    return _load(name)


def select_trials(sweep: Sweep, names: Collection[str]) -> Sweep:
    """`sweep` with only the trials in `names`; without names, all trials. Raises SweepError."""
    unknown = sorted(set(names) - {trial.name for trial in sweep.trials})
    if unknown:
        known = ", ".join(trial.name for trial in sweep.trials)
        raise SweepError(f"{sweep.name} has no trial {', '.join(unknown)}; its trials are {known}")
    if not names:
        return sweep
    chosen = tuple(trial for trial in sweep.trials if trial.name in names)
    return sweep.model_copy(update={"trials": chosen})


def _names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(sweeps.__path__))


def _load(name: str) -> Sweep:
    try:
        module = _from_file(Path(name)) if name.endswith(".py") else _named(name)
    except ValidationError as error:
        raise SweepError(f"{name}, {_own_line(error)}:\n{describe_error(error)}") from error
    except SweepError:
        raise
    except (Exception, SystemExit) as error:
        # A sweep file is the user's code, so it may raise anything.
        raise SweepError(f"{name}, {_own_line(error)}: {type(error).__name__}: {error}") from error
    sweep = getattr(module, "sweep", None)
    if not isinstance(sweep, Sweep):
        raise SweepError(f"{name} defines no `sweep = Sweep(...)`")
    # Workers of Ray and local processes import the same user modules.
    export_python_path(module_names((*sweep.trials, *sweep.imported)))
    if sweep.name == IMPORTED:
        raise SweepError(f"{name}: the sweep name {IMPORTED!r} is reserved for imported models")
    return sweep


def _named(name: str) -> ModuleType:
    return importlib.import_module(f"sweeps.{name}")


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SweepError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)  # a sweep may import modules beside it
    if folder not in sys.path:
        # Last, so that no file beside the sweep hides a module of this project.
        sys.path.append(folder)
    spec.loader.exec_module(module)
    return module


def _own_line(error: BaseException) -> str:
    """The line of the sweep's file that caused the error: the innermost frame of user code."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}"
    internal = ("/pipelines/", "/var_scaling/", "/site-packages/", "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    external = [f for f in frames if not any(part in f.filename for part in internal)]
    return f"line {external[-1].lineno}" if external else "on loading"


def describe_error(error: ValidationError) -> str:
    """What is wrong with a record, one line per field."""
    return explain(error, next(_records_named(error.title, Record), Sweep))


def _records_named(title: str, kind: type[Record]) -> Iterator[type[Record]]:
    if kind.__name__ == title:
        yield kind
    for each in kind.__subclasses__():
        yield from _records_named(title, each)
