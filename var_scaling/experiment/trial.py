"""Generators: a training run (Trial), and a model that was trained elsewhere. No torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from var_scaling.config import AnyTokenizer
from var_scaling.datasets import Data
from var_scaling.models.base import ModelFamily, ModelSpec
from var_scaling.models.registry import AnyModel, family_of
from var_scaling.recipe import Optimiser, Precision, ProperShare, Sha256
from var_scaling.record import Name, Record


class Generator(Record):
    """A generator of images: a model and the tokenizer that maps between its tokens and pixels."""

    format: Literal[2] = 2  # of the record on disk; 1 had no `model.family`
    name: Name
    tokenizer: AnyTokenizer
    model: AnyModel

    @property
    def family(self) -> ModelFamily:
        """The family of the model, which implements training, scoring, sampling and accounting."""
        return family_of(self.model)


class ImportedModel(Generator):
    """A generator trained elsewhere, identified by the SHA-256 of its original file."""

    kind: Literal["imported"] = "imported"
    classes: PositiveInt
    sha256: Sha256

    @property
    def spec(self) -> ModelSpec:
        """All that the network is built from."""
        return ModelSpec(self.model, self.tokenizer, self.classes)


class Trial(Generator):
    """One training run. Two trials with equal records give equal numbers.

    `keep_steps`: the checkpoints after these steps are kept, and other trials can start from them.
    With `start` the training continues from such a checkpoint, including the optimizer state, as
    if the first steps of the other trial were its own: images, FLOPs and seconds include them.

    With `weight_average` the model is the exponential moving average (EMA) of the weights. The last
    weights, called raw, are saved too, and both are scored.
    """

    data: Data
    optimiser: Optimiser
    batch_size: PositiveInt  # global: the sum over all processes
    steps: PositiveInt
    class_dropout_prob: ProperShare = 0.1
    weight_average: ProperShare = 0.0  # decay per step of the EMA; 0: no averaging
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
        """Number of training images over the whole trial; repeated images count again."""
        return self.batch_size * self.steps

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Steps after which the held-out tokens are scored: `steps`, `steps` / 2, `steps` / 4, …"""
        # Halvings are evenly spaced on a log axis of compute.
        return tuple(sorted({max(1, self.steps >> k) for k in range(self.evaluations)}))

    @model_validator(mode="after")
    def _images_fit_tokenizer(self) -> Self:
        if self.data.side != self.tokenizer.side:
            raise ValueError(
                f"data.side = {self.data.side}: the tokenizer takes images of {self.tokenizer.side}"
            )
        return self

    @model_validator(mode="after")
    def _keep_steps_are_valid(self) -> Self:
        if list(self.keep_steps) != sorted({k for k in self.keep_steps if k <= self.steps}):
            raise ValueError(
                f"keep_steps = {list(self.keep_steps)}: expected ascending steps up to {self.steps}"
            )
        return self

    @model_validator(mode="after")
    def _start_is_compatible(self) -> Self:
        if self.start is None:
            return self
        trunk, step = self.start.trial, self.start.step
        # These determine the shapes of the checkpoint, the meaning of its tokens, and the number of
        # images that it has seen. The optimiser may differ, for example in its schedule.
        different = [
            name
            for name in ("model", "tokenizer", "classes", "batch_size", "weight_average")
            if getattr(self, name) != getattr(trunk, name)
        ]
        if different:
            raise ValueError(f"start: {trunk.name} has a different {', '.join(different)}")
        if trunk.name == self.name:
            raise ValueError(f"start: {trunk.name} cannot start from itself; rename one of the two")
        if step not in trunk.keep_steps:
            raise ValueError(f"start: step {step} is not among the keep_steps of {trunk.name}")
        if step >= self.steps:
            raise ValueError(f"start: step {step} must be below steps = {self.steps}")
        return self

    @model_validator(mode="after")
    def _tokens_fit_model(self) -> Self:
        self.family.check(self.spec)
        return self


class Start(Record):
    """The checkpoint of another trial after `step`."""

    trial: Trial
    step: PositiveInt


# `Trial.start` refers to a class that is defined after it.
Trial.model_rebuild()
