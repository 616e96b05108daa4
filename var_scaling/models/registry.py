"""A family by its name, a record by its family. No torch."""

import importlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, SerializeAsAny, TypeAdapter, ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from var_scaling.models.base import ModelFamily, ModelRecord, SamplingRecord
from var_scaling.record import Record

FAMILIES = {"var": "var_scaling.models.var.family"}


@cache
def family_named(name: str) -> ModelFamily:
    """The family `name`: one of FAMILIES, or the FAMILY of the module of that name.

    Raises ValueError.
    """
    known = ", ".join(FAMILIES)
    try:
        module = importlib.import_module(FAMILIES.get(name, name))
    except ImportError as error:
        raise ValueError(
            f"{error}: a family is one of {known}, or a module of your own that Python finds "
            "(put its folder on PYTHONPATH)"
        ) from error
    family = getattr(module, "FAMILY", None)
    if not isinstance(family, ModelFamily):
        raise ValueError(f"module {name} has no FAMILY, an object of a subclass of ModelFamily")
    return family


def family_of(record: ModelRecord | SamplingRecord) -> ModelFamily:
    return family_named(record.family)


R = TypeVar("R", bound=Record)


def _read(value: Any, info: ValidationInfo, what: str) -> Any:
    """`value` as the record that its family has for `what`."""
    if isinstance(value, Record):
        name = getattr(value, "family", None)
    elif isinstance(value, Mapping):
        name = value.get("family")
    else:
        return value
    if not isinstance(name, str):
        raise ValueError("`family` is missing: it says which kind of model this is")
    wanted = getattr(family_named(name), what)
    if isinstance(value, Record):
        if not isinstance(value, wanted):
            raise ValueError(f"family {name} has {wanted.__name__}, not {type(value).__name__}")
        return value
    try:
        if info.mode == "json":
            return wanted.model_validate_json(json.dumps(value))
        return wanted.model_validate(value)
    except ValidationError as error:
        raise _with_fields(error, wanted) from error


def _with_fields(error: ValidationError, wanted: type[Record]) -> ValidationError:
    """The error with the allowed fields in its words: outside nobody knows the family's record."""
    allowed = ", ".join(sorted(wanted.model_fields))
    lines = []
    for item in error.errors():
        kind: Any = PydanticCustomError(
            "family_record",
            "{message}",
            {
                "message": f"no such field; allowed: {allowed}"
                if item["type"] == "extra_forbidden"
                else item["msg"]
            },
        )
        lines.append(InitErrorDetails(type=kind, loc=item["loc"], input=item["input"]))
    return ValidationError.from_exception_data(error.title, lines)


def _read_model(value: Any, info: ValidationInfo) -> Any:
    return _read(value, info, "config")


def _read_sampling(value: Any, info: ValidationInfo) -> Any:
    return _read(value, info, "sampling")


def sampling_from(content: dict[str, Any]) -> SamplingRecord:
    """The settings that a manifest holds. Raises ValueError."""
    adapter: TypeAdapter[SamplingRecord] = TypeAdapter(AnySampling)
    return adapter.validate_json(json.dumps(content))


AnyModel = Annotated[SerializeAsAny[ModelRecord], BeforeValidator(_read_model)]
AnySampling = Annotated[SerializeAsAny[SamplingRecord], BeforeValidator(_read_sampling)]
