"""The sampling record of a model from what was given, and whether guidance can do anything.

No torch.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from var_scaling.experiment import ImportedModel, Trial
from var_scaling.models.base import ModelFamily, SamplingRecord

_OTHER_KIND = ("tuple_type", "float_type", "int_type")  # pydantic's names of faults


def never_without(record: Trial | ImportedModel) -> bool:
    """Whether the model was always told a class while it learnt."""
    return isinstance(record, Trial) and record.class_dropout_prob == 0


def fitting(
    sampling: SamplingRecord, record: Trial | ImportedModel, no_class: str | None
) -> SamplingRecord:
    """`sampling`, its guidance 0 where it can do nothing.

    `no_class` says why there is no class to pull towards, where there is none. Raises ValueError if
    guidance was asked for nevertheless.
    """
    why = no_class
    if why is None and never_without(record):
        why = f"{record.name} was trained with label_drop = 0 and has nothing to pull away from"
    if why is None or not sampling.guided:
        return sampling
    weights = sampling.guidance if isinstance(sampling.guidance, tuple) else (sampling.guidance,)
    if "guidance" in sampling.model_fields_set:
        raise ValueError(f"guidance {', '.join(f'{weight:g}' for weight in weights)}: {why}")
    return sampling.model_copy(update={"guidance": 0.0})


def sampling_of(family: ModelFamily, given: Mapping[str, Any]) -> SamplingRecord:
    """The family's record; what was not given is not among its `model_fields_set`.

    Raises ValueError where a value is wrong, or the family has no such setting.
    """
    try:
        return family.sampling(**given)
    except ValidationError as error:
        # Of a field that may be one thing or another, pydantic complains for both.
        faults = [fault for fault in error.errors() if fault["type"] not in _OTHER_KIND]
        lines = [_line(fault, family) for fault in faults]
        raise ValueError("\n".join(lines)) from error


def _line(fault: ErrorDetails, family: ModelFamily) -> str:
    if fault["type"] == "extra_forbidden":
        fields = [name for name in family.sampling.model_fields if name != "family"]
        return (
            f"--{_option(fault)}: the family {family.name} has no such setting; it has "
            f"{', '.join(fields)}"
        )
    return f"--{_option(fault)} {fault['input']}: {fault['msg']}"


def _option(fault: ErrorDetails) -> str:
    return str(fault["loc"][0]).replace("_", "-")
