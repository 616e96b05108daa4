"""Whether guidance has anything to pull towards and away from. No torch."""

from var_scaling.config import ImportedModel, Trial
from var_scaling.generation.settings import Sampling


def never_without(record: Trial | ImportedModel) -> bool:
    """Whether the model was always told a class while it learnt."""
    return isinstance(record, Trial) and record.label_drop == 0


def fitting(sampling: Sampling, record: Trial | ImportedModel, no_class: str | None) -> Sampling:
    """`sampling`, its guidance 0 where it can do nothing.

    `no_class` says why there is no class to pull towards, where there is none. Raises ValueError if
    guidance was asked for nevertheless.
    """
    why = no_class
    if why is None and never_without(record):
        why = f"{record.name} was trained with label_drop = 0 and has nothing to pull away from"
    weights = sampling.guidance if isinstance(sampling.guidance, tuple) else (sampling.guidance,)
    if why is None or not any(weights):
        return sampling
    if "guidance" in sampling.model_fields_set:
        raise ValueError(f"guidance {', '.join(f'{weight:g}' for weight in weights)}: {why}")
    return sampling.model_copy(update={"guidance": 0.0})
