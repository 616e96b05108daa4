"""AdamW with VAR's parameter groups, schedules as functions of the step, precision, loss scale."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from var_scaling.recipe import Optimiser, Precision
from var_scaling.training.shards import Shards
from var_scaling.training.world import World

# No weight decay, as for every vector and bias (arXiv 2404.02905). Substrings of parameter names.
# They have two or more dimensions, so the rule for vectors in `adamw` does not cover them.
_NOT_DECAYED = (
    "pos_start", "pos_1LC", "lvl_embed", "scale_mul", "ada_gss", "quantize.embedding",
)  # fmt: skip
_HALF_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Loss scale as in the released trainer. The largest finite fp16 number is 65,504.
_INITIAL_SCALE, _SCALE_GROWTH_INTERVAL, _MAX_SCALE = 2.0**11, 1000, 32768.0


def adamw(model: nn.Module, config: Optimiser) -> torch.optim.AdamW:
    """Two groups, with and without weight decay; `set_rates` sets their values at each step."""
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Vectors are biases and norm weights.
            exempt = parameter.ndim < 2 or any(part in name for part in _NOT_DECAYED)
            (not_decayed if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "decayed": True}, {"params": not_decayed, "decayed": False}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )


def set_rates(optimizer: torch.optim.Optimizer, config: Optimiser, step: int, steps: int) -> float:
    """Set the learning rate and weight decay of step `step` in the groups; returns the rate."""
    # A function of the step and not a scheduler object: a resume has no state to restore.
    rate = learning_rate_at(config, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = weight_decay_at(config, step, steps) if group["decayed"] else 0.0
    return rate


def learning_rate_at(config: Optimiser, step: int, steps: int) -> float:
    """Linear warm-up to the peak, then decay to `final` × peak at the last of `steps`."""
    warm = config.warm_up * steps
    if step < warm:
        share = config.warm_up_from + (1 - config.warm_up_from) * step / warm
    else:
        # Index steps - 1 is the last update: it gets exactly `final`.
        share = _decay_share(config, min(1.0, (step - warm) / max(1.0, steps - 1 - warm)))
    return config.learning_rate * share


def _decay_share(config: Optimiser, passed: float) -> float:
    """Share of the peak rate after the share `passed` of the steps that follow the warm-up."""
    final, bend = config.final, config.plateau
    if config.decay == "two_slopes":  # at the bend: half-way between the peak and a linear decay
        middle = (1 + final + (1 - final) * (1 - bend)) / 2
        if passed < bend:
            return 1 + (middle - 1) * passed / bend
        return final + (middle - final) * (1 - passed) / (1 - bend)
    if passed < bend or bend == 1:
        return 1.0
    if config.decay == "exponential":
        return float(final ** ((passed - bend) / (1 - bend)))
    # Share of the decay that is left: 1 at its start, 0 at the last step.
    left = (1 - passed) / (1 - bend)
    if config.decay == "cosine":
        left = 0.5 - 0.5 * math.cos(math.pi * left)
    return final + (1 - final) * left


def weight_decay_at(config: Optimiser, step: int, steps: int) -> float:
    """Cosine from `weight_decay` to `final_weight_decay` over all steps, warm-up included."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / max(1, steps - 1))
    return config.final_weight_decay + (config.weight_decay - config.final_weight_decay) * cosine


@contextmanager
def precision_context(
    precision: Precision, device: torch.device, autocast: bool = True
) -> Iterator[None]:
    """Matrix products within the block run in `precision`; other operations return float32.

    `autocast=False` is for the backward pass: autograd reuses the dtypes of the forward pass, so
    only TF32 must be set.
    """
    # TF32 is a global switch of the process. It is restored, so that the precision of a trial
    # does not affect what is computed after it.
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    previous = [switch.allow_tf32 for switch in switches]
    half = _HALF_DTYPES.get(precision) if autocast else None
    try:
        for switch in switches:
            switch.allow_tf32 = precision != "fp32"  # no effect on a CPU
        # The dtype has no effect where autocast is off, but the call needs one.
        with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            yield
    finally:
        for switch, allowed in zip(switches, previous, strict=True):
            switch.allow_tf32 = allowed


class ScheduledOptimizer:
    """AdamW of one module, with its schedules, fp16 loss scale and gradient clipping."""

    def __init__(
        self,
        module: nn.Module,
        config: Optimiser,
        steps: int,
        precision: Precision,
        world: World | None = None,
    ):
        self.config, self.steps, self.precision = config, steps, precision
        self.adamw = adamw(module, config)
        shared = world is not None and world.shard_optimizer and world.size > 1
        self.shards = Shards(self.adamw, world) if world is not None and shared else None
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.waits = self.parameters[0].device.type == "cpu"  # reads the norm before the update
        self.scaler = torch.amp.GradScaler(
            self.parameters[0].device.type,
            init_scale=_INITIAL_SCALE,
            growth_interval=_SCALE_GROWTH_INTERVAL,
            enabled=precision == "fp16",
        )

    def scale(self, loss: Tensor) -> Tensor:
        """`loss` × loss scale, the input of `backward`. It prevents underflow of fp16 gradients."""
        return self.scaler.scale(loss)

    def backward(self, scaled: Tensor) -> None:
        """Add the gradients of the `scaled` loss, with TF32 as in the forward pass."""
        with precision_context(self.precision, self.parameters[0].device, autocast=False):
            scaled.backward()

    def discard(self, loss: Tensor) -> None:
        """Compute the gradients of `loss` and drop them."""
        self.backward(loss)
        self.adamw.zero_grad(set_to_none=True)

    def step(self, step: int) -> dict[str, Tensor]:
        """Unscale and clip the gradients since the last call, then update with the rates of `step`.

        Returns the gradient norm; if it is not finite, no weight changes. In fp16 this is normal
        while the loss scale adapts: `skipped` is then 1. On a GPU nothing here waits for it.
        """
        set_rates(self.adamw, self.config, step, self.steps)
        # Before clipping: the limit is for the true gradient, not for the scaled one.
        self.scaler.unscale_(self.adamw)
        # Without clipping the limit is infinite: log and check still need the norm.
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip or math.inf)
        stats = {"grad_norm": norm}
        if self.shards is not None:
            self.shards.drop_other_gradients()
        if self.scaler.is_enabled():
            stats |= self._scaled_step(norm)
        elif not self.waits:
            # The fused update reads this flag on the GPU, as it does for a GradScaler.
            self.adamw.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
            self.adamw.step()
        elif torch.isfinite(norm):
            self.adamw.step()
        if self.shards is not None:
            self.shards.exchange()
        self.adamw.zero_grad(set_to_none=True)
        return stats

    def _scaled_step(self, norm: Tensor) -> dict[str, Tensor]:
        # Skips the update if a gradient is not finite; `update` then halves the scale.
        self.scaler.step(self.adamw)
        self.scaler.update()
        # Growth without a limit would cause an overflow again and again.
        scale = self.scaler.scale(torch.ones((), device=norm.device)).clamp_max(_MAX_SCALE)
        self.scaler.update(scale)
        return {"skipped": (~torch.isfinite(norm)).float(), "loss_scale": scale.squeeze()}

    @property
    def rate(self) -> float:
        return float(self.adamw.param_groups[0]["lr"])

    def state(self) -> dict[str, object]:
        """All that `restore` needs. With shards only process 0 has it; every process must call."""
        adamw = self.adamw.state_dict() if self.shards is None else self.shards.gather()
        return {"optimizer": adamw, "scaler": self.scaler.state_dict()}

    def restore(self, state: dict[str, dict]) -> None:
        adamw = state["optimizer"]
        self.adamw.load_state_dict(adamw if self.shards is None else self.shards.own(adamw))
        self.scaler.load_state_dict(state["scaler"])
