"""VAR's implementation of ModelFamily. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from var_scaling.accounting import FEWEST_ROWS, Count
from var_scaling.models.base import (
    Batch,
    Frame,
    KeptTokens,
    ModelFamily,
    ModelSpec,
    PublishedFormat,
    SampleDraws,
    StepDraws,
    Validation,
)
from var_scaling.models.var import accounting
from var_scaling.models.var.config import VarModel, VarSampling
from var_scaling.recipe import Precision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from var_scaling.models.static_calls import StaticCalls
    from var_scaling.models.var.model import VAR
    from var_scaling.tokenizer.quantizer import Quantizer

Spec = ModelSpec[VarModel]


class VarFamily(ModelFamily[VarModel, VarSampling]):
    """Next-scale prediction over the token maps of a multi-scale tokenizer."""

    name = "var"
    config = VarModel
    sampling = VarSampling
    supports_editing = True

    def sequence_length(self, spec: Spec) -> int:
        return spec.tokenizer.pyramid.length

    def parameters(self, spec: Spec) -> Count:
        return accounting.var_parameters(spec.config, spec.tokenizer, spec.classes)

    def block_parameters(self, spec: Spec) -> int:
        return accounting.var_block_parameters(spec.config)

    def forward_flops(self, spec: Spec, dense: bool = False) -> Count:
        return accounting.var_forward_flops(spec.config, spec.tokenizer, dense)

    def training_flops(self, spec: Spec, dense: bool = False) -> Count:
        return accounting.var_training_flops(spec.config, spec.tokenizer, dense)

    def sampling_flops(self, spec: Spec, guided: bool = True) -> Count:
        return accounting.var_sampling_flops(spec.config, spec.tokenizer, guided)

    def batch_flops(
        self, spec: Spec, sampling: VarSampling, images: int, computed: bool = False
    ) -> int:
        weights = sampling.weights(spec.tokenizer.pyramid.scales)
        # The sampler computes FEWEST_ROWS - 1 null rows at the first scale; guidance needs one.
        uncond = FEWEST_ROWS - 1 if computed else int(any(weights))
        return accounting.var_batch_flops(spec.config, spec.tokenizer, weights, images, uncond)

    def training_bytes(self, spec: Spec, precision: Precision) -> float:
        return accounting.var_training_bytes(spec.config, spec.tokenizer, precision)

    def recomputed_bytes(self, spec: Spec, precision: Precision) -> float:
        return accounting.var_training_bytes(spec.config, spec.tokenizer, precision, recompute=True)

    def sampling_bytes(self, spec: Spec, sampling: VarSampling, images: int) -> int:
        weights = sampling.weights(spec.tokenizer.pyramid.scales)
        return accounting.var_sampling_bytes(spec.config, spec.tokenizer, weights, images)

    def validation(self, spec: Spec) -> Validation:
        pyramid = spec.tokenizer.pyramid
        sides = tuple(f"{side}x{side}" for side in pyramid.patch_nums)
        return Validation("nats/token", sides, pyramid.lengths, last_part=True)

    def frames(self, spec: Spec, sampling: VarSampling) -> tuple[str, ...]:
        pyramid = spec.tokenizer.pyramid
        sampling.steps(pyramid.scales)  # raises if a list has another length
        return tuple(f"{side}x{side}" for side in pyramid.patch_nums)

    @property
    def published(self) -> PublishedFormat:
        # Imported in the methods: this module is also read by commands that must not load torch.
        from var_scaling.models.var.published import ReleasedVar

        return ReleasedVar()

    def build(self, spec: Spec, seed: int) -> VAR:
        from var_scaling.models.var.model import VAR

        return VAR(spec.config, spec.tokenizer, spec.classes, seed)

    def loss(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        batch: Batch,
        draws: StepDraws,
    ) -> Tensor:
        from var_scaling.models.var.objective import training_loss

        return training_loss(spec, network, quantizer, batch, draws)

    def validate(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        batch: Batch,
        rows: Sequence[int],
    ) -> list[Tensor]:
        from var_scaling.models.var.objective import scale_sums

        return scale_sums(spec, network, quantizer, batch)

    def sample(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        labels_B: Tensor,
        sampling: VarSampling,
        draws: SampleDraws,
        kept: KeptTokens | None = None,
        calls: StaticCalls | None = None,
    ) -> Iterator[Frame]:
        from var_scaling.models.var.model import VAR
        from var_scaling.models.var.sampler import sample_tokens

        assert isinstance(network, VAR)
        for result in sample_tokens(network, quantizer, labels_B, sampling, draws, kept, calls):
            yield Frame(result.f_BZHH, result.ids_BS)

    def network_passes(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        labels_B: Tensor,
        sampling: VarSampling,
        calls: StaticCalls | None = None,
    ) -> None:
        from var_scaling.models.var.model import VAR
        from var_scaling.models.var.sampler import run_network

        assert isinstance(network, VAR)
        run_network(network, quantizer, labels_B, sampling, calls)


FAMILY = VarFamily()
