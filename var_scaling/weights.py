"""Weights on disk: safetensors files, and third-party files read without running their code."""

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

from var_scaling.disk import atomic_write, file_sha256

State = dict[str, Tensor]
_MAX_NAMES = 12  # in a message, before "and N more"


class WeightsError(ValueError):
    """A weights file is missing, damaged, unsafe or of another model; the message says which."""


def save_weights(model: nn.Module, path: Path) -> None:
    save_tensors(model.state_dict(), path)


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    with atomic_write(path) as temporary_path:
        # clone: safetensors refuses two names that share one storage.
        tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
        save_file(tensors, temporary_path)


def load_tensors(path: Path, sha256: str) -> State:
    """The tensors of a file that this project wrote. Raises WeightsError if its hash differs."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    # Hashed at each load: one changed bit in a weight would change results without any error.
    actual = file_sha256(path)
    if actual != sha256:
        raise WeightsError(
            f"{path} is not the file that was trained or imported: its SHA-256 is {actual}, "
            f"{sha256} is recorded. Restore the original file, or move the folder away and train "
            "or import again"
        )
    return _tensors_in(path)


def load_weights(model: nn.Module, path: Path, sha256: str) -> None:
    """Load strictly: the hash, all names and all shapes must match. Raises WeightsError."""
    state = load_tensors(path, sha256)
    # load_state_dict would convert another dtype, and accept NaN, without a message.
    refuse_mismatch(str(path), state, model)
    model.load_state_dict(state, strict=True)


def refuse_mismatch(source: str, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise WeightsError with every tensor that is missing, unknown or of another shape or dtype.

    `source` names the file in the message. Values that are not finite are refused too.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    wrong_shapes = [
        f"{name} {shapes[name]}, expected {expected[name]}"
        for name in expected
        if name in shapes and shapes[name] != expected[name]
    ]
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "not known": [name for name in shapes if name not in expected],
        "of another shape": wrong_shapes,
    }
    lines = [
        f"  {len(names)} {kind}: {', '.join(names)}" for kind, names in problems.items() if names
    ]
    dtypes = [f"{name} ({state[name].dtype})" for name in expected if name in shapes]
    dtypes = [text for text in dtypes if "float32" not in text]
    if dtypes:
        lines.append(
            f"  {len(dtypes)} not float32, unlike the released files: {shorten_list(dtypes)}"
        )
    if lines:
        raise WeightsError(
            f"{source} does not have the tensors of this model:\n" + "\n".join(lines)
        )
    not_finite = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if not_finite:
        raise WeightsError(
            f"{source} has values that are not finite, in {shorten_list(not_finite)}"
        )


def shorten_list(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def read_file(path: Path) -> Any:
    """The content of a .safetensors or .pth file. Raises WeightsError, which names the cause.

    No code in the file is run: torch's `weights_only` reader accepts tensors and plain containers.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: the file is empty")
    # safetensors has its own reader; all else is what torch.save writes: a zip file, or, before
    # torch 1.6, a bare pickle.
    if path.suffix == ".safetensors":
        return _tensors_in(path)
    if zipfile.is_zipfile(path):
        is_uncompressed = _check_zip(path)
    elif _first_bytes(path) != b"PK":
        is_uncompressed = False
    else:
        # The directory of a zip file is at its end, so a truncated one only begins like a zip.
        raise WeightsError(
            f"{path}: truncated: it starts like a file that torch saved, but its end is missing"
        )
    try:
        # mmap reads the bytes as they are in the file: compressed tensors would be garbage.
        return torch.load(path, weights_only=True, map_location="cpu", mmap=is_uncompressed)
    except UnpicklingError as error:
        text = str(error)
        code = re.search(r"GLOBAL (\S+)", text) or re.search(r"Unsupported class (\S+)", text)
        if code is None:
            raise WeightsError(f"{path}: not a weights file that torch saved") from error
        raise WeightsError(
            f"{path}: refused. Besides tensors it contains {code.group(1)}, which is code that "
            "loading the file would run. Save only the state dict, where the file was made:\n"
            "  torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a weights file that torch saved ({first})") from error


def read_tensors(path: Path) -> State:
    """The named tensors in `path`. Raises WeightsError."""
    return as_tensors(path, read_file(path))


def as_tensors(path: Path, content: Any) -> State:
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: contains {_kind(content)}, not named tensors")
    invalid = [
        f"{name} ({_kind(value)})" for name, value in content.items() if _is_invalid(name, value)
    ]
    if invalid:
        raise WeightsError(f"{path}: not all entries are named tensors: {shorten_list(invalid)}")
    return dict(content)


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the float32 values in the order of their names, independent of the file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensors_in(path: Path) -> State:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged, or not a safetensors file ({error})") from error


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(2)


def _is_invalid(name: Any, value: Any) -> bool:
    """Whether this is not a name with a dense CPU tensor whose storage has all its elements."""
    return not (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        # A damaged file can claim more elements than its storage has: reading them would return
        # memory that was never written.
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    size = value.untyped_storage().nbytes() if value.layout == torch.strided else 0
    return f"a {value.layout} tensor {tuple(value.shape)} of {size:,} bytes on {value.device.type}"


def _check_zip(path: Path) -> bool:
    """Whether all members are uncompressed, as torch writes them (then torch can memory-map).

    Raises WeightsError if a member does not match its checksum, which torch does not check.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())
    except Exception as error:
        raise WeightsError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    if broken is not None:
        raise WeightsError(f"{path}: damaged: {broken} does not match its checksum")
    return stored
