"""Base class of all records: frozen, strict, JSON, with errors that name what is allowed."""

import hashlib
import json
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

_RENAMED = {  # fields of an earlier version: the error message gives the new name
    "batch": "batch_size",
    "clip": "grad_clip",
    "codes": "codebook_size",
    "images_at_once": "micro_batch_size",
    "label_drop": "class_dropout_prob",
    "sides": "patch_nums",
}

# A name becomes the name of a folder, so only safe characters are allowed.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Record(BaseModel):
    """Frozen data that describes what to run; never where or how it runs."""

    # frozen: a record that was checked stays valid. forbid: a misspelt field is an error, not a
    # default. strict: "1" is no integer. allow_inf_nan: NaN is not JSON.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed, validated (pydantic's own `model_copy` is not)."""
        return type(self).model_validate({**dict(self), **(update or {})})

    def fingerprint(self) -> str:
        """12 hex digits of a SHA-256 over all fields: equal records have equal fingerprints."""
        # sort_keys: the order of the fields in the class must not change the fingerprint.
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def difference(recorded: Any, expected: Any, path: str = "") -> list[str]:
    """One line per field in which two JSON values differ; empty if and only if they are equal."""
    if isinstance(recorded, dict) and isinstance(expected, dict):
        lines = []
        for key in sorted(recorded.keys() | expected.keys()):
            inner = f"{path}.{key}" if path else key
            lines += difference(recorded.get(key, "absent"), expected.get(key, "absent"), inner)
        return lines
    if recorded == expected:
        return []
    return [f"{path}: recorded {json.dumps(recorded)}, expected {json.dumps(expected)}"]


def unknown_field(record: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """The new name of a renamed field, else the fields that are allowed."""
    allowed = fields_at(record, location[:-1])
    new = _RENAMED.get(str(location[-1]))
    if new in allowed:
        return f"no such field: it is now called {new}"
    return f"no such field; allowed: {', '.join(allowed)}"


def fields_at(record: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the record at `location`, the path of an error."""
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


def validate_tagged(
    value: Any, info: ValidationInfo, tag: str, record_of: Callable[[str], type[Record]]
) -> Any:
    """For a BeforeValidator: `value` as a record of the class that its field `tag` names.

    A field can thus contain records of user-defined classes. Raises ValueError.
    """
    if isinstance(value, Record):
        name = getattr(value, tag, None)
    elif isinstance(value, Mapping):
        name = value.get(tag)
    else:
        return value
    if not isinstance(name, str):
        raise ValueError(f"`{tag}` is missing: it names the kind of this record")
    expected = record_of(name)
    if isinstance(value, Record):
        if not isinstance(value, expected):
            raise ValueError(
                f"{tag} = {name}: needs a {expected.__name__}, not a {type(value).__name__}"
            )
        return value
    try:
        # In JSON a tuple is an array: strict validation accepts it only from JSON.
        if info.mode == "json":
            return expected.model_validate_json(json.dumps(value))
        return expected.model_validate(value)
    except ValidationError as error:
        raise _with_fields(error, expected) from error


def _with_fields(error: ValidationError, record: type[Record]) -> ValidationError:
    """The error with the allowed fields in its text: `explain` cannot look into this record."""
    lines = []
    for item in error.errors():
        message = item["msg"]
        if item["type"] == "extra_forbidden":
            message = unknown_field(record, item["loc"])
        kind: Any = PydanticCustomError("nested_record", "{message}", {"message": message})
        # loc is the path inside this record; pydantic puts the path of the outer field before it.
        lines.append(InitErrorDetails(type=kind, loc=item["loc"], input=item["input"]))
    return ValidationError.from_exception_data(error.title, lines)
