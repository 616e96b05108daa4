"""Import released checkpoints, and export weights to files that the released code loads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from pipelines.workspace.address import finished_folder, read_generator, read_tokenizer
from pipelines.workspace.damage import mark_done
from pipelines.workspace.provenance import record_attempt
from pipelines.workspace.store import (
    Home,
    file_lock,
    init_run_dir,
    raise_if_mismatch,
    record_differences,
    weights_of,
)
from var_scaling.class_names import load_names, read_names, save_names
from var_scaling.config import ImportedTokenizer, SomeTokenizer
from var_scaling.disk import atomic_write, file_sha256, is_done, write_json
from var_scaling.experiment import ImportedModel
from var_scaling.models.var import published
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.record import Name, Record, difference
from var_scaling.weights import (
    State,
    WeightsError,
    load_tensors,
    read_file,
    save_tensors,
)

PrintLine = Callable[[str], None]


@dataclass(frozen=True)
class ImportResult:
    """The imported records."""

    tokenizer: ImportedTokenizer
    model: ImportedModel | None
    reused: bool  # whether the tokenizer was in the home before


def import_released(
    home: Home,
    files: list[Path],
    name: str,
    patch_nums: tuple[int, ...] | None,
    print_line: PrintLine,
    classes: Path | None = None,
) -> ImportResult:
    """Import a VQVAE, or a VQVAE and a VAR that uses it, into `home` under `name`.

    Both may be in one checkpoint of the released trainer. If the home has a VQVAE from the same
    file, that one is used, under its own name. `classes`: a file with the names of the VAR's
    classes. Raises WeightsError, ConfigMismatchError or ValueError. All checks are done before
    anything is written.
    """
    # Before the files are read, which are large.
    _check_name(name)
    # Find the VQVAE and the VAR in the files, and the sides of the scales.
    tokenizer_part, var_part = _find_parts([_read(path, print_line) for path in files])
    assert tokenizer_part.tokenizer is not None
    pyramid = _find_pyramid(tokenizer_part, var_part, patch_nums, files[-1], print_line)
    print_line(
        "assumed as in the released code, because no file records it: phi with strength 0.5, no "
        "cosine lookup"
    )
    # Read and check all weights; nothing is written yet.
    sha256 = file_sha256(tokenizer_part.path)
    t, tokenizer_state = published.read_tokenizer(
        tokenizer_part.path, tokenizer_part.tokenizer, name, sha256, pyramid
    )
    existing = _find_same(home, t)
    t = existing or t
    model, var_state = None, None
    if var_part is not None and var_part.var is not None:
        spec, var_state = published.read_var(var_part.path, var_part.var, t)
        model = ImportedModel(
            name=name,
            tokenizer=t,
            model=spec.config,
            classes=spec.classes,
            sha256=file_sha256(var_part.path),
        )
        # `_write` would raise this error only after it has written the tokenizer.
        if is_done(home.imported(name)):
            path = home.imported(name) / "model.json"
            raise_if_mismatch(path, record_differences(path, model))
    if classes is not None and model is None:
        raise ValueError(f"--classes {classes}: a VQVAE has no classes; import its VAR too")
    names = read_names(classes, model.classes) if classes is not None and model else None
    # Everything is checked: write.
    if existing is None:
        _write(home.tokenizer(t.name), "tokenizer.json", t, tokenizer_state)
    if model is not None and var_state is not None:
        _write(home.imported(name), "model.json", model, var_state)
        save_names(home.imported(name), names, str(classes))
    return ImportResult(t, model, reused=existing is not None)


def _find_pyramid(
    tokenizer_part: published.CheckpointParts,
    var_part: published.CheckpointParts | None,
    patch_nums: tuple[int, ...] | None,
    last_file: Path,
    print_line: PrintLine,
) -> Pyramid:
    """The pyramid that the files record, else that of `patch_nums`, else the published one.

    Raises WeightsError if files and `patch_nums` disagree, or if nothing decides.
    """
    # A VQVAE file does not record the sides. A VAR file records the scale of each position
    # (lvl_1L), or only their number, which is enough for the published pyramids.
    pyramid = published.pyramid_of(var_part.path, var_part.var) if var_part else None
    if patch_nums is not None:
        if pyramid is not None and pyramid.patch_nums != patch_nums:
            raise WeightsError(
                f"{last_file} has the sides {pyramid.patch_nums}, but --sides is {patch_nums}"
            )
        pyramid = Pyramid(patch_nums=patch_nums)
    if pyramid is None:
        assert tokenizer_part.tokenizer is not None
        # Do not guess if the VAR has positions of no published pyramid, or if the number of scales
        # is not 10, as in both published pyramids.
        scales = published.scale_count(tokenizer_part.tokenizer)
        if "pos_1LC" in (var_part.var or {} if var_part else {}) or scales not in (None, 10):
            raise WeightsError(
                f"{last_file}: does not record the sides of its scales; give --sides 1,2,3,..."
            )
        pyramid = Pyramid(patch_nums=PAPER_256)
        sides = ", ".join(map(str, pyramid.patch_nums))
        print_line(
            f"the file does not record the sides of its scales: assumed {sides}; give --sides if "
            "they differ"
        )
    return pyramid


def export_released(home: Home, address: str, out: Path) -> str:
    """Write the weights at `address` for the released code; returns the Python code to load them.

    If the names of the classes are known, they are written to `class_names_path(out)`.

    `address` is tokenizers/NAME, imported/NAME or SWEEP/TRIAL. Raises WeightsError or ValueError.
    """
    folder = finished_folder(home, address)
    for path in (out, class_names_path(out)):
        if path.exists():
            raise ValueError(f"{path} exists and is not overwritten")
    # Raises if the file does not have its recorded hash: damaged weights are not exported.
    state = load_tensors(*weights_of(folder))
    if (folder / "tokenizer.json").exists():
        t = read_tokenizer(folder)
        _save_pth(published.released_tokenizer_state(t, state), out)
        return (
            f"VQVAE(vocab_size={t.codebook_size}, z_channels={t.code_channels}, ch={t.channels}, "
            f"share_quant_resi={t.phi_convolutions}, quant_resi={t.phi_strength}, "
            f"v_patch_nums={t.pyramid.patch_nums})"
            f".load_state_dict(torch.load({out.name!r}), strict=True)"
        )
    generator = read_generator(folder)
    published_format = generator.family.published
    if published_format is None:
        raise ValueError(
            f"{address} is a {generator.family.name} model: there are no published weights of this "
            "family, so there is no format to export to"
        )
    exported, call = published_format.export(generator.spec, state)
    names = load_names(folder, generator.classes)
    if names is not None:
        write_json(class_names_path(out), {"names": list(names)})
    _save_pth(exported, out)
    return f"{call}.load_state_dict(torch.load({out.name!r}), strict=True)"


def class_names_path(out: Path) -> Path:
    """The file for the names of a model's classes, which the weights file cannot hold."""
    return out.with_suffix(".classes.json")


def _check_name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ValueError(
            f"--as {name}: a name has at most 64 characters of a-z, 0-9, '.', '_', '-'"
        ) from error


def _read(path: Path, print_line: PrintLine) -> published.CheckpointParts:
    print_line(f"reading {path}")
    return published.split_checkpoint(path, read_file(path))


def _find_parts(
    parts: list[published.CheckpointParts],
) -> tuple[published.CheckpointParts, published.CheckpointParts | None]:
    """(part with the VQVAE, part with the VAR or None); both may be the same part.

    Raises WeightsError if there is no VQVAE, or more than one VQVAE or VAR.
    """
    tokenizers = [part for part in parts if part.tokenizer is not None]
    models = [part for part in parts if part.var is not None]
    for kind, matching in (("VQVAE", tokenizers), ("VAR", models)):
        if len(matching) > 1:
            files = ", ".join(str(part.path) for part in matching)
            raise WeightsError(f"{files}: each holds a {kind}; import them one by one")
    if not tokenizers:
        files = ", ".join(str(part.path) for part in parts)
        raise WeightsError(
            f"{files}: no VQVAE in these files; a VAR can only be imported with its VQVAE"
        )
    return tokenizers[0], models[0] if models else None


def _find_same(home: Home, t: ImportedTokenizer) -> ImportedTokenizer | None:
    """The tokenizer in `home` that was imported from the same file; None if there is none.

    Raises ConfigMismatchError if the name belongs to a different tokenizer.
    """
    for folder in sorted(home.root.glob("tokenizers/*")):
        other = _read_finished(folder)
        # The record has the hash of the released file, so equality but for the name means the same
        # file.
        if other is not None and other == t.model_copy(update={"name": other.name}):
            assert isinstance(other, ImportedTokenizer)
            return other
    path = home.tokenizer(t.name) / "tokenizer.json"
    # An import that failed does not reserve its name, and `_write` removes its files. A tokenizer
    # that is being trained does.
    if path.exists() and (is_done(path.parent) or read_tokenizer(path.parent).kind == "trained"):
        recorded = read_tokenizer(path.parent).model_dump(mode="json")
        raise_if_mismatch(path, difference(recorded, t.model_dump(mode="json")))
    return None


def _read_finished(folder: Path) -> SomeTokenizer | None:
    """The finished tokenizer in `folder`; None if there is none or its record is unreadable."""
    if not is_done(folder):
        return None
    try:
        return read_tokenizer(folder)
    except ValueError:
        return None


def _write(folder: Path, file: str, record: Record, state: State) -> None:
    """Write `record` and its weights into `folder`, done.json last. Remove an incomplete import."""
    with file_lock(folder):
        if is_done(folder):
            init_run_dir(folder, file, record)  # raises if the finished import has another record
            return
        # A killed process may have left the record and temporary files of `atomic_write`.
        for leftover in (folder / file, *folder.glob(".tmp*"), *folder.glob(".weights*")):
            leftover.unlink(missing_ok=True)
        init_run_dir(folder, file, record)
        record_attempt(folder, threads=1)
        weights = folder / "weights.safetensors"
        save_tensors(state, weights)
        # The hash of our file; that of the released file is in the record.
        marker = {"status": "done", "weights_sha256": file_sha256(weights)}
        mark_done(folder, marker, (file, weights.name))


def _save_pth(state: State, out: Path) -> None:
    with atomic_write(out) as temporary_path:
        # A plain dict of tensors, which torch.load reads with weights_only=True.
        torch.save(dict(state), temporary_path)
