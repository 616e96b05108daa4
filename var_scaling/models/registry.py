"""Look up a model family by its name, and a record's class by its family. Imports no torch."""

import importlib
import json
from functools import cache
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, TypeAdapter, ValidationInfo

from var_scaling.models.base import ModelFamily, ModelRecord, SamplingRecord
from var_scaling.record import validate_tagged

# Module paths, not objects: a family is imported when it is first named.
FAMILIES = {
    "var": "var_scaling.models.var.family",
    "ar": "var_scaling.models.ar.family",
    "dit": "var_scaling.models.dit.family",
}


@cache
def family_named(name: str) -> ModelFamily:
    """The family `name`: a key of FAMILIES, or a module that has an object FAMILY.

    Raises ValueError if the module cannot be imported or has no FAMILY.
    """
    names = ", ".join(FAMILIES)
    try:
        module = importlib.import_module(FAMILIES.get(name, name))
    except ImportError as error:
        raise ValueError(
            f"{error}: a family is one of {names}, or a module of your own that Python can import "
            "(put its folder on PYTHONPATH)"
        ) from error
    family = getattr(module, "FAMILY", None)
    if not isinstance(family, ModelFamily):
        raise ValueError(f"module {name} has no FAMILY, an object of a subclass of ModelFamily")
    return family


def family_of(record: ModelRecord | SamplingRecord) -> ModelFamily:
    return family_named(record.family)


def _read_model(value: Any, info: ValidationInfo) -> Any:
    return validate_tagged(value, info, "family", lambda name: family_named(name).config)


def _read_sampling(value: Any, info: ValidationInfo) -> Any:
    return validate_tagged(value, info, "family", lambda name: family_named(name).sampling)


def sampling_from(content: dict[str, Any]) -> SamplingRecord:
    """The sampling settings in a manifest. Raises ValueError if they are not valid."""
    # Through JSON: records are strict, and only pydantic's JSON mode reads a list as a tuple.
    adapter: TypeAdapter[SamplingRecord] = TypeAdapter(AnySampling)
    return adapter.validate_json(json.dumps(content))


# A field of these types holds the record of any family. Without SerializeAsAny, pydantic would
# write only the fields of the base class.
AnyModel = Annotated[SerializeAsAny[ModelRecord], BeforeValidator(_read_model)]
AnySampling = Annotated[SerializeAsAny[SamplingRecord], BeforeValidator(_read_sampling)]
