"""Which samples a sweep draws of its models, and what they are compared with. No torch."""

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from var_scaling.config import AnyTokenizer
from var_scaling.datasets import Data
from var_scaling.experiment.trial import Trial
from var_scaling.models.base import SamplingRecord
from var_scaling.models.registry import AnySampling
from var_scaling.record import Name, Record

ExtractorName = Literal["inception", "seeded"]


class Scoring(Record):
    """A set of samples of each trial whose family has settings here, and its distance to real
    images: those held out, as the trial's data has them.
    """

    name: Name  # of the set of samples
    sampling: tuple[AnySampling, ...]  # one for each family that is sampled
    count: PositiveInt  # images of each class
    seed: NonNegativeInt = 0
    raw: bool = False  # the last weights of the trials that average theirs, and of no others
    extractor: ExtractorName = "seeded"
    only: tuple[Name, ...] = ()  # trials; none named: all

    @model_validator(mode="after")
    def _one_of_each_family(self) -> Self:
        families = [one.family for one in self.sampling]
        if len(set(families)) < len(families):
            raise ValueError(f"sampling: {', '.join(families)}: one of each family")
        return self

    def sampling_of(self, trial: Trial) -> SamplingRecord | None:
        """How `trial` is sampled; None where this set is not drawn of it."""
        if (self.only and trial.name not in self.only) or (self.raw and not trial.weight_average):
            return None
        return next((one for one in self.sampling if one.family == trial.model.family), None)


class ScoredSet(Record):
    """One set of samples of one trial, and its distance: the config of a stage."""

    trial: Trial
    scoring: Scoring

    @property
    def name(self) -> str:
        return f"{self.trial.name}/{self.scoring.name}"

    @property
    def sampling(self) -> SamplingRecord:
        sampling = self.scoring.sampling_of(self.trial)
        assert sampling is not None
        return sampling


class Floor(Record):
    """The distance of a tokenizer's reconstructions to images held out, beside that of the images
    that it reconstructs: the config of a stage. No sample of a model on it is nearer than its
    reconstructions, but by chance.
    """

    tokenizer: AnyTokenizer
    data: Data
    images: PositiveInt
    extractor: ExtractorName

    @property
    def name(self) -> str:
        return f"{self.tokenizer.name}/{self.data.name}-{self.extractor}-{self.images}"
