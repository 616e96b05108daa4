"""DiT's implementation of ModelFamily. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from var_scaling.accounting import Count
from var_scaling.config import CacheKind
from var_scaling.models.base import (
    Batch,
    Frame,
    KeptTokens,
    ModelFamily,
    ModelSpec,
    SampleDraws,
    StepDraws,
    Validation,
)
from var_scaling.models.dit import accounting
from var_scaling.models.dit.config import BINS, DitModel, DitSampling, sampling_times
from var_scaling.recipe import Precision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from var_scaling.models.dit.model import DiT
    from var_scaling.models.static_calls import StaticCalls
    from var_scaling.tokenizer.cache import LatentStatistics
    from var_scaling.tokenizer.quantizer import Quantizer

Spec = ModelSpec[DitModel]


class DitFamily(ModelFamily[DitModel, DitSampling]):
    """Diffusion on the tokenizer's grid, normalised per channel."""

    name = "dit"
    config = DitModel
    sampling = DitSampling

    def cache_kind(self, config: DitModel) -> CacheKind:
        return "tokens" if config.latents == "quantized" else "features"

    def check(self, spec: Spec) -> None:
        side, patch = spec.tokenizer.pyramid.side, spec.config.patch
        if side % patch:
            divisors = [number for number in range(1, side + 1) if side % number == 0]
            raise ValueError(
                f"model.patch = {patch}: does not divide the grid side {side}; use "
                f"{', '.join(map(str, divisors[:-1]))} or {divisors[-1]}"
            )

    def sequence_length(self, spec: Spec) -> int:
        return accounting.positions(spec.config, spec.tokenizer)

    def parameters(self, spec: Spec) -> Count:
        return accounting.dit_parameters(spec.config, spec.tokenizer, spec.classes)

    def block_parameters(self, spec: Spec) -> int:
        return accounting.dit_block_parameters(spec.config)

    def forward_flops(self, spec: Spec, dense: bool = False) -> Count:
        return accounting.dit_forward_flops(spec.config, spec.tokenizer)

    def training_flops(self, spec: Spec, dense: bool = False) -> Count:
        return accounting.dit_training_flops(spec.config, spec.tokenizer)

    def sampling_flops(self, spec: Spec, guided: bool = True) -> Count:
        # A sampler cannot have more steps than a discrete schedule.
        steps = min(DitSampling().steps, spec.config.schedule_steps)
        passes = steps * (2 if guided else 1)
        return {name: passes * flops for name, flops in self.forward_flops(spec).items()}

    def batch_flops(
        self, spec: Spec, sampling: DitSampling, images: int, computed: bool = False
    ) -> int:
        return accounting.dit_batch_flops(spec.config, spec.tokenizer, sampling, images, computed)

    def training_bytes(self, spec: Spec, precision: Precision) -> float:
        return accounting.dit_training_bytes(spec.config, spec.tokenizer, precision)

    def recomputed_bytes(self, spec: Spec, precision: Precision) -> float:
        return accounting.dit_training_bytes(spec.config, spec.tokenizer, precision, recompute=True)

    def sampling_bytes(self, spec: Spec, sampling: DitSampling, images: int) -> int:
        return accounting.dit_sampling_bytes(spec.config, spec.tokenizer, sampling, images)

    def validation(self, spec: Spec) -> Validation:
        """The squared error of the prediction in BINS bins of time. Every BINS-th image is scored
        once in each bin, so validation costs one forward pass over all images.
        """
        numbers = spec.tokenizer.code_channels * spec.tokenizer.pyramid.side**2
        names = tuple(f"t {number / BINS:g}-{(number + 1) / BINS:g}" for number in range(BINS))
        unit = f"squared error of {spec.config.prediction}"
        if spec.config.latents == "unquantized":  # another grid: these losses are not comparable
            unit += " of features"
        return Validation(
            unit, names, (numbers,) * BINS, ("loss",), score_every=BINS, forwards_per_image=BINS
        )

    def frames(self, spec: Spec, sampling: DitSampling) -> tuple[str, ...]:
        sampling_times(spec.config, sampling.steps)  # raises if there are too many steps
        return tuple(f"step {step}" for step in sampling.frame_steps())

    def build(self, spec: Spec, seed: int) -> DiT:
        # Imported in the methods: this module is also read by commands that must not load torch.
        from var_scaling.models.dit.model import DiT

        return DiT(spec.config, spec.tokenizer, spec.classes, seed)

    def normalize(self, network: nn.Module, latents: LatentStatistics | None) -> None:
        from var_scaling.models.dit.model import DiT

        assert isinstance(network, DiT)
        if latents is None:
            raise ValueError(
                "dit: needs the mean and deviation of each channel, but the token cache's "
                "manifest.json has none: an earlier version wrote it. Delete the folder of the "
                "tokens; the next run encodes them again"
            )
        constant = [str(z) for z, deviation in enumerate(latents.deviation) if deviation == 0]
        if constant:
            raise ValueError(
                f"dit: channels {', '.join(constant)} of the grid are the same in all images, so "
                "they cannot be normalised: the tokenizer has collapsed; train another one"
            )
        # Buffers of the network: they are saved with its weights, so sampling needs no token cache.
        for buffer_Z, values in (
            (network.latent_mean_Z, latents.mean),
            (network.latent_deviation_Z, latents.deviation),
        ):
            buffer_Z.copy_(buffer_Z.new_tensor(values))

    def random_numbers(self, spec: Spec, draws: StepDraws) -> tuple[Tensor, ...]:
        from var_scaling.models.dit.objective import noise_and_times

        return noise_and_times(draws, _shape(spec))

    def loss(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        batch: Batch,
        draws: StepDraws,
    ) -> Tensor:
        from var_scaling.models.dit.objective import training_loss

        return training_loss(spec, network, quantizer, batch)

    def validate(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        batch: Batch,
        rows: Sequence[int],
    ) -> list[Tensor]:
        from var_scaling.models.dit.objective import bin_sums

        return bin_sums(spec, network, quantizer, batch, rows)

    def sample(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        labels_B: Tensor,
        sampling: DitSampling,
        draws: SampleDraws,
        kept: KeptTokens | None = None,
        calls: StaticCalls | None = None,
    ) -> Iterator[Frame]:
        from var_scaling.models.dit.model import DiT
        from var_scaling.models.dit.sampler import denoise

        assert isinstance(network, DiT)
        yield from denoise(network, labels_B, _shape(spec), sampling, draws, calls)

    def network_passes(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        labels_B: Tensor,
        sampling: DitSampling,
        calls: StaticCalls | None = None,
    ) -> None:
        from var_scaling.models.dit.model import DiT
        from var_scaling.models.dit.sampler import run_network

        assert isinstance(network, DiT)
        run_network(network, labels_B, _shape(spec), sampling, calls)


def _shape(spec: Spec) -> tuple[int, int, int]:
    side = spec.tokenizer.pyramid.side
    return spec.tokenizer.code_channels, side, side


FAMILY = DitFamily()
