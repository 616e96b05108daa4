"""What is wrong with a record that a user wrote, field by field."""

import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from var_scaling.record import fields_at, unknown_field


def explain(error: ValidationError, record: type[BaseModel]) -> str:
    """The error as lines `field = value: what is allowed`."""
    lines = []
    for item in error.errors():
        field = ".".join(_field_path(record, item["loc"])) or record.__name__
        if item["type"] == "extra_forbidden":
            lines.append(f"{field}: {unknown_field(record, item['loc'])}")
        elif item["type"] == "missing":
            lines.append(f"{field}: this field is required")
        else:
            lines.append(f"{field} = {_shown(item['input'])}: {item['msg']}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _field_path(record: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The path of an error without the tags that pydantic adds for members of unions."""
    inside = range(len(location) - 1)
    # A part is a tag if the record at this place has no such field and it is no key of a mapping.
    tags = [
        index
        for index in inside
        if isinstance(location[index], str)
        and location[index] not in fields_at(record, location[:index])
        and not _is_key(record, location[:index])
    ]
    return [str(part) for index, part in enumerate(location) if index not in tags]


def _is_key(record: type[BaseModel], location: tuple[int | str, ...]) -> bool:
    """Whether the part after `location` is a key of a mapping, which the user chooses."""
    if len(location) != 1 or location[0] not in record.model_fields:
        return False
    return typing.get_origin(record.model_fields[str(location[0])].annotation) is dict
