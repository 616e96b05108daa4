"""What edit is asked for: a person's words and files to one record, and to what the model is shown.

Shapes: h, w height and width of the picture.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt

from pipelines.sampling.settings import fitting, never_without, sampling_of
from var_scaling.class_names import Names, class_number
from var_scaling.data.decode import Undecodable, decode
from var_scaling.experiment import ImportedModel, Trial
from var_scaling.generation.blend import Window, feather_in, missed_share, read_window
from var_scaling.generation.edit import Scene, scene_to_enlarge, scene_to_paint
from var_scaling.generation.masks import (
    Box,
    EditError,
    box_hole,
    mask_hole,
    open_mask,
    read_box,
)
from var_scaling.models.registry import AnySampling
from var_scaling.recipe import Sha256
from var_scaling.record import Name, Record

Kind = Literal["in-paint", "out-paint", "mask", "super-resolve"]
By = Literal["light", "alpha"]


class EditSet(Record):
    """All that the pictures of an edit depend on. Pixels are those of the upright picture."""

    format: Literal[2] = 2  # of the record on disk; 1 had no `sampling.family`
    name: Name
    kind: Kind
    image_sha256: Sha256  # of the file
    box: Box | None = None  # filled, or kept to out-paint
    mask_sha256: Sha256 | None = None  # of the file
    mask_by: By | None = None
    window: Window  # what of the picture the model sees
    label: NonNegativeInt  # the class; the number of classes: none
    kept_scales: PositiveInt | None = None  # to super-resolve
    feather_px: NonNegativeInt | None = None  # None: 1/32 of the window
    blank: bool = False  # whether the hole was emptied before the picture was encoded
    count: PositiveInt
    seed: NonNegativeInt
    sampling: AnySampling
    weights_sha256: Sha256
    tokenizer_sha256: Sha256


@dataclass(frozen=True)
class EditOptions:
    """An edit in a person's words; exactly one of the first four is given."""

    image: Path
    in_paint: str | None = None
    out_paint: str | None = None
    mask: Path | None = None
    super_resolve: bool = False
    mask_by: By | None = None
    window: str | None = None
    keep_scales: int | None = None
    feather_px: int | None = None
    blank: bool = False
    label: str | None = None  # a number or a name
    count: int = 4
    seed: int = 0
    name: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)  # those settings that were given

    @property
    def kind(self) -> Kind:
        """Raises EditError unless one is asked for, and nothing that belongs to another."""
        asked: dict[Kind, object] = {
            "in-paint": self.in_paint,
            "out-paint": self.out_paint,
            "mask": self.mask,
            "super-resolve": self.super_resolve or None,
        }
        kinds = [kind for kind, value in asked.items() if value is not None]
        if len(kinds) != 1:
            raise EditError(
                "say one of --in-paint BOX, --out-paint BOX, --mask FILE, --super-resolve"
                + (f", not {' and '.join(f'--{kind}' for kind in kinds)}" if kinds else "")
            )
        enlarges = self.super_resolve
        for option, given, fits, why in (
            ("--mask-by", self.mask_by, self.mask, "says how to read a --mask"),
            ("--keep-scales", self.keep_scales, enlarges, "belongs to --super-resolve"),
            ("--feather", self.feather_px, not enlarges, "there is no hole to blend into"),
            ("--blank", self.blank or None, not enlarges, "there is no hole to empty"),
        ):
            if given is not None and not fits:
                raise EditError(f"{option} with --{kinds[0]}: {why}")
        return kinds[0]


@dataclass(frozen=True)
class Plan:
    """An edit ready to be made."""

    edit: EditSet
    picture_hw3: np.ndarray  # uint8
    hole_hw: np.ndarray | None  # bool; None where all is enlarged
    scene: Scene

    @property
    def missed(self) -> float:
        """Share of the hole, or of what is to be enlarged, that the model does not see."""
        if self.hole_hw is not None:
            return missed_share(self.hole_hw, self.scene.window)
        height, width = self.picture_hw3.shape[:2]
        return 1 - self.scene.window.size**2 / (height * width)


def plan_edit(
    asked: EditOptions,
    record: Trial | ImportedModel,
    names: Names | None,
    weights_sha256: str,
    tokenizer_sha256: str,
) -> Plan:
    """Check everything that can be before a weight is read. Raises ValueError, OSError."""
    if not record.family.edits:
        raise ValueError(
            f"{record.name} is a {record.family.name} model: it cannot keep some tokens and draw "
            "the others, so it edits no picture"
        )
    kind, t = asked.kind, record.tokenizer
    label = _label(asked, record, names)
    no_class = "it pulls towards a class: say which, with --class N"
    given = sampling_of(record.family, asked.sampling)
    sampling = fitting(given, record, None if asked.label is not None else no_class)
    record.family.frames(record.spec, sampling)  # raises where a list has another length
    content = asked.image.read_bytes()
    picture_hw3 = np.asarray(_decoded(asked.image, content))
    height, width = picture_hw3.shape[:2]
    window = None if asked.window is None else read_window(asked.window, width, height)
    hole_hw, box, mask_sha256 = None, None, None
    if kind == "super-resolve":
        scene = scene_to_enlarge(picture_hw3, t, window, asked.keep_scales)
    else:
        hole_hw, box, mask_sha256 = _hole(asked, width, height)
        outpaint = kind == "out-paint"
        scene = scene_to_paint(picture_hw3, hole_hw, t, outpaint, window, asked.blank)
        feather_in(scene.window, asked.feather_px)  # one that does not fit is refused at once
    edit = EditSet(
        name=asked.name or name_for(asked.image),
        kind=kind,
        image_sha256=_sha256(content),
        box=box,
        mask_sha256=mask_sha256,
        mask_by=asked.mask_by,
        window=scene.window,
        label=label,
        kept_scales=_whole_scales(scene, t.pyramid.lengths) if hole_hw is None else None,
        feather_px=asked.feather_px,
        blank=asked.blank,
        count=asked.count,
        seed=asked.seed,
        sampling=sampling,
        weights_sha256=weights_sha256,
        tokenizer_sha256=tokenizer_sha256,
    )
    return Plan(edit, picture_hw3, hole_hw, scene)


def name_for(image: Path) -> str:
    """A folder's name out of a file's. Raises ValueError where nothing of it can be used."""
    letters = unicodedata.normalize("NFKD", image.stem.lower())
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    name = re.sub(r"[^a-z0-9._-]+", "-", plain).lstrip("._-")[:64].rstrip("._-")
    if not name:
        raise ValueError(f"{image.name}: no letter or digit to name the edit by: give --name")
    return name


def _label(asked: EditOptions, record: Trial | ImportedModel, names: Names | None) -> int:
    if asked.label is None:
        if never_without(record):
            raise ValueError(
                f"{record.name} was trained with label_drop = 0: it always knew the class and "
                "cannot go by the picture alone. Say which to paint: --class N, 0 to "
                f"{record.classes - 1}"
            )
        return record.classes
    try:
        return class_number(asked.label, names, record.classes)
    except ValueError as error:
        raise ValueError(
            f"--class {asked.label}: {error}; without --class it goes by the picture alone"
        ) from error


def _hole(asked: EditOptions, width: int, height: int) -> tuple[np.ndarray, Box | None, str | None]:
    if asked.mask is None:
        box = read_box(asked.in_paint or asked.out_paint or "", width, height)
        return box_hole(box, width, height, asked.out_paint is not None), box, None
    content = asked.mask.read_bytes()
    try:
        hole_hw = mask_hole(open_mask(content), width, height, asked.mask_by)
    except Undecodable as error:
        raise EditError(f"{asked.mask}: {error}") from error
    return hole_hw, None, _sha256(content)


def _whole_scales(scene: Scene, lengths: tuple[int, ...]) -> int:
    return sum(bool(part.all()) for part in scene.keep_L.split(lengths))


def _decoded(path: Path, content: bytes) -> Image.Image:
    try:
        return decode(content)
    except Undecodable as error:
        raise EditError(f"{path}: {error}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
