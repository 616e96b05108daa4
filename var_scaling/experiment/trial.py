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
    """One training run. Two trials with equal records give equal numbers.

    `keep_steps`: after these its checkpoint is kept, for other trials to start from. With `start`
    the training goes on from such a checkpoint, weights, optimizer and all, as if its own first
    steps had been those of the other trial: images, FLOPs and seconds count from there.

    With `weight_average` the model is the moving average (EMA) of the weights; the last weights,
    called raw, are kept beside it, and both are scored.
    """

    data: Data
    optimiser: Optimiser
    batch_size: PositiveInt  # global, however many processes
    steps: PositiveInt
    class_dropout_prob: ProperShare = 0.1
    weight_average: ProperShare = 0.0  # decay a step of the averaged weights; 0: the last ones
    evaluations: Annotated[int, Field(ge=1, le=64)] = 6
    precision: Precision = "fp32"
    seed: NonNegativeInt = 0
    keep_steps: tuple[PositiveInt, ...] = ()
    start: "Start | None" = None

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
        return self.batch_size * self.steps

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
    def _kept_steps_are_steps(self) -> Self:
        if list(self.keep_steps) != sorted({k for k in self.keep_steps if k <= self.steps}):
            raise ValueError(
                f"keep_steps = {list(self.keep_steps)}: wanted rising steps up to {self.steps}"
            )
        return self

    @model_validator(mode="after")
    def _starts_from_its_like(self) -> Self:
        if self.start is None:
            return self
        trunk, step = self.start.trial, self.start.step
        unlike = [
            name
            for name in ("model", "tokenizer", "classes", "batch_size", "weight_average")
            if getattr(self, name) != getattr(trunk, name)
        ]
        if unlike:
            raise ValueError(f"start: {trunk.name} has another {' and another '.join(unlike)}")
        if trunk.name == self.name:
            raise ValueError(f"start: {trunk.name} cannot start from itself; give one another name")
        if step not in trunk.keep_steps:
            raise ValueError(f"start: {trunk.name} has no step {step} among its keep_steps")
        if step >= self.steps:
            raise ValueError(f"start: step {step} is not before the last of steps = {self.steps}")
        return self

    @model_validator(mode="after")
    def _tokens_fit_model(self) -> Self:
        self.family.check(self.spec)
        return self


class Start(Record):
    """Another trial's checkpoint after a step."""

    trial: Trial
    step: PositiveInt


Trial.model_rebuild()
