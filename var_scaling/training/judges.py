"""What tells a tokenizer how far its images are off: pixels, LPIPS, a critic that learns along.

Shapes: B images, H side.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from var_scaling.config import TrainedTokenizer
from var_scaling.tokenizer.critic import PatchCritic, balanced, hinge
from var_scaling.tokenizer.perceptual import Perceptual
from var_scaling.training.optim import ScheduledOptimizer, precision_context
from var_scaling.training.world import World

JUDGED = ("adversarial", "adversarial_factor")  # stats of the critic's say in the tokenizer's loss


class Judges:
    """The terms of the loss beside quantisation; those of weight 0 are not there at all."""

    def __init__(self, t: TrainedTokenizer, perceptual: Perceptual | None, world: World):
        self.t, self.losses, self.world = t, t.losses, world
        assert (perceptual is not None) == (t.losses.perceptual > 0)
        self.perceptual = perceptual.to(world.device) if perceptual else None
        self.critic: PatchCritic | None = None
        if t.losses.critic is not None:
            self.critic = PatchCritic(t.losses.critic, t.seed).to(world.device)
            self.optimizer = ScheduledOptimizer(
                self.critic, t.losses.critic.optimiser, t.steps, t.precision
            )
            self.net = world.wrap(self.critic)

    def terms(self, rebuilt_B3HH: Tensor, images_B3HH: Tensor) -> dict[str, Tensor]:
        """The distances that have a weight, each before it."""
        terms = {}
        if self.losses.l1 > 0:
            terms["l1"] = F.l1_loss(rebuilt_B3HH, images_B3HH)
        if self.losses.l2 > 0:
            terms["l2"] = F.mse_loss(rebuilt_B3HH, images_B3HH)
        if self.perceptual is not None:
            with torch.autocast(images_B3HH.device.type, enabled=False):  # small differences count
                terms["perceptual"] = self.perceptual(rebuilt_B3HH, images_B3HH).mean()
        return terms

    def weighed(self, terms: dict[str, Tensor]) -> Tensor:
        weights = {
            "l1": self.losses.l1, "l2": self.losses.l2, "perceptual": self.losses.perceptual,
        }  # fmt: skip
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()

    def pull(
        self,
        rebuilt: Tensor,
        reconstruction: Tensor,
        scale: Callable[[Tensor], Tensor],
        last_layer: Tensor,
        say: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss whose gradient is that of `reconstruction` plus the critic's, made equally loud.

        `reconstruction` comes scaled; so does the result. `say` is the critic's warm-up. The
        gradients by the image are taken once and used twice, for the factor and for the descent.
        """
        assert self.critic is not None
        assert self.losses.critic is not None
        verdict = -self.critic(rebuilt).float().mean()
        by_truth, by_critic, factor = balanced(
            self.losses.critic, rebuilt, reconstruction, scale(verdict), last_layer, self.world.mean
        )
        weight = self.losses.adversarial * say * factor
        surrogate = (rebuilt * (by_truth + weight * by_critic)).sum()
        return surrogate, dict(zip(JUDGED, (verdict, factor), strict=True))

    def learn(self, images: Tensor, made: Tensor, step: int) -> dict[str, Tensor]:
        """The critic's own update. Real and made go through it together, as one batch."""
        with precision_context(self.t.precision, self.world.device):
            real, fake = self.net(torch.cat([images, made])).float().chunk(2)
            loss = hinge(real, fake)
        self.optimizer.backward(self.optimizer.scale(loss))
        found = self.optimizer.step(step)
        named = {f"critic_{name}": value for name, value in found.items()}
        share_right = 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
        return {"critic": loss, "critic_right": share_right, **named}

    def state(self) -> dict[str, object]:
        state: dict[str, object] = {"perceptual_sha256": self._perceptual_sha256()}
        if self.critic is not None:
            state |= {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state()}
        return state

    def restore(self, state: dict) -> None:
        """Raises ValueError if the perceptual weights are not those that training began with."""
        began, here = state["perceptual_sha256"], self._perceptual_sha256()
        if began != here:
            raise ValueError(
                f"training began with perceptual weights {began}, and was to go on with {here}: "
                "name the same files under [weights] in var-scaling.toml"
            )
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
            self.optimizer.restore(state["optimizer"])

    def _perceptual_sha256(self) -> str | None:
        return self.perceptual.sha256 if self.perceptual else None
