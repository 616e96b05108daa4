"""Weights in and out: released checkpoints become ours, ours become files that its code loads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from pipelines.workspace.address import finished, read_generator, read_tokenizer
from pipelines.workspace.damage import mark_done
from pipelines.workspace.provenance import note_attempt
from pipelines.workspace.store import Home, drift, file_lock, init_run_dir, refuse, weights_of
from var_scaling.class_names import keep_names, names_of, read_names
from var_scaling.config import ImportedTokenizer, SomeTokenizer
from var_scaling.disk import file_sha256, is_done, whole, write_json
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

Say = Callable[[str], None]


@dataclass(frozen=True)
class Imported:
    """What an import left behind."""

    tokenizer: ImportedTokenizer
    model: ImportedModel | None
    reused: bool  # the tokenizer was here already


def import_released(
    home: Home,
    files: list[Path],
    name: str,
    patch_nums: tuple[int, ...] | None,
    say: Say,
    classes: Path | None = None,
) -> Imported:
    """Read a VQVAE, or a VQVAE and a VAR over it, into `home` under `name`.

    The two may come in one checkpoint of the released trainer. A VQVAE that is here already, from
    the very same file, is used again under the name it has. `classes`: a file with the names of
    the VAR's classes. Raises WeightsError, Drift or ValueError; nothing is written before
    everything has been checked.
    """
    _refuse_name(name)
    tokenizer_part, var_part = _sorted([_read(path, say) for path in files])
    pyramid = published.pyramid_of(var_part.path, var_part.var) if var_part else None
    if patch_nums is not None:
        if pyramid is not None and pyramid.patch_nums != patch_nums:
            raise WeightsError(
                f"{files[-1]} tells of sides {pyramid.patch_nums}, --sides of {patch_nums}"
            )
        pyramid = Pyramid(patch_nums=patch_nums)
    assert tokenizer_part.tokenizer is not None
    if pyramid is None:
        scales = published.scales_of(tokenizer_part.tokenizer)
        if "pos_1LC" in (var_part.var or {} if var_part else {}) or scales not in (None, 10):
            raise WeightsError(
                f"{files[-1]}: does not tell its scales' sides; give --sides 1,2,3,..."
            )
        pyramid = Pyramid(patch_nums=PAPER_256)
        say(f"the file does not tell its scales' sides; taken as {_told(pyramid)} (else --sides)")
    say("taken as the released code has it, for no file tells: half of phi kept, no cosine lookup")
    sha256 = file_sha256(tokenizer_part.path)
    t, tokenizer_state = published.read_tokenizer(
        tokenizer_part.path, tokenizer_part.tokenizer, name, sha256, pyramid
    )
    known = _same(home, t)
    t = known or t
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
        if is_done(home.imported(name)):
            path = home.imported(name) / "model.json"
            refuse(path, drift(path, model))
    if classes is not None and model is None:
        raise ValueError(f"--classes {classes}: a VQVAE has no classes; give the VAR too")
    names = read_names(classes, model.classes) if classes is not None and model else None
    if known is None:
        _keep(home.tokenizer(t.name), "tokenizer.json", t, tokenizer_state)
    if model is not None and var_state is not None:
        _keep(home.imported(name), "model.json", model, var_state)
        keep_names(home.imported(name), names, str(classes))
    return Imported(t, model, reused=known is not None)


def export_released(home: Home, address: str, out: Path) -> str:
    """Write the weights at `address` for the released code's strict loader; returns how to load.

    The names of the classes, where they are known, are written beside (`names_beside`).

    `address` is tokenizers/NAME, imported/NAME or SWEEP/TRIAL. Raises WeightsError or ValueError.
    """
    folder = finished(home, address)
    for path in (out, names_beside(out)):
        if path.exists():
            raise ValueError(f"{path} exists; it is not written over")
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
    form = generator.family.published
    if form is None:
        raise ValueError(
            f"{address} is a {generator.family.name} model: there are no published weights of its "
            "kind, so there is no format to export it to"
        )
    exported, call = form.export(generator.spec, state)
    names = names_of(folder, generator.classes)
    if names is not None:
        write_json(names_beside(out), {"names": list(names)})
    _save_pth(exported, out)
    return f"{call}.load_state_dict(torch.load({out.name!r}), strict=True)"


def names_beside(out: Path) -> Path:
    """Where an export puts the names of a model's classes: no file of weights has room for them."""
    return out.with_suffix(".classes.json")


def _refuse_name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ValueError(
            f"--as {name}: a name is of a-z, 0-9, '.', '_', '-'; 64 at most"
        ) from error


def _read(path: Path, say: Say) -> published.Parts:
    say(f"reading {path}")
    return published.parts_of(path, read_file(path))


def _sorted(parts: list[published.Parts]) -> tuple[published.Parts, published.Parts | None]:
    """(the one with the VQVAE, the one with the VAR), which may be the same."""
    tokenizers = [part for part in parts if part.tokenizer is not None]
    models = [part for part in parts if part.var is not None]
    for what, found in (("VQVAE", tokenizers), ("VAR", models)):
        if len(found) > 1:
            files = ", ".join(str(part.path) for part in found)
            raise WeightsError(f"{files}: each holds a {what}; import them one by one")
    if not tokenizers:
        files = ", ".join(str(part.path) for part in parts)
        raise WeightsError(f"{files}: no VQVAE among them; a VAR is nothing without its tokenizer")
    return tokenizers[0], models[0] if models else None


def _same(home: Home, t: ImportedTokenizer) -> ImportedTokenizer | None:
    """The tokenizer in `home` that came from the same file; Drift if its name is another's."""
    for folder in sorted(home.root.glob("tokenizers/*")):
        known = _readable(folder)
        if known is not None and known == t.model_copy(update={"name": known.name}):
            assert isinstance(known, ImportedTokenizer)
            return known
    path = home.tokenizer(t.name) / "tokenizer.json"
    if path.exists() and (is_done(path.parent) or read_tokenizer(path.parent).kind == "trained"):
        recorded = read_tokenizer(path.parent).model_dump(mode="json")
        refuse(path, difference(recorded, t.model_dump(mode="json")))
    return None


def _readable(folder: Path) -> SomeTokenizer | None:
    """The finished tokenizer in `folder`; None too if its record is of another version."""
    if not is_done(folder):
        return None
    try:
        return read_tokenizer(folder)
    except ValueError:
        return None


def _keep(folder: Path, file: str, record: Record, state: State) -> None:
    """Write `record` and its weights into `folder`, the mark last; what was left half-way goes."""
    with file_lock(folder):
        if is_done(folder):
            init_run_dir(folder, file, record)
            return
        for left in (folder / file, *folder.glob(".tmp*"), *folder.glob(".weights*")):
            left.unlink(missing_ok=True)
        init_run_dir(folder, file, record)
        note_attempt(folder, threads=1)
        weights = folder / "weights.safetensors"
        save_tensors(state, weights)
        marker = {"status": "done", "weights_sha256": file_sha256(weights)}
        mark_done(folder, marker, (file, weights.name))


def _save_pth(state: State, out: Path) -> None:
    with whole(out) as beside:
        torch.save(dict(state), beside)


def _told(pyramid: Pyramid) -> str:
    return ", ".join(map(str, pyramid.patch_nums))
