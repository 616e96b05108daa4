"""A family by its name, a record by its family. No torch."""

import importlib
import json
from functools import cache
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, TypeAdapter, ValidationInfo

from var_scaling.models.base import ModelFamily, ModelRecord, SamplingRecord
from var_scaling.record import read_as

FAMILIES = {
    "var": "var_scaling.models.var.family",
    "ar": "var_scaling.models.ar.family",
    "dit": "var_scaling.models.dit.family",
}


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


def _read_model(value: Any, info: ValidationInfo) -> Any:
    return read_as(value, info, "family", lambda name: family_named(name).config)


def _read_sampling(value: Any, info: ValidationInfo) -> Any:
    return read_as(value, info, "family", lambda name: family_named(name).sampling)


def sampling_from(content: dict[str, Any]) -> SamplingRecord:
    """The settings that a manifest holds. Raises ValueError."""
    adapter: TypeAdapter[SamplingRecord] = TypeAdapter(AnySampling)
    return adapter.validate_json(json.dumps(content))


AnyModel = Annotated[SerializeAsAny[ModelRecord], BeforeValidator(_read_model)]
AnySampling = Annotated[SerializeAsAny[SamplingRecord], BeforeValidator(_read_sampling)]
