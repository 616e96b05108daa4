"""Build a model's sampling record from the given settings; decide whether guidance applies.

Does not import torch.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from var_scaling.experiment import ImportedModel, Trial
from var_scaling.models.base import ModelFamily, SamplingRecord

_TYPE_ERRORS = ("tuple_type", "float_type", "int_type")  # names of pydantic


def only_conditional(record: Trial | ImportedModel) -> bool:
    """Whether the model was trained without the null class, so that guidance cannot be computed."""
    return isinstance(record, Trial) and record.class_dropout_prob == 0


def with_default_precision(
    given: Mapping[str, Any], record: Trial | ImportedModel, device: str
) -> dict[str, Any]:
    """`given`, on a GPU with the precision of the trial's training unless one is given.

    The record of what is drawn has the precision, so it does not depend on later defaults.
    """
    if device != "cuda" or not isinstance(record, Trial):
        return dict(given)
    return {"precision": record.precision, **given}


def resolve_guidance(
    sampling: SamplingRecord, record: Trial | ImportedModel, no_class: str | None
) -> SamplingRecord:
    """`sampling`, with guidance 0 if guidance cannot be computed.

    `no_class`: the reason if no class was given, else None. Raises ValueError if guidance cannot be
    computed but was given explicitly.
    """
    reason = no_class
    if reason is None and only_conditional(record):
        reason = (
            f"{record.name} was trained with class_dropout_prob = 0, so it has no unconditional "
            "prediction, which guidance needs. Leave guidance out"
        )
    if reason is None or not sampling.guided:
        return sampling
    weights = sampling.guidance if isinstance(sampling.guidance, tuple) else (sampling.guidance,)
    # The default guidance of a family may be above 0 (VAR: 1.5); it is switched off silently.
    if "guidance" in sampling.model_fields_set:
        raise ValueError(f"guidance {', '.join(f'{weight:g}' for weight in weights)}: {reason}")
    return sampling.model_copy(update={"guidance": 0.0})


def parse_sampling(family: ModelFamily, given: Mapping[str, Any]) -> SamplingRecord:
    """The family's sampling record; only the given settings are in its `model_fields_set`.

    Raises ValueError for a wrong value, or a setting that the family does not have.
    """
    try:
        return family.sampling(**given)
    except ValidationError as error:
        # For a field of a union type, such as float | tuple, pydantic reports an error for each
        # member of the union: drop those that only say that the other member's type was expected.
        errors = [details for details in error.errors() if details["type"] not in _TYPE_ERRORS]
        lines = [_message(details, family) for details in errors]
        raise ValueError("\n".join(lines)) from error


def _message(error: ErrorDetails, family: ModelFamily) -> str:
    if error["type"] == "extra_forbidden":
        fields = [name for name in family.sampling.model_fields if name != "family"]
        return (
            f"--{_option(error)}: the family {family.name} has no such setting; its settings are "
            f"{', '.join(fields)}"
        )
    return f"--{_option(error)} {error['input']}: {error['msg']}"


def _option(error: ErrorDetails) -> str:
    return str(error["loc"][0]).replace("_", "-")
