"""How a thing is trained: optimiser and schedules, precision, losses, the codebook's upkeep."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, model_validator

from var_scaling.record import Record

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ProperShare = Annotated[float, Field(ge=0, lt=1)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

# The arithmetic of forward and backward; weights and optimiser states are float32 in all of them.
# tf32 is fp32 where there are no tensor cores. fp16 scales its loss.
Precision = Literal["fp32", "tf32", "bf16", "fp16"]


class Optimiser(Record):
    """AdamW, its learning rate and weight decay as functions of the share of steps done.

    After warm-up the rate stays at its peak for `plateau` of the remaining steps, then falls to
    `final` × peak: "linear" (0.05 is VAR's `lin0`, 0.8 a warm-up-stable-decay schedule, 1 a
    constant rate), "cosine" (`cos`: no plateau) or "exponential" (`exp`: 0.15). "two_slopes" has
    no plateau: it falls gently until then and steeply after (`lin0.8` and its like).
    """

    learning_rate: PositiveFloat
    betas: tuple[ProperShare, ProperShare] = (0.9, 0.95)
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.05
    final_weight_decay: NonNegativeFloat = 0.05
    warm_up: ProperShare = 0.02
    warm_up_from: Share = 0.005
    decay: Literal["linear", "two_slopes", "cosine", "exponential"] = "linear"
    plateau: Share = 0.05
    final: Share = 0.01
    grad_clip: PositiveFloat | None = 2.0  # of the gradient's norm; None: not clipped

    @model_validator(mode="after")
    def _has_something_to_fall_to(self) -> Self:
        if self.decay == "exponential" and self.final == 0:
            raise ValueError("final = 0: an exponential never reaches it")
        if self.decay == "two_slopes" and not 0 < self.plateau < 1:
            raise ValueError(f"plateau = {self.plateau}: two slopes meet strictly between 0 and 1")
        return self


class Codebook(Record):
    """How the codes learn and are kept alive: k-means first, restart of dead codes.

    They are moving averages of the vectors that chose them, or learn by gradient as released.
    """

    learns: Literal["averages", "gradient"] = "averages"
    starts_at: NonNegativeInt = 0  # steps of plain autoencoding before anything is quantised
    decay: ProperShare = 0.99  # of the averages, and of the count of uses
    restart_below: NonNegativeFloat = 0.03  # of a code's fair share of use; 0: never
    restart_every: PositiveInt = 20  # steps
    k_means_images: NonNegativeInt = 512  # 0: codes start uniformly random


class Critic(Record):
    """The patch discriminator that the adversarial term asks, and when it has a say."""

    channels: PositiveInt = 64
    halvings: PositiveInt = 3  # 3: each verdict is on 70 × 70 pixels
    starts: ProperShare = 0.2  # of the steps
    warm_up: ProperShare = 0.02  # of the steps: the term's weight rises from 0 to its full
    least_factor: PositiveFloat = 0.015
    largest_factor: PositiveFloat = 1e4
    optimiser: Optimiser


class Losses(Record):
    """Weights of the tokenizer's terms. A term of weight 0 is not computed."""

    l1: NonNegativeFloat = 0.0
    l2: NonNegativeFloat = 1.0
    perceptual: NonNegativeFloat = 0.0
    perceptual_sha256: Sha256 | None = None  # of the weights' file; None: whichever is given
    adversarial: NonNegativeFloat = 0.0
    commitment: NonNegativeFloat = 0.25  # β of the quantisation loss
    critic: Critic | None = None

    @model_validator(mode="after")
    def _terms_are_complete(self) -> Self:
        if (self.adversarial > 0) != (self.critic is not None):
            raise ValueError(
                f"adversarial = {self.adversarial}: with a weight it needs a critic, without none"
            )
        if self.l1 == self.l2 == self.perceptual == 0:
            raise ValueError("l1, l2 and perceptual are all 0: nothing ties images to their codes")
        return self
