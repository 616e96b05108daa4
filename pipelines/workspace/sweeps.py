"""Sweeps by name or by path: each is a Python file that defines `sweep`."""

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
from pipelines.workspace.modules import named_in, share_paths
from pipelines.workspace.store import IMPORTED
from var_scaling.experiment import Sweep
from var_scaling.record import Record, explain


class SweepError(ValueError):
    """There is no such sweep, or its file does not make one; the message says what to mend."""


def known_sweeps() -> list[Sweep]:
    return [_load(name) for name in _names()]


def find_sweep(name: str) -> Sweep:
    """The sweep called `name`, or the one in the file at that path. Raises SweepError."""
    if Path(name).suffix == ".py":
        return _load(name)
    if Path(name).is_file():
        raise SweepError(f"{name}: a sweep is a Python file; its name ends in .py")
    if name not in _names():
        raise SweepError(
            f"no sweep is called {name!r}; there are {', '.join(_names())}. A file of your own is "
            "named by its path: var-scaling run ./mine.py"
        )
    return _load(name)


def choose(sweep: Sweep, names: Collection[str]) -> Sweep:
    """`sweep` with the trials of these names alone; with none, all of it. Raises SweepError."""
    unknown = sorted(set(names) - {trial.name for trial in sweep.trials})
    if unknown:
        known = ", ".join(trial.name for trial in sweep.trials)
        raise SweepError(f"{sweep.name} has no trial {', '.join(unknown)}; there are {known}")
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
        raise SweepError(f"{name}, {_own_line(error)}:\n{explained(error)}") from error
    except SweepError:
        raise
    except (Exception, SystemExit) as error:
        raise SweepError(f"{name}, {_own_line(error)}: {type(error).__name__}: {error}") from error
    sweep = getattr(module, "sweep", None)
    if not isinstance(sweep, Sweep):
        raise SweepError(f"{name} defines no `sweep = Sweep(...)`")
    share_paths(named_in((*sweep.trials, *sweep.imported)))
    if sweep.name == IMPORTED:
        raise SweepError(f"{name}: {IMPORTED!r} is the name of what was imported")
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
    folder = str(path.resolve().parent)  # where modules of the user's own may lie
    if folder not in sys.path:
        sys.path.append(folder)
    spec.loader.exec_module(module)
    return module


def _own_line(error: BaseException) -> str:
    """Where in a sweep's file the error came from: the innermost frame that is not ours."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}"
    ours = ("/pipelines/", "/var_scaling/", "/site-packages/", "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(part in frame.filename for part in ours)]
    return f"line {own[-1].lineno}" if own else "on loading"


def explained(error: ValidationError) -> str:
    """What is wrong with a record, field by field."""
    return explain(error, next(_records_named(error.title, Record), Sweep))


def _records_named(title: str, kind: type[Record]) -> Iterator[type[Record]]:
    if kind.__name__ == title:
        yield kind
    for each in kind.__subclasses__():
        yield from _records_named(title, each)
