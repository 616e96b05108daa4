"""Which samples a sweep draws of its models, and what they are compared with. No torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from var_scaling.config import AnyTokenizer, CacheKind
from var_scaling.datasets import Data
from var_scaling.experiment.trial import Trial
from var_scaling.models.base import SamplingRecord
from var_scaling.models.registry import AnySampling
from var_scaling.recipe import PositiveFloat
from var_scaling.record import Name, Record

ExtractorName = Literal["inception", "seeded", "classifier"]


class FeatureNetwork(Record):
    """A small residual network that learns to name the classes of a data set's training images, and
    whose features are then compared ("classifier"): the config of a stage.
    """

    data: Data
    most_steps: PositiveInt = 1_000
    most_passes: PositiveInt = 20  # over the training images, where their number is known
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 2e-3
    seed: NonNegativeInt = 0

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def steps(self) -> int:
        images = self.data.train_images
        if images is None:
            return self.most_steps
        return min(self.most_steps, max(1, self.most_passes * images // self.batch_size))

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.data.classes < 2:
            raise ValueError(f"classifier: the images of {self.data.name} are all of one class")
        return self


class Scoring(Record):
    """A set of samples of each trial whose family has settings here, and its distance to real
    images: those held out, as the trial's data has them; a distance for each feature network.
    """

    name: Name  # of the set of samples
    sampling: tuple[AnySampling, ...]  # one for each family that is sampled
    count: PositiveInt  # images of each class
    seed: NonNegativeInt = 0
    raw: bool = False  # the last weights of the trials that average theirs, and of no others
    chooses: bool = False  # serves to choose settings: a comparison reports other sets, not this
    extractors: Annotated[tuple[ExtractorName, ...], Field(min_length=1)] = ("seeded",)
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

    def scored_sets(self, trial: Trial) -> "tuple[ScoredSet, ...]":
        """One for each feature network; what other trials and networks are told is left out, so
        that a change there binds no result of this one.
        """
        sampling = self.sampling_of(trial)
        if sampling is None:
            return ()
        alone = self.model_copy(update={"sampling": (sampling,), "only": ()})
        return tuple(
            ScoredSet(trial=trial, scoring=alone.model_copy(update={"extractors": (one,)}))
            for one in self.extractors
        )


class ScoredSet(Record):
    """One set of samples of one trial, and its distance by one network: the config of a stage."""

    trial: Trial
    scoring: Scoring  # for this family and one extractor

    @property
    def extractor(self) -> ExtractorName:
        return self.scoring.extractors[0]

    @property
    def name(self) -> str:
        return f"{self.trial.name}/{self.scoring.name}-{self.extractor}"

    @property
    def sampling(self) -> SamplingRecord:
        sampling = self.scoring.sampling_of(self.trial)
        assert sampling is not None
        return sampling


class ReconstructionFloor(Record):
    """The distance of a tokenizer's reconstructions to images held out, beside that of the images
    that it reconstructs: the config of a stage. No sample of a model on it is nearer than its
    reconstructions, but by chance. `cache`: through the tokens, or the features before them.
    """

    tokenizer: AnyTokenizer
    data: Data
    images: PositiveInt
    extractor: ExtractorName
    cache: CacheKind = "tokens"

    @property
    def of_tokenizer(self) -> str:
        """Its name among the floors of its tokenizer."""
        features = "-features" if self.cache == "features" else ""
        return f"{self.data.name}-{self.extractor}-{self.images}{features}"

    @property
    def name(self) -> str:
        return f"{self.tokenizer.name}/{self.of_tokenizer}"
