"""Turn the options and files of `edit` into a record, and into the input of the model.

Shapes: h, w height and width of the picture, which is the image to edit.
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

from pipelines.sampling.settings import only_conditional, parse_sampling, resolve_guidance
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
MaskBy = Literal["light", "alpha"]


class EditSet(Record):
    """Everything the results of an edit depend on.

    Pixel coordinates refer to the picture after its EXIF rotation.
    """

    format: Literal[2] = 2  # of the record on disk; 1 had no `sampling.family`
    name: Name
    kind: Kind
    image_sha256: Sha256  # of the file
    box: Box | None = None  # filled, or kept when out-painting
    mask_sha256: Sha256 | None = None  # of the file
    mask_by: MaskBy | None = None
    window: Window  # the square of the picture that the model sees
    label: NonNegativeInt  # the class; the number of classes means unconditional
    kept_scales: PositiveInt | None = None  # for super-resolution
    feather_px: NonNegativeInt | None = None  # None: 1/32 of the window
    blank: bool = False  # whether the hole was cleared before the picture was encoded
    count: PositiveInt
    seed: NonNegativeInt
    sampling: AnySampling
    weights_sha256: Sha256
    tokenizer_sha256: Sha256


@dataclass(frozen=True)
class EditOptions:
    """The options of `edit`. Of in_paint, out_paint, mask and super_resolve, one must be given."""

    image: Path
    in_paint: str | None = None
    out_paint: str | None = None
    mask: Path | None = None
    super_resolve: bool = False
    mask_by: MaskBy | None = None
    window: str | None = None
    keep_scales: int | None = None
    feather_px: int | None = None
    blank: bool = False
    label: str | None = None  # a number or a name
    count: int = 4
    seed: int = 0
    name: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)  # only the settings given

    @property
    def kind(self) -> Kind:
        """Raises EditError unless one kind is given, and no option of another kind."""
        values: dict[Kind, object] = {
            "in-paint": self.in_paint,
            "out-paint": self.out_paint,
            "mask": self.mask,
            "super-resolve": self.super_resolve or None,
        }
        kinds = [kind for kind, value in values.items() if value is not None]
        if len(kinds) != 1:
            raise EditError(
                "give one of --in-paint BOX, --out-paint BOX, --mask FILE, --super-resolve"
                + (f", not {' and '.join(f'--{kind}' for kind in kinds)}" if kinds else "")
            )
        enlarges = self.super_resolve
        # (option, its value, whether the kind of edit allows it, message)
        for option, value, allowed, reason in (
            ("--mask-by", self.mask_by, self.mask, "is only an option of --mask"),
            ("--keep-scales", self.keep_scales, enlarges, "is only an option of --super-resolve"),
            ("--feather", self.feather_px, not enlarges, "there is no hole to blend"),
            ("--blank", self.blank or None, not enlarges, "there is no hole to clear"),
        ):
            if value is not None and not allowed:
                raise EditError(f"{option} with --{kinds[0]}: {reason}")
        return kinds[0]


@dataclass(frozen=True)
class Plan:
    """A checked edit and the input of the model."""

    edit: EditSet
    picture_hw3: np.ndarray  # uint8
    hole_hw: np.ndarray | None  # bool; None for super-resolution
    scene: Scene

    @property
    def unseen_share(self) -> float:
        """Share of the hole, or of the picture to enlarge, outside the window."""
        if self.hole_hw is not None:
            return missed_share(self.hole_hw, self.scene.window)
        height, width = self.picture_hw3.shape[:2]
        return 1 - self.scene.window.size**2 / (height * width)


def plan_edit(
    options: EditOptions,
    record: Trial | ImportedModel,
    names: Names | None,
    weights_sha256: str,
    tokenizer_sha256: str,
) -> Plan:
    """Check everything that does not need the weights. Raises ValueError, OSError."""
    if not record.family.supports_editing:
        raise ValueError(
            f"{record.name} is a {record.family.name} model, which cannot keep some tokens and "
            "sample the others: use a model of a family that supports editing, such as VAR"
        )
    kind, t = options.kind, record.tokenizer
    label = _label(options, record, names)
    no_class = "guidance needs a class: give it with --class N"
    given = parse_sampling(record.family, options.sampling)
    sampling = resolve_guidance(given, record, None if options.label is not None else no_class)
    record.family.frames(record.spec, sampling)  # raises for a list of the wrong length
    # Read once, so that the recorded hash and the pixels are of the same bytes.
    content = options.image.read_bytes()
    picture_hw3 = np.asarray(_decoded(options.image, content))
    height, width = picture_hw3.shape[:2]
    window = None if options.window is None else read_window(options.window, width, height)
    hole_hw, box, mask_sha256 = None, None, None
    if kind == "super-resolve":
        scene = scene_to_enlarge(picture_hw3, t, window, options.keep_scales)
    else:
        hole_hw, box, mask_sha256 = _hole(options, width, height)
        outpaint = kind == "out-paint"
        scene = scene_to_paint(picture_hw3, hole_hw, t, outpaint, window, options.blank)
        feather_in(scene.window, options.feather_px)  # raises if the border is too wide
    edit = EditSet(
        name=options.name or edit_name(options.image),
        kind=kind,
        image_sha256=_sha256(content),
        box=box,
        mask_sha256=mask_sha256,
        mask_by=options.mask_by,
        window=scene.window,
        label=label,
        kept_scales=_kept_scales(scene, t.pyramid.lengths) if hole_hw is None else None,
        feather_px=options.feather_px,
        blank=options.blank,
        count=options.count,
        seed=options.seed,
        sampling=sampling,
        weights_sha256=weights_sha256,
        tokenizer_sha256=tokenizer_sha256,
    )
    return Plan(edit, picture_hw3, hole_hw, scene)


def edit_name(image: Path) -> str:
    """A folder name made from the file name. Raises ValueError if no character can be used."""
    # NFKD separates an accent from its letter, so the letter is kept without it. The name of a
    # record has at most 64 characters of a-z, 0-9, '.', '_', '-'.
    letters = unicodedata.normalize("NFKD", image.stem.lower())
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    name = re.sub(r"[^a-z0-9._-]+", "-", plain).lstrip("._-")[:64].rstrip("._-")
    if not name:
        raise ValueError(f"{image.name}: has no letter or digit to name the edit: give --name")
    return name


def _label(options: EditOptions, record: Trial | ImportedModel, names: Names | None) -> int:
    if options.label is None:
        if only_conditional(record):
            raise ValueError(
                f"{record.name} was trained with class_dropout_prob = 0, so it cannot sample "
                "without a class. Give the class of the new content: --class N, 0 to "
                f"{record.classes - 1}"
            )
        return record.classes  # the label of the null class
    try:
        return class_number(options.label, names, record.classes)
    except ValueError as error:
        raise ValueError(
            f"--class {options.label}: {error}; leave out --class to sample unconditionally"
        ) from error


def _hole(
    options: EditOptions, width: int, height: int
) -> tuple[np.ndarray, Box | None, str | None]:
    if options.mask is None:
        box = read_box(options.in_paint or options.out_paint or "", width, height)
        return box_hole(box, width, height, options.out_paint is not None), box, None
    content = options.mask.read_bytes()
    try:
        hole_hw = mask_hole(open_mask(content), width, height, options.mask_by)
    except Undecodable as error:
        raise EditError(f"{options.mask}: {error}") from error
    return hole_hw, None, _sha256(content)


def _kept_scales(scene: Scene, lengths: tuple[int, ...]) -> int:
    # Super-resolution keeps whole scales: a scale is kept if all its tokens are.
    return sum(bool(part.all()) for part in scene.keep_L.split(lengths))


def _decoded(path: Path, content: bytes) -> Image.Image:
    try:
        return decode(content)
    except Undecodable as error:
        raise EditError(f"{path}: {error}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
