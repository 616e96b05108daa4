"""What lies at an address of a home: tokenizers/NAME, imported/NAME, SWEEP/TRIAL. No torch."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from pipelines.workspace.damage import LOG, WEIGHTS, damage_in
from pipelines.workspace.store import IMPORTED, Home, refuse_old
from var_scaling.config import AnyTokenizer, SomeTokenizer
from var_scaling.disk import Damaged, is_done
from var_scaling.experiment import ImportedModel, Sweep, Trial
from var_scaling.record import Record, explain

Found = TypeVar("Found")


def finished(home: Home, address: str) -> Path:
    """The folder at `address`, its weights there. Raises ValueError, Damaged."""
    folder = home.root / address
    inside = folder.resolve().is_relative_to(home.root.resolve())
    if len(Path(address).parts) != 2 or not inside:
        raise ValueError(f"{address}: name it as SWEEP/TRIAL, imported/NAME or tokenizers/NAME")
    if not (is_done(folder) and (folder / WEIGHTS).exists()):
        raise ValueError(f"{folder}: nothing finished is here")
    found = damage_in(folder)
    # No sample depends on the log, and weights are compared as they are loaded.
    if found is not None and set(found.files) - {LOG, WEIGHTS}:
        raise Damaged(str(found))
    return folder


def read_tokenizer(folder: Path) -> SomeTokenizer:
    adapter: TypeAdapter[SomeTokenizer] = TypeAdapter(AnyTokenizer)
    return _read_record(folder / "tokenizer.json", adapter.validate_json)


def read_generator(folder: Path) -> Trial | ImportedModel:
    """The record of the trial or imported model in `folder`. Raises ValueError."""
    if (folder / "tokenizer.json").exists():
        raise ValueError(f"{folder} is a tokenizer; a model is named SWEEP/TRIAL or imported/NAME")
    if (folder / "model.json").exists():
        return _read_record(folder / "model.json", ImportedModel.model_validate_json, ImportedModel)
    return _read_record(folder / "trial.json", Trial.model_validate_json, Trial)


def imported_models(home: Home) -> tuple[ImportedModel, ...]:
    """All models that were imported into `home`, by name."""
    found = sorted((home.root / "imported").glob("*/model.json"))
    return tuple(
        _read_record(path, ImportedModel.model_validate_json, ImportedModel)
        for path in found
        if is_done(path.parent)
    )


def imported_sweep(home: Home) -> Sweep:
    """The models that were trained elsewhere, as a sweep: nothing to run, something to fit."""
    models = imported_models(home)
    if not models:
        raise ValueError(f"{home.root}: nothing has been imported here; `var-scaling import` does")
    question = "Where do models that were trained elsewhere lie?"
    return Sweep(name=IMPORTED, question=question, trials=(), imported=models)


def _read_record(
    path: Path, read: Callable[[bytes], Found], kind: type[Record] | None = None
) -> Found:
    try:
        if kind is not None:
            refuse_old(path, kind)
        return read(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent}: no model is here") from error
    except ValidationError as error:
        said = explain(error, kind or Record)
        raise ValueError(f"{path} is no record that this version reads:\n{said}") from error
