"""Training settings: optimiser and schedules, precision, losses, codebook updates."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, model_validator

from var_scaling.record import Record

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ProperShare = Annotated[float, Field(ge=0, lt=1)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

# Precision of the forward and backward pass; weights and optimiser states are always float32.
# Without tensor cores tf32 equals fp32. fp16 uses a loss scale.
Precision = Literal["fp32", "tf32", "bf16", "fp16"]


class Optimiser(Record):
    """AdamW, with learning rate and weight decay as functions of the share of steps done.

    After warm-up the rate stays at its peak for the share `plateau` of the remaining steps, then
    decays to `final` × peak. The names in parentheses are those of VAR's code. "linear": plateau
    0.05 (`lin0`), 0.8 is warm-up-stable-decay, 1 is constant. "cosine": plateau 0 (`cos`).
    "exponential": plateau 0.15 (`exp`). "two_slopes" (`lin0.8`) has no plateau: the decay is slow
    before the share `plateau` and fast after it.
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
    grad_clip: PositiveFloat | None = 2.0  # largest norm of the gradient; None: no clipping

    @model_validator(mode="after")
    def _schedule_is_possible(self) -> Self:
        if self.decay == "exponential" and self.final == 0:
            raise ValueError("final = 0: an exponential decay never reaches 0; give a larger value")
        if self.decay == "two_slopes" and not 0 < self.plateau < 1:
            raise ValueError(
                f"plateau = {self.plateau}: two_slopes needs a value between 0 and 1, exclusive"
            )
        return self


class Codebook(Record):
    """How the codes are learned: k-means initialization, then updates and restarts of unused codes.

    A code is the moving average of the vectors assigned to it, or learned by gradient as in VAR.
    """

    # By gradient, four of five codes stay unused at small scale (tokenizer/codebook.py).
    learns: Literal["averages", "gradient"] = "averages"
    starts_at: NonNegativeInt = 0  # first step with quantisation; plain autoencoding before
    decay: ProperShare = 0.99  # of the moving averages
    restart_below: NonNegativeFloat = 0.03  # restart below this share of the mean use; 0: never
    restart_every: PositiveInt = 20  # steps
    k_means_images: NonNegativeInt = 512  # 0: uniform random initialization


class Critic(Record):
    """The patch discriminator of the adversarial loss, and when and how strongly it is used."""

    channels: PositiveInt = 64
    halvings: PositiveInt = 3  # 3: each logit has a receptive field of 70 × 70 pixels
    starts: ProperShare = 0.2  # share of the steps before its first use
    warm_up: ProperShare = 0.02  # share of the steps in which the weight of the loss rises from 0
    least_factor: PositiveFloat = 0.015  # limits of the adaptive weight (VQGAN, eq. 7)
    largest_factor: PositiveFloat = 1e4
    optimiser: Optimiser


class Losses(Record):
    """Weights of the tokenizer's loss terms. A term of weight 0 is not computed."""

    l1: NonNegativeFloat = 0.0
    l2: NonNegativeFloat = 1.0
    perceptual: NonNegativeFloat = 0.0
    perceptual_sha256: Sha256 | None = None  # of the LPIPS weights; None: not checked
    adversarial: NonNegativeFloat = 0.0
    commitment: NonNegativeFloat = 0.25  # β of the quantisation loss
    critic: Critic | None = None

    @model_validator(mode="after")
    def _terms_are_complete(self) -> Self:
        if (self.adversarial > 0) != (self.critic is not None):
            raise ValueError(
                f"adversarial = {self.adversarial}: a critic is required if it is above 0, and not "
                "allowed if it is 0"
            )
        if self.l1 == self.l2 == self.perceptual == 0:
            raise ValueError("l1, l2 and perceptual are all 0: at least one must be above 0")
        return self
