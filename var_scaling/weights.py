"""Weights on disk: ours as safetensors, strangers' files read without running what is in them."""

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from var_scaling.disk import file_sha256, whole

State = dict[str, Tensor]
_SHOWN = 12  # names listed before "and N more", where the rest would tell no more


class WeightsError(ValueError):
    """A file of weights is not what it should be; the message says how."""


def save_weights(model: nn.Module, path: Path) -> None:
    save_tensors(model.state_dict(), path)


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    with whole(path) as beside:
        # Copies: safetensors takes no two names for one storage.
        save_file(
            {name: value.detach().clone().contiguous() for name, value in state.items()}, beside
        )


def load_tensors(path: Path, sha256: str) -> State:
    """What a file of ours holds. Raises WeightsError unless it has the hash that was recorded."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    found = file_sha256(path)
    if found != sha256:
        raise WeightsError(
            f"{path} is not the file that was trained or imported here: its SHA-256 is {found}, "
            f"recorded is {sha256}. Copy the right file back, or move the folder away and make it "
            "anew"
        )
    return _tensors_in(path)


def load_weights(model: nn.Module, path: Path, sha256: str) -> None:
    """Strict: hash, every name and every shape must match. Raises WeightsError."""
    state = load_tensors(path, sha256)
    refuse_mismatch(str(path), state, model)
    model.load_state_dict(state, strict=True)


def refuse_mismatch(where: str, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise WeightsError with every name that is missing, not known or of another shape."""
    found = {name: tuple(value.shape) for name, value in state.items()}
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = [
        f"{name} {found[name]}, wanted {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    kinds = {
        "missing": [name for name in wanted if name not in found],
        "not known": [name for name in found if name not in wanted],
        "of another shape": shapes,
    }
    lines = [f"  {len(names)} {kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    other = [f"{name} ({state[name].dtype})" for name in wanted if name in found]
    other = [said for said in other if "float32" not in said]
    if other:
        lines.append(f"  {len(other)} not float32, as the released files are: {listed(other)}")
    if lines:
        raise WeightsError(f"{where} does not hold these weights:\n" + "\n".join(lines))
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise WeightsError(f"{where} holds numbers that are not finite, in {listed(broken)}")


def listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def read_file(path: Path) -> Any:
    """What a .safetensors or .pth file holds. Raises WeightsError, each cause in its own words.

    Nothing in the file is ever run: torch's restricted reader knows tensors and plain containers.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: the file is empty")
    if path.suffix == ".safetensors":
        return _tensors_in(path)
    if zipfile.is_zipfile(path):
        as_stored = _checked_zip(path)
    elif _first_bytes(path) != b"PK":
        as_stored = False
    else:
        raise WeightsError(
            f"{path}: cut short: it begins like a file that torch saved, but its end is missing"
        )
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=as_stored)
    except UnpicklingError as error:
        said = str(error)
        wanted = re.search(r"GLOBAL (\S+)", said) or re.search(r"Unsupported class (\S+)", said)
        if wanted is None:
            raise WeightsError(f"{path}: no file of weights that torch saved") from error
        raise WeightsError(
            f"{path}: refused. Beside tensors it names {wanted.group(1)}, which is code that "
            "loading the file would run. Save the bare state dict where the file came from:\n"
            "  torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: no file of weights that torch saved ({first})") from error


def read_tensors(path: Path) -> State:
    """The named tensors in `path`. Raises WeightsError."""
    return as_tensors(path, read_file(path))


def as_tensors(path: Path, content: Any) -> State:
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: holds {_kind(content)}, not named tensors")
    odd = [f"{name} ({_kind(value)})" for name, value in content.items() if _is_odd(name, value)]
    if odd:
        raise WeightsError(f"{path}: holds more than named tensors: {listed(odd)}")
    return dict(content)


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the float32 values in the order of their names, however they were packed."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensors_in(path: Path) -> State:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged, or no safetensors file ({error})") from error


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(2)


def _is_odd(name: Any, value: Any) -> bool:
    """Whether this is no dense tensor, held in full, under a name."""
    return not (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    held = value.untyped_storage().nbytes() if value.layout == torch.strided else 0
    return f"a {value.layout} tensor {tuple(value.shape)} of {held:,} bytes on {value.device.type}"


def _checked_zip(path: Path) -> bool:
    """Whether its members lie there as they are, not compressed, as torch writes them.

    Raises WeightsError for a member that does not match its checksum: torch does not look at them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            stored = all(one.compress_type == zipfile.ZIP_STORED for one in archive.infolist())
    except Exception as error:
        raise WeightsError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    if broken is not None:
        raise WeightsError(f"{path}: damaged: {broken} does not match its checksum")
    return stored
