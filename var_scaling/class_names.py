"""The names of a model's classes: kept beside it, found by a word, shown to people. No torch.

A class is its number; the name is what the data called it. Digits always mean the number: a class
whose name is digits (a folder `10`) is found by its name as `name:10`.
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from var_scaling.disk import read_json, write_json
from var_scaling.text import one_line

CLASSES = "classes.json"
PREFIX = "name:"  # what follows is a name, whatever it looks like
_NEAR = 5  # names in a message
_MARGIN = 30  # letters beside a row of a picture
_UNKNOWN = (
    "No names of classes are known for this model: made images have none, and imported weights get "
    "them with `var-scaling import ... --classes FILE`"
)

Names = Sequence[str]  # by class number


def keep_names(folder: Path, names: Names | None, data: str) -> None:
    """Write the names into `folder`, with the data they are of; nothing where there are none."""
    if names is not None:
        write_json(folder / CLASSES, {"format": 1, "data": data, "names": list(names)})


def names_of(folder: Path, classes: int) -> tuple[str, ...] | None:
    """The names kept in `folder`, one for each class; None where there are none.

    Raises ValueError where the file is of another number of classes, or not readable.
    """
    path = folder / CLASSES
    return read_names(path, classes) if path.exists() else None


def read_names(path: Path, classes: int) -> tuple[str, ...]:
    """The names in a file, by class number. Raises ValueError, OSError.

    JSON: a list of names, `{"names": [...]}`, or `{"0": "tench", ...}` where the last of several
    names counts (`imagenet_class_index.json`). Any other file: a name a line.
    """
    try:
        found = read_json(path) if path.suffix.lower() == ".json" else _lines(path)
    except ValueError as error:
        raise ValueError(f"{path}: not readable: {error}") from error
    if isinstance(found, dict) and "names" in found:
        found = found["names"]
    elif isinstance(found, dict):
        numbered = [found.get(str(number)) for number in range(len(found))]
        found = [one[-1] if isinstance(one, list) and one else one for one in numbered]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path}: wanted a JSON list of names, one for each class, in their order")
    if len(found) != classes:
        raise ValueError(f"{path}: has {len(found):,} names; the model knows {classes:,} classes")
    return tuple(found)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def class_number(word: str, names: Names | None, classes: int, wanted: str = "") -> int:
    """The class that `word` means: a number, or a name. Raises ValueError, which says why not.

    `wanted`: what may be said, for the message, where that is more than a number.
    """
    if re.fullmatch("[0-9]+", word):
        if int(word) >= classes:
            raise ValueError(f"the model knows 0 to {classes - 1}; no class is {int(word)}")
        return int(word)
    if names is None:
        wanted = wanted or f"0 to {classes - 1}"
        raise ValueError(f"{word!r} is no class; wanted {wanted}. {_UNKNOWN}")
    name = word.removeprefix(PREFIX)
    found = [number for number, one in enumerate(names) if one == name]
    found = found or [number for number, one in enumerate(names) if alike(one) == alike(name)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(called(number, names) for number in found[:_NEAR])
        raise ValueError(f"{name!r} names {len(found)} classes ({listed}); give the number")
    near = _near(name, names)
    listed = ", ".join(called(number, names) for number in near[:_NEAR])
    more = ", …" if len(near) > _NEAR else ""
    raise ValueError(
        f"{name!r} is none of the {len(names):,} classes; "
        + (f"near it ({len(near)}): {listed}{more}" if near else f"the first is {called(0, names)}")
    )


def _near(name: str, names: Names) -> list[int]:
    """The classes whose names hold the word, or are like it."""
    plain = [one.casefold() for one in names]
    like = difflib.get_close_matches(name.casefold(), plain, n=_NEAR)
    inside = name.casefold() if len(name) > 2 else None
    return [
        number
        for number, one in enumerate(plain)
        if one in like or (inside is not None and inside in one)
    ]


def order_doubt(model: Names | None, data: Names | None) -> str | None:
    """Why class 7 of the model need not be class 7 of the data; None where it is.

    Raises ValueError where both have the same names in another order.
    """
    if model is not None and data is not None:
        if list(model) == list(data):
            return None
        if sorted(model) == sorted(data):
            first = next(number for number, name in enumerate(model) if name != data[number])
            raise ValueError(
                "the classes of the data are those of the model in another order (class "
                f"{called(first, model)} of the model is {one_line(data[first])} of the data): "
                "losses would be those of wrong labels. Rename the folders so that they sort alike"
            )
        return (
            f"the model's classes have other names than the data's (class 0: {one_line(model[0])}"
            f", {one_line(data[0])}): numbers given the class hold only if the order is the same"
        )
    return (
        "the order of the model's classes cannot be compared with the data's, for one of them has "
        "no names: numbers given the class hold only if the order is the same"
    )


def called(label: int, names: Names | None) -> str:
    """A class for people: its number, and its name where it has one."""
    return str(label) if names is None else f"{label} {one_line(names[label])}"


def brief(label: int, names: Names | None) -> str:
    """The same, short enough for the margin of a picture."""
    text = called(label, names)
    return text if len(text) <= _MARGIN else text[: _MARGIN - 1] + "…"


def named(label: int, names: Names | None) -> dict[str, int | str]:
    """The same, for a JSON record."""
    return {"class": label, **({} if names is None else {"class_name": names[label]})}


def alike(name: str) -> str:
    """Equal for names that differ only in capitals or Unicode form; single letters keep theirs."""
    plain = unicodedata.normalize("NFC", name)
    return plain if len(plain) == 1 else plain.casefold()
