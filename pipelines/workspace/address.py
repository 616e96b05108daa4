"""Read the folder at an address: tokenizers/NAME, imported/NAME or SWEEP/TRIAL. No torch."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from pipelines.workspace.damage import LOG, WEIGHTS, damage_in
from pipelines.workspace.store import IMPORTED, Home, check_format
from var_scaling.config import AnyTokenizer, SomeTokenizer
from var_scaling.disk import DamagedFileError, is_done
from var_scaling.experiment import ImportedModel, Sweep, Trial
from var_scaling.explain import explain
from var_scaling.record import Record

RecordT = TypeVar("RecordT")


def finished_folder(home: Home, address: str) -> Path:
    """The folder of the finished stage at `address`, which has weights.

    Raises ValueError if there is none, Damaged if a file that its results need is damaged.
    """
    folder = home.root / address
    # `resolve`, so that an address with ".." cannot leave the home.
    inside = folder.resolve().is_relative_to(home.root.resolve())
    if len(Path(address).parts) != 2 or not inside:
        raise ValueError(f"{address}: an address is SWEEP/TRIAL, imported/NAME or tokenizers/NAME")
    if not (is_done(folder) and (folder / WEIGHTS).exists()):
        raise ValueError(f"{folder}: no finished model or tokenizer in this folder")
    damage = damage_in(folder)
    # No sample depends on the log, and loading the weights checks their hash.
    if damage is not None and set(damage.files) - {LOG, WEIGHTS}:
        raise DamagedFileError(str(damage))
    return folder


def read_tokenizer(folder: Path) -> SomeTokenizer:
    adapter: TypeAdapter[SomeTokenizer] = TypeAdapter(AnyTokenizer)
    return _read_record(folder / "tokenizer.json", adapter.validate_json)


def read_generator(folder: Path) -> Trial | ImportedModel:
    """The record of the trial or imported model in `folder`. Raises ValueError."""
    if (folder / "tokenizer.json").exists():
        raise ValueError(
            f"{folder} is a tokenizer; the address of a model is SWEEP/TRIAL or imported/NAME"
        )
    if (folder / "model.json").exists():
        return _read_record(folder / "model.json", ImportedModel.model_validate_json, ImportedModel)
    return _read_record(folder / "trial.json", Trial.model_validate_json, Trial)


def imported_models(home: Home) -> tuple[ImportedModel, ...]:
    """All models that were imported into `home`, by name."""
    paths = sorted((home.root / "imported").glob("*/model.json"))
    return tuple(
        _read_record(path, ImportedModel.model_validate_json, ImportedModel)
        for path in paths
        if is_done(path.parent)
    )


def imported_sweep(home: Home) -> Sweep:
    """The imported models as a sweep without trials. Raises ValueError if there are none."""
    models = imported_models(home)
    if not models:
        raise ValueError(
            f"{home.root}: no model has been imported; `var-scaling import` imports one"
        )
    question = "Which losses do imported models reach?"
    return Sweep(name=IMPORTED, question=question, trials=(), imported=models)


def _read_record(
    path: Path, read: Callable[[bytes], RecordT], kind: type[Record] | None = None
) -> RecordT:
    try:
        if kind is not None:
            check_format(path, kind)
        return read(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent}: no model in this folder") from error
    except ValidationError as error:
        details = explain(error, kind or Record)
        raise ValueError(f"{path}: this version cannot read the record:\n{details}") from error
