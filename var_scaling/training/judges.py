"""The tokenizer's reconstruction losses: pixels, LPIPS, and a critic that is trained with it.

Shapes: B images, H side.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from var_scaling.config import TrainedTokenizer
from var_scaling.tokenizer.autoencoder import channels_last_on_gpu
from var_scaling.tokenizer.critic import PatchCritic, balanced_gradients, hinge_loss
from var_scaling.tokenizer.perceptual import Perceptual
from var_scaling.training.optim import ScheduledOptimizer, precision_context
from var_scaling.training.world import World

ADVERSARIAL_STATS = ("adversarial", "adversarial_factor")  # logged only where the critic is used


class ReconstructionLosses:
    """All terms of the loss but quantisation. A term of weight 0 is neither built nor computed."""

    def __init__(self, t: TrainedTokenizer, perceptual: Perceptual | None, world: World):
        self.t, self.losses, self.world = t, t.losses, world
        assert (perceptual is not None) == (t.losses.perceptual > 0)
        self.perceptual: Perceptual | None = None
        if perceptual is not None:
            self.perceptual = channels_last_on_gpu(perceptual.to(world.device))
        self.critic: PatchCritic | None = None
        if t.losses.critic is not None:
            critic = PatchCritic(t.losses.critic, t.seed).to(world.device)
            self.critic = channels_last_on_gpu(critic)
            self.optimizer = ScheduledOptimizer(
                self.critic, t.losses.critic.optimiser, t.steps, t.precision
            )
            self.net = world.wrap(self.critic)

    def terms(self, rebuilt_B3HH: Tensor, images_B3HH: Tensor) -> dict[str, Tensor]:
        """The distances with a weight above 0, not yet weighted."""
        terms = {}
        if self.losses.l1 > 0:
            terms["l1"] = F.l1_loss(rebuilt_B3HH, images_B3HH)
        if self.losses.l2 > 0:
            terms["l2"] = F.mse_loss(rebuilt_B3HH, images_B3HH)
        if self.perceptual is not None:
            with torch.autocast(images_B3HH.device.type, enabled=False):  # small differences
                terms["perceptual"] = self.perceptual(rebuilt_B3HH, images_B3HH).mean()
        return terms

    def weighted_sum(self, terms: dict[str, Tensor]) -> Tensor:
        weights = {
            "l1": self.losses.l1, "l2": self.losses.l2, "perceptual": self.losses.perceptual,
        }  # fmt: skip
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()

    def adversarial_surrogate(
        self,
        rebuilt: Tensor,
        reconstruction: Tensor,
        scale: Callable[[Tensor], Tensor],
        last_layer: Tensor,
        warm_up: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss with the gradient of `reconstruction` plus the weighted adversarial loss.

        `reconstruction` and the result are multiplied by the loss scale. `warm_up` is in [0, 1].
        The gradients by the image are computed once and used for the factor and for the update.
        """
        assert self.critic is not None
        assert self.losses.critic is not None
        # Not through `self.net`: this pass trains the tokenizer, so there are no gradients of the
        # critic for DistributedDataParallel to average.
        generator_loss = -self.critic(rebuilt).float().mean()
        grad_reconstruction, grad_generator, factor = balanced_gradients(
            self.losses.critic, rebuilt, reconstruction, scale(generator_loss), last_layer,
            self.world.mean,
        )  # fmt: skip
        weight = self.losses.adversarial * warm_up * factor
        # Both gradients are constants here, so the gradient of this sum by `rebuilt` is their
        # weighted sum. VGG and the critic are each passed backward once and not twice.
        surrogate = (rebuilt * (grad_reconstruction + weight * grad_generator)).sum()
        return surrogate, dict(zip(ADVERSARIAL_STATS, (generator_loss, factor), strict=True))

    def train_critic(self, images: Tensor, rebuilt: Tensor, step: int) -> dict[str, Tensor]:
        """One update of the critic on the real and rebuilt images, joined to one batch."""
        with precision_context(self.t.precision, self.world.device):
            # Joining changes no logit: the critic's group norm treats each image alone.
            real, fake = self.net(torch.cat([images, rebuilt])).float().chunk(2)
            loss = hinge_loss(real, fake)
        self.optimizer.backward(self.optimizer.scale(loss))
        stats = {f"critic_{name}": value for name, value in self.optimizer.step(step).items()}
        accuracy = 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
        return {"critic": loss, "critic_right": accuracy, **stats}

    def state(self) -> dict[str, object]:
        # LPIPS is not trained, so its hash is enough to detect other weights.
        state: dict[str, object] = {"perceptual_sha256": self._perceptual_sha256()}
        if self.critic is not None:
            state |= {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state()}
        return state

    def restore(self, state: dict) -> None:
        """Raises ValueError if training started with other perceptual weights."""
        recorded, current = state["perceptual_sha256"], self._perceptual_sha256()
        if recorded != current:
            raise ValueError(
                f"training started with perceptual weights of SHA-256 {recorded}, now given "
                f"{current}: name the same files under [weights] in var-scaling.toml"
            )
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
            self.optimizer.restore(state["optimizer"])

    def _perceptual_sha256(self) -> str | None:
        return self.perceptual.sha256 if self.perceptual else None
