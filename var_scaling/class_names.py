"""Class names of a model: stored in its folder, searched by text, shown in messages. No torch.

A class is identified by its number; its name comes from the data. Digits always mean the number: a
class whose name is digits (a folder `10`) is given as `name:10`.
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from var_scaling.disk import read_json, write_json
from var_scaling.text import one_line

CLASSES = "classes.json"
PREFIX = "name:"  # the rest is a name, even if it is digits
_MAX_NAMES = 5  # in a message
_MAX_LABEL_LENGTH = 30  # characters next to a row of an image grid
_NO_NAMES = (
    "No class names are known for this model: generated images have none, and imported weights get "
    "them with `var-scaling import ... --classes FILE`"
)

Names = Sequence[str]  # by class number


def save_names(folder: Path, names: Names | None, data: str) -> None:
    """Write the names and the name of their `data` to `folder`. Without names, write nothing."""
    if names is not None:
        write_json(folder / CLASSES, {"format": 1, "data": data, "names": list(names)})


def load_names(folder: Path, classes: int) -> tuple[str, ...] | None:
    """The names in `folder`, one per class; None if it has none.

    Raises ValueError if the file has another number of names or is not readable.
    """
    path = folder / CLASSES
    return read_names(path, classes) if path.exists() else None


def read_names(path: Path, classes: int) -> tuple[str, ...]:
    """The names in a file, by class number. Raises ValueError, OSError.

    JSON: a list of names, `{"names": [...]}`, or `{"0": "tench", ...}`; of a list of several names
    per class the last is used (`imagenet_class_index.json`). Any other file: one name per line.
    """
    try:
        names = read_json(path) if path.suffix.lower() == ".json" else _lines(path)
    except ValueError as error:
        raise ValueError(f"{path}: not readable: {error}") from error
    if isinstance(names, dict) and "names" in names:
        names = names["names"]
    elif isinstance(names, dict):
        # {"0": "tench"} or {"0": ["n01440764", "tench"]}. A missing number gives None, which the
        # check below refuses.
        numbered = [names.get(str(number)) for number in range(len(names))]
        names = [item[-1] if isinstance(item, list) and item else item for item in numbered]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: must be a JSON list of names, one per class, in class order")
    if len(names) != classes:
        raise ValueError(f"{path}: has {len(names):,} names; the model has {classes:,} classes")
    return tuple(names)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def class_number(word: str, names: Names | None, classes: int, allowed: str = "") -> int:
    """The number of the class that `word` (a number or a name) gives. Raises ValueError.

    `allowed`: the accepted syntax, for the message, if more than a number is accepted.
    """
    if re.fullmatch("[0-9]+", word):
        if int(word) >= classes:
            raise ValueError(
                f"the model has classes 0 to {classes - 1}; there is no class {int(word)}"
            )
        return int(word)
    if names is None:
        allowed = allowed or f"0 to {classes - 1}"
        raise ValueError(f"{word!r} is not a class; allowed: {allowed}. {_NO_NAMES}")
    name = word.removeprefix(PREFIX)
    normalized = normalize_name(name)
    # An exact match first: names of two classes may differ in case alone.
    matches = [number for number, other in enumerate(names) if other == name] or [
        number for number, other in enumerate(names) if normalize_name(other) == normalized
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        labels = ", ".join(class_label(number, names) for number in matches[:_MAX_NAMES])
        raise ValueError(f"{name!r} names {len(matches)} classes ({labels}); give the number")
    similar = _similar_classes(name, names)
    labels = ", ".join(class_label(number, names) for number in similar[:_MAX_NAMES])
    more = ", …" if len(similar) > _MAX_NAMES else ""
    hint = f"similar ({len(similar)}): {labels}{more}"
    raise ValueError(
        f"{name!r} is none of the {len(names):,} classes; "
        + (hint if similar else f"the first is {class_label(0, names)}")
    )


def _similar_classes(name: str, names: Names) -> list[int]:
    """The classes whose names contain `name` or are similar to it."""
    folded = [other.casefold() for other in names]
    similar = difflib.get_close_matches(name.casefold(), folded, n=_MAX_NAMES)
    # One or two letters are part of too many names.
    part = name.casefold() if len(name) > 2 else None
    return [
        number
        for number, other in enumerate(folded)
        if other in similar or (part is not None and part in other)
    ]


def class_order_warning(model: Names | None, data: Names | None) -> str | None:
    """A warning if class k of the model may not be class k of the data; None if it is.

    Raises ValueError if both have the same names in a different order.
    """
    # Conditional losses of class k are wrong, without any error, if k is another class in the data.
    if model is not None and data is not None:
        if list(model) == list(data):
            return None
        if sorted(model) == sorted(data):
            first = next(number for number, name in enumerate(model) if name != data[number])
            raise ValueError(
                "the data has the classes of the model in a different order (class "
                f"{class_label(first, model)} of the model is {one_line(data[first])} of the data)"
                ", so losses would use wrong labels. Rename the folders so that their sorted order "
                "is the same"
            )
        return (
            f"the model's classes have other names than the data's (class 0: {one_line(model[0])}"
            f", {one_line(data[0])}): conditional scores are valid only if the order is the same"
        )
    return (
        "the order of the model's classes cannot be compared with the data's, because one of them "
        "has no class names: conditional scores are valid only if the order is the same"
    )


def class_label(label: int, names: Names | None) -> str:
    """A class in a message: its number, and its name if it has one."""
    return str(label) if names is None else f"{label} {one_line(names[label])}"


def short_class_label(label: int, names: Names | None) -> str:
    """The same, cut to the width of the margin of an image grid."""
    text = class_label(label, names)
    return text if len(text) <= _MAX_LABEL_LENGTH else text[: _MAX_LABEL_LENGTH - 1] + "…"


def class_fields(label: int, names: Names | None) -> dict[str, int | str]:
    """A class in a JSON record."""
    return {"class": label, **({} if names is None else {"class_name": names[label]})}


def normalize_name(name: str) -> str:
    """Equal for names that differ only in case or Unicode form; single letters keep their case."""
    normalized = unicodedata.normalize("NFC", name)
    return normalized if len(normalized) == 1 else normalized.casefold()
