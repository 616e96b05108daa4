"""Sets of samples that a sweep draws from its trials, and how they are scored. No torch."""

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
    """A small residual classifier, trained on a data set's training images and then used as the
    feature extractor "classifier": the config of a stage.
    """

    data: Data
    most_steps: PositiveInt = 1_000
    most_passes: PositiveInt = 20  # over the training images, if their number is known
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 2e-3
    seed: NonNegativeInt = 0

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def steps(self) -> int:
        # None: the number of image files is not known before they are read.
        images = self.data.train_images
        if images is None:
            return self.most_steps
        return min(self.most_steps, max(1, self.most_passes * images // self.batch_size))

    @model_validator(mode="after")
    def _has_two_classes(self) -> Self:
        if self.data.classes < 2:
            raise ValueError(f"classifier: {self.data.name} has one class; at least 2 are needed")
        return self


class Scoring(Record):
    """One set of samples of each trial whose family has settings in `sampling`, and its distance
    to the held-out images of the trial's data set, with each of `extractors`.
    """

    name: Name  # of the set of samples
    sampling: tuple[AnySampling, ...]  # settings, at most one for each family
    count: PositiveInt  # images of each class
    seed: NonNegativeInt = 0
    raw: bool = False  # sample the raw weights; trials without a weight average are left out
    chooses: bool = False  # used only to select settings; a comparison reports other sets
    extractors: Annotated[tuple[ExtractorName, ...], Field(min_length=1)] = ("seeded",)
    only: tuple[Name, ...] = ()  # names of trials; empty: all

    @model_validator(mode="after")
    def _one_of_each_family(self) -> Self:
        families = [settings.family for settings in self.sampling]
        if len(set(families)) < len(families):
            raise ValueError(f"sampling: {', '.join(families)}: at most one for each family")
        return self

    def sampling_of(self, trial: Trial) -> SamplingRecord | None:
        """Sampling settings of `trial`; None if this set is not drawn from it."""
        if (self.only and trial.name not in self.only) or (self.raw and not trial.weight_average):
            return None
        return next((s for s in self.sampling if s.family == trial.model.family), None)

    def scored_sets(self, trial: Trial) -> "tuple[ScoredSet, ...]":
        """One for each extractor. Each record leaves out the settings of other families, trials
        and extractors, so that a change of those does not invalidate this result.
        """
        sampling = self.sampling_of(trial)
        if sampling is None:
            return ()
        own = self.model_copy(update={"sampling": (sampling,), "only": ()})
        return tuple(
            ScoredSet(trial=trial, scoring=own.model_copy(update={"extractors": (extractor,)}))
            for extractor in self.extractors
        )


class ScoredSet(Record):
    """One set of samples of one trial, scored with one extractor: the config of a stage."""

    trial: Trial
    scoring: Scoring  # with settings for this family only and one extractor

    @property
    def extractor(self) -> ExtractorName:
        return self.scoring.extractors[0]

    @property
    def name(self) -> str:
        return f"{self.trial.name}/{self.scoring.name}-{self.extractor}"

    @property
    def sampling(self) -> SamplingRecord:
        sampling = self.scoring.sampling_of(self.trial)
        # `Scoring.scored_sets` makes no record for a trial without settings.
        assert sampling is not None
        return sampling


class ReconstructionFloor(Record):
    """The distance of a tokenizer's reconstructions to held-out images, and that of the original
    images, for comparison: the config of a stage. Samples of a model with this tokenizer are not
    expected to be nearer to the held-out images than its reconstructions. `cache`: decode from
    the tokens, or from the features before quantisation.
    """

    tokenizer: AnyTokenizer
    data: Data
    images: PositiveInt
    extractor: ExtractorName
    cache: CacheKind = "tokens"

    @property
    def of_tokenizer(self) -> str:
        """Name of the folder among the reconstruction floors of the tokenizer."""
        # The number of images is in the name because the bias of a Fréchet distance depends on it.
        features = "-features" if self.cache == "features" else ""
        return f"{self.data.name}-{self.extractor}-{self.images}{features}"

    @property
    def name(self) -> str:
        return f"{self.tokenizer.name}/{self.of_tokenizer}"
