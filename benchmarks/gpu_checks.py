"""Checks of results for gpu.py: network and tokenizer against the CPU, and a bitwise resume.

Shapes: B images, L tokens, Z code channels, V codes, H side of the grid or of the images.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gpu_steps import Row, require_compiled
from released import Released
from torch import Tensor, nn

from var_scaling.data.dead_leaves import DeadLeavesSource
from var_scaling.datasets import DeadLeaves
from var_scaling.evaluation.training_step import free_memory, random_tokens
from var_scaling.experiment import Trial
from var_scaling.generation.sample import decode_images
from var_scaling.recipe import Precision
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.cache import TokenCache
from var_scaling.tokenizer.model import MultiScaleVQVAE, freeze
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training.compilation import compile_network
from var_scaling.training.loop import Interrupted, Signal
from var_scaling.training.optim import ScheduledOptimizer, precision_context
from var_scaling.training.trial import loss_of, read_batch, train
from var_scaling.training.world import World

CPU = torch.device("cpu")
IMAGES = 2  # of the check of the network: the CPU needs seconds for each


class Tolerance(NamedTuple):
    """The largest errors against float32 on the CPU: relative, and of pixels in levels of 255."""

    loss: float
    logits: float  # norm of the error over the norm of the logits without their mean
    gradient: float  # norm of the error over the norm
    tokens: float  # least share of equal tokens
    pixels: float  # mean over all pixels


# About four times the errors of d16. Its logits: 9e-7 in fp32 and 1.3e-3 in fp16 (measured on an
# H200), .010 in bf16 (on a CPU). Its gradient: .011 in bf16. TF32 and fp16 round to 11 bits, bf16
# to 8. Tokens differ near the border between two codes, and then finer tokens of that place, too:
# 77 % are equal in bf16 (on a CPU, random weights).
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(loss=1e-5, logits=1e-5, gradient=1e-4, tokens=0.98, pixels=0.1),
    "tf32": Tolerance(loss=1e-4, logits=6e-3, gradient=1e-2, tokens=0.8, pixels=1.0),
    "fp16": Tolerance(loss=1e-4, logits=6e-3, gradient=1e-2, tokens=0.8, pixels=1.0),
    "bf16": Tolerance(loss=1e-3, logits=4e-2, gradient=5e-2, tokens=0.5, pixels=4.0),
}


# Network -----------------------------------------------------------------------------------------


class Computed(NamedTuple):
    """Results of one training step of a network, on the CPU in float32."""

    loss: float
    logits_RV: Tensor  # R = B × L
    gradient: Tensor


class NetworkCheck:
    """A VAR with random weights and one batch, on which implementations are compared."""

    def __init__(self, trial: Trial):
        self.trial = trial.model_copy(update={"batch_size": IMAGES})
        self.network: Any = trial.family.build(trial.spec, 0)
        perturb(self.network, 0.03)
        self.quantizer = Quantizer(trial.tokenizer).requires_grad_(False)
        self.share = slice(0, IMAGES)
        self.batch = read_batch(self.trial, random_tokens(self.trial), 0, self.share)
        with torch.no_grad():
            self.input_BLZ = self.quantizer.teacher_input(self.batch.ids_BL)

    def compute(self, precision: Precision, device: torch.device, released: bool) -> Computed:
        """Loss, logits and gradient of our network, or of the released code on its parameters."""
        network, quantizer = self.network.to(device), self.quantizer.to(device)
        optimizer = ScheduledOptimizer(network, self.trial.optimiser, 1, precision)
        labels_B, ids_BL = self.batch.labels_B.to(device), self.batch.ids_BL.to(device)
        with precision_context(precision, device):
            net = Released(network) if released else network
            logits_BLV = net(labels_B, self.input_BLZ.to(device)).float()
            if released:
                loss = F.cross_entropy(logits_BLV.flatten(0, 1), ids_BL.flatten())
            else:
                loss = loss_of(self.trial, network, quantizer, self.batch, 0, self.share)
        optimizer.backward(optimizer.scale(loss))
        optimizer.scaler.unscale_(optimizer.adamw)
        gradient = nn.utils.parameters_to_vector(
            weight.grad for weight in optimizer.parameters if weight.grad is not None
        )
        optimizer.adamw.zero_grad(set_to_none=True)
        return Computed(
            float(loss.detach()), logits_BLV.detach().flatten(0, 1).cpu(), gradient.float().cpu()
        )

    @contextmanager
    def compiled(self, precision: Precision, device: torch.device) -> Iterator[None]:
        """Within the block our network is compiled as for training in `precision`."""

        def forward_and_backward() -> None:
            self.compute(precision, device, released=False)

        require_compiled(compile_network(self.network, forward_and_backward))
        try:
            yield
        finally:
            for name in self.network.compiled_methods:
                delattr(self.network, name)

    def row(self, way: str, precision: Precision, found: Computed, expected: Computed) -> Row:
        tolerance = TOLERANCES[precision]
        centred = expected.logits_RV - expected.logits_RV.mean()
        errors = {
            "loss": abs(found.loss - expected.loss) / expected.loss,
            "logits": relative(found.logits_RV - expected.logits_RV, centred),
            "gradient": relative(found.gradient - expected.gradient, expected.gradient),
        }
        agrees = all(error <= getattr(tolerance, name) for name, error in errors.items())
        return {
            "family": "var",
            "depth": self.trial.model.depth,
            "way": way,
            "precision": precision,
            "loss": found.loss,
            **{f"{name}_error": error for name, error in errors.items()},
            "agrees": agrees,
        }


def check_network(
    trial: Trial,
    device: torch.device,
    compiled: tuple[Precision, ...],
    precisions: tuple[Precision, ...] = tuple(TOLERANCES),
) -> Iterator[Row]:
    """Our network on `device`, eager and compiled, and the released code, against our network on
    the CPU in float32 with the same weights.
    """
    check = NetworkCheck(trial)
    expected = check.compute("fp32", CPU, released=False)
    for precision in precisions:
        found = check.compute(precision, device, released=False)
        yield check.row("ours", precision, found, expected)
        if precision in ("fp32", trial.precision):
            found = check.compute(precision, device, released=True)
            yield check.row("released", precision, found, expected)
    for precision in compiled:  # after the eager rows, which a failed compilation leaves valid
        with check.compiled(precision, device):
            found = check.compute(precision, device, released=False)
        yield check.row("ours, compiled", precision, found, expected)


@torch.no_grad()
def perturb(network: nn.Module, deviation: float) -> None:
    """Add noise to all weights: at initialisation gates near 0 would hide the blocks."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.add_(deviation * torch.randn(weight.shape, generator=generator))


def relative(error: Tensor, of: Tensor) -> float:
    return float(error.norm() / of.norm())


# Tokenizer ---------------------------------------------------------------------------------------


def random_tokenizer(trial: Trial) -> MultiScaleVQVAE:
    """A tokenizer of the trial's shape, for use. Its residual branches are not 0."""
    torch.manual_seed(0)  # for the codes
    model = MultiScaleVQVAE(trial.tokenizer)
    perturb(model, 0.01)
    return freeze(model)


def pixels_of(trial: Trial, images: int) -> Tensor:
    """Generated images of the tokenizer's side, uint8 (B, H, H, 3)."""
    data = DeadLeaves(name="check", side=trial.tokenizer.side, leaves=12, train_images=images)
    return torch.from_numpy(DeadLeavesSource(data, "train").images(np.arange(images)))


@torch.no_grad()
def check_tokenizer(trial: Trial, device: torch.device, images: int) -> Iterator[Row]:
    """Tokens and decoded pixels on `device` by precision, against those of the CPU in float32."""
    model, pixels_BHH3 = random_tokenizer(trial), pixels_of(trial, images)
    expected_BL = model.encode(to_unit(pixels_BHH3))
    grid_BZHH = model.quantize.decode(expected_BL)
    decoded = decode_images(model, grid_BZHH).float()
    model.to(device)
    on_device = to_unit(pixels_BHH3.to(device))
    for precision, tolerance in TOLERANCES.items():
        with precision_context(precision, device):
            ids_BL = model.encode(on_device).cpu()
        equal_BL = ids_BL == expected_BL
        row: Row = {
            "way": "tokenizer",
            "precision": precision,
            "images": images,
            "codes_used": len(expected_BL.unique()),
            "equal_tokens": float(equal_BL.float().mean()),
            "equal_by_scale": [
                float(part.float().mean())
                for part in equal_BL.split(list(trial.tokenizer.pyramid.lengths), dim=1)
            ],
        }
        agrees = row["equal_tokens"] >= tolerance.tokens
        if precision in ("fp32", "tf32"):  # the decoder's precisions
            error = (decode_images(model, grid_BZHH.to(device), precision).float() - decoded).abs()
            row |= {"pixel_error_levels": float(error.mean()), "largest_levels": float(error.max())}
            agrees &= row["pixel_error_levels"] <= tolerance.pixels
        yield {**row, "agrees": agrees}


# Resume ------------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """The result of a training: all its weights, and the losses of its log."""

    weights: dict[str, Tensor]
    losses: list[float]  # of each step


def resume_row(trial: Trial, device: torch.device, compiled: bool) -> Row:
    """Whether a training that stops half-way and resumes ends bitwise like one that does not.

    If it does not, the uninterrupted training is repeated: where that differs too, the kernels do
    not give the same bits twice.
    """
    quantizer = Quantizer(trial.tokenizer).requires_grad_(False)

    def trained(stops: int) -> Trained:
        return train_with_stops(trial, quantizer, device, compiled, stops)

    whole, resumed = trained(stops=0), trained(stops=1)
    row = {
        "family": trial.family.name,
        "depth": trial.model.depth,
        "way": "ours, compiled" if compiled else "ours",
        "precision": trial.precision,
        "batch": trial.batch_size,
        "steps": trial.steps,
        "agrees": bitwise_equal(whole, resumed),
    }
    if not row["agrees"]:
        repeated = trained(stops=0)
        row["repeated_agrees"] = bitwise_equal(whole, repeated)
        row["largest_difference"] = largest_difference(whole, resumed)
        row["largest_difference_repeated"] = largest_difference(whole, repeated)
    return row


def train_with_stops(
    trial: Trial, quantizer: Quantizer, device: torch.device, compiled: bool, stops: int
) -> Trained:
    """Train on random tokens; stop half-way `stops` times and resume from the checkpoint."""
    tokens = random_tokens(trial)
    held_out = TokenCache(tokens.tokens[:8], tokens.labels[:8], 1, tokens.manifest)
    world = World(device=device, micro_batch_size=trial.batch_size // 2)
    losses: list[float] = []

    def log(kind: str, step: int, values: Any) -> None:
        if kind == "train":
            losses.append(values["loss"])

    def stop(done: int) -> Signal:
        return Signal.STOP if done >= trial.steps // 2 else Signal.CONTINUE

    with tempfile.TemporaryDirectory() as folder:

        def run(poll_signal: Any) -> nn.Module:
            return train(
                trial, quantizer, tokens, held_out, Path(folder), log, 1e9, poll_signal, world,
                compile_network=compiled, on_compiled=require_compiled,
            ).model  # fmt: skip

        for _ in range(stops):
            try:
                run(stop)
            except Interrupted:
                pass
            else:
                raise RuntimeError("the training did not stop half-way")
            free_memory()  # with the loop, which waits until its checkpoint is on disk
        model = run(lambda done: Signal.CONTINUE)
    if len(losses) != trial.steps:  # each step has a line
        raise RuntimeError(f"{len(losses)} lines for {trial.steps} steps: not resumed half-way")
    return Trained({name: value.cpu() for name, value in model.state_dict().items()}, losses)


def bitwise_equal(one: Trained, other: Trained) -> bool:
    same = all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    return same and one.losses == other.losses


def largest_difference(one: Trained, other: Trained) -> float:
    """The largest difference between two equally named weights."""
    return max(
        float((value.double() - other.weights[name].double()).abs().max())
        for name, value in one.weights.items()
    )
