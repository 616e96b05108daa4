"""Generators: a training run of our own, and a model that was trained elsewhere. No torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from var_scaling.config import AnyTokenizer
from var_scaling.datasets import Data
from var_scaling.models.base import ModelFamily, ModelSpec
from var_scaling.models.registry import AnyModel, family_of
from var_scaling.recipe import Optimiser, Precision, ProperShare, Sha256
from var_scaling.record import Name, Record


class Generator(Record):
    """A generator of images, and the tokenizer between its tokens and pixels."""

    format: Literal[2] = 2  # of the record on disk; 1 had no `model.family`
    name: Name
    tokenizer: AnyTokenizer
    model: AnyModel

    @property
    def family(self) -> ModelFamily:
        """What trains, scores, samples and counts the model."""
        return family_of(self.model)


class ImportedModel(Generator):
    """A generator trained elsewhere, known by the SHA-256 of the file it was read from."""

    kind: Literal["imported"] = "imported"
    classes: PositiveInt
    sha256: Sha256

    @property
    def spec(self) -> ModelSpec:
        """All that the network is built from."""
        return ModelSpec(self.model, self.tokenizer, self.classes)


class Trial(Generator):
    """One training run. Two trials with equal records give equal numbers."""

    data: Data
    optimiser: Optimiser
    batch: PositiveInt  # global, however many processes
    steps: PositiveInt
    label_drop: ProperShare = 0.1
    evaluations: Annotated[int, Field(ge=1, le=64)] = 6
    precision: Precision = "fp32"
    seed: NonNegativeInt = 0

    @property
    def classes(self) -> int:
        return self.data.classes

    @property
    def spec(self) -> ModelSpec:
        """All that the network is built from."""
        return ModelSpec(self.model, self.tokenizer, self.classes)

    @property
    def images_seen(self) -> int:
        """Training images of the whole trial, repeats counted."""
        return self.batch * self.steps

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Steps after which held-out tokens are scored: the end, and halves of halves before it."""
        return tuple(sorted({max(1, self.steps >> k) for k in range(self.evaluations)}))

    @model_validator(mode="after")
    def _images_fit_tokenizer(self) -> Self:
        if self.data.side != self.tokenizer.side:
            raise ValueError(
                f"data.side = {self.data.side}: the tokenizer takes {self.tokenizer.side}"
            )
        return self

    @model_validator(mode="after")
    def _tokens_fit_model(self) -> Self:
        self.family.check(self.spec)
        return self
