"""What every record obeys: frozen, strict, JSON both ways, errors that say what is allowed."""

import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

# A name becomes a folder and a column of a table, so it is kept to what both can hold.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Record(BaseModel):
    """Frozen data that describes a thing wanted; never where or how it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A record with some fields changed, checked like any other (pydantic's own does not)."""
        return type(self).model_validate({**dict(self), **(update or {})})

    def fingerprint(self) -> str:
        """Twelve hex digits that change with any field: two records agree iff these do."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def difference(recorded: Any, wanted: Any, path: str = "") -> list[str]:
    """Every place where two JSON values differ, as readable lines; empty iff they are equal."""
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        lines = []
        for key in sorted(recorded.keys() | wanted.keys()):
            inner = f"{path}.{key}" if path else key
            lines += difference(recorded.get(key, "absent"), wanted.get(key, "absent"), inner)
        return lines
    if recorded == wanted:
        return []
    return [f"{path}: recorded {json.dumps(recorded)}, wanted {json.dumps(wanted)}"]


def explain(error: ValidationError, record: type[BaseModel]) -> str:
    """The error in plain lines: `field = value: what is allowed`."""
    lines = []
    for item in error.errors():
        where = ".".join(_named(record, item["loc"])) or record.__name__
        if item["type"] == "extra_forbidden":
            fields = ", ".join(_fields_at(record, item["loc"][:-1]))
            lines.append(f"{where}: no such field; allowed: {fields}")
        elif item["type"] == "missing":
            lines.append(f"{where}: this field is required")
        else:
            lines.append(f"{where} = {_shown(item['input'])}: {item['msg']}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _named(record: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The path of an error as a person would write it: without the tags that tell unions apart."""
    inside = range(len(location) - 1)
    tags = [
        place
        for place in inside
        if isinstance(location[place], str)
        and location[place] not in _fields_at(record, location[:place])
        and not _is_key(record, location[:place])
    ]
    return [str(part) for place, part in enumerate(location) if place not in tags]


def _is_key(record: type[BaseModel], location: tuple[int | str, ...]) -> bool:
    """Whether what follows `location` is a key of a mapping, named by whoever wrote it."""
    if len(location) != 1 or location[0] not in record.model_fields:
        return False
    return typing.get_origin(record.model_fields[str(location[0])].annotation) is dict


def _fields_at(record: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the record that `location` (an error's path) leads to."""
    fields = record.model_fields
    for part in location:
        if isinstance(part, str) and part in fields:
            inner = _records_in(fields[part].annotation)
            fields = {name: field for kind in inner for name, field in kind.model_fields.items()}
    return sorted(fields)


def _records_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in typing.get_args(annotation) for kind in _records_in(part)]
