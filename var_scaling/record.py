"""What every record obeys: frozen, strict, JSON both ways, errors that say what is allowed."""

import hashlib
import json
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

_RENAMED = {  # fields of sweeps and settings written for an earlier version
    "batch": "batch_size",
    "clip": "grad_clip",
    "codes": "codebook_size",
    "images_at_once": "micro_batch_size",
    "label_drop": "class_dropout_prob",
    "sides": "patch_nums",
}

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
            lines.append(f"{where}: {_unknown_field(record, item['loc'])}")
        elif item["type"] == "missing":
            lines.append(f"{where}: this field is required")
        else:
            lines.append(f"{where} = {_shown(item['input'])}: {item['msg']}")
    return "\n".join(lines)


def _unknown_field(record: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """The new name of a renamed field, else the fields that are allowed."""
    allowed = _fields_at(record, location[:-1])
    new = _RENAMED.get(str(location[-1]))
    if new in allowed:
        return f"no such field: it is now called {new}"
    return f"no such field; allowed: {', '.join(allowed)}"


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
    """Whether what follows `location` is a key of a mapping, chosen by the user."""
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


def read_as(
    value: Any, info: ValidationInfo, tag: str, record_of: Callable[[str], type[Record]]
) -> Any:
    """For a BeforeValidator: `value` as the record that its field `tag` leads to.

    So a field may hold records of kinds that are not known here. Raises ValueError.
    """
    if isinstance(value, Record):
        name = getattr(value, tag, None)
    elif isinstance(value, Mapping):
        name = value.get(tag)
    else:
        return value
    if not isinstance(name, str):
        raise ValueError(f"`{tag}` is missing: it says which record this is")
    wanted = record_of(name)
    if isinstance(value, Record):
        if not isinstance(value, wanted):
            raise ValueError(f"{tag} {name} has {wanted.__name__}, not {type(value).__name__}")
        return value
    try:
        if info.mode == "json":
            return wanted.model_validate_json(json.dumps(value))
        return wanted.model_validate(value)
    except ValidationError as error:
        raise _with_fields(error, wanted) from error


def _with_fields(error: ValidationError, wanted: type[Record]) -> ValidationError:
    """The error with the allowed fields in its text: the caller does not know this record."""
    lines = []
    for item in error.errors():
        said = item["msg"]
        if item["type"] == "extra_forbidden":
            said = _unknown_field(wanted, item["loc"])
        kind: Any = PydanticCustomError("nested_record", "{said}", {"said": said})
        lines.append(InitErrorDetails(type=kind, loc=item["loc"], input=item["input"]))
    return ValidationError.from_exception_data(error.title, lines)
