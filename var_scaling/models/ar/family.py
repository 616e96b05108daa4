"""AR's implementation of ModelFamily. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from var_scaling.accounting import Count
from var_scaling.models.ar import accounting
from var_scaling.models.ar.config import ArModel, ArSampling, frame_rows
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
from var_scaling.recipe import Precision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from var_scaling.models.ar.model import AR
    from var_scaling.models.static_calls import StaticCalls
    from var_scaling.tokenizer.quantizer import Quantizer

Spec = ModelSpec[ArModel]


class ArFamily(ModelFamily[ArModel, ArSampling]):
    """Next-token prediction in raster order over the tokens of a one-scale tokenizer.

    A tokenizer whose scales all have the same side is a residual quantiser: each position has a
    code per level. The model predicts all levels of a position before the next position.
    """

    name = "ar"
    config = ArModel
    sampling = ArSampling

    def check(self, spec: Spec) -> None:
        pyramid = spec.tokenizer.pyramid
        # Raster order needs the same grid at every level.
        if len(set(pyramid.patch_nums)) > 1:
            raise ValueError(
                "model.family = ar: needs a tokenizer with one scale; tokenizer "
                f"{spec.tokenizer.name} has scales {', '.join(map(str, pyramid.patch_nums))}: use "
                f"patch_nums=({pyramid.side},), or repeat this side for residual codes"
            )

    def sequence_length(self, spec: Spec) -> int:
        return spec.tokenizer.pyramid.length

    def parameters(self, spec: Spec) -> Count:
        return accounting.ar_parameters(spec.config, spec.tokenizer, spec.classes)

    def block_parameters(self, spec: Spec) -> int:
        return accounting.ar_block_parameters(spec.config)

    def forward_flops(self, spec: Spec, dense: bool = False) -> Count:
        return accounting.ar_forward_flops(spec.config, spec.tokenizer, dense)

    def training_flops(self, spec: Spec, dense: bool = False) -> Count:
        return accounting.ar_training_flops(spec.config, spec.tokenizer, dense)

    def sampling_flops(self, spec: Spec, guided: bool = True) -> Count:
        passes = 2 if guided else 1
        return {name: passes * flops for name, flops in self.forward_flops(spec).items()}

    def batch_flops(
        self, spec: Spec, sampling: ArSampling, images: int, computed: bool = False
    ) -> int:
        guided = sampling.guided
        return accounting.ar_batch_flops(spec.config, spec.tokenizer, guided, images, computed)

    def training_bytes(self, spec: Spec, precision: Precision) -> float:
        return accounting.ar_training_bytes(spec.config, spec.tokenizer, precision)

    def recomputed_bytes(self, spec: Spec, precision: Precision) -> float:
        return accounting.ar_training_bytes(spec.config, spec.tokenizer, precision, recompute=True)

    def sampling_bytes(self, spec: Spec, sampling: ArSampling, images: int) -> int:
        guided = sampling.guided
        return accounting.ar_sampling_bytes(spec.config, spec.tokenizer, guided, images)

    def validation(self, spec: Spec) -> Validation:
        pyramid = spec.tokenizer.pyramid
        names = tuple(f"level {level + 1}" for level in range(pyramid.scales))
        return Validation("nats/token", names, pyramid.lengths)

    def frames(self, spec: Spec, sampling: ArSampling) -> tuple[str, ...]:
        return tuple(f"row {rows}" for rows in frame_rows(spec.tokenizer.pyramid.side))

    def build(self, spec: Spec, seed: int) -> AR:
        # Imported in the methods: this module is also read by commands that must not load torch.
        from var_scaling.models.ar.model import AR

        return AR(spec.config, spec.tokenizer, spec.classes, seed)

    def loss(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        batch: Batch,
        draws: StepDraws,
    ) -> Tensor:
        from var_scaling.models.ar.objective import training_loss

        return training_loss(spec, network, quantizer, batch, draws)

    def validate(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        batch: Batch,
        rows: Sequence[int],
    ) -> list[Tensor]:
        from var_scaling.models.ar.objective import level_sums

        return level_sums(spec, network, quantizer, batch)

    def sample(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        labels_B: Tensor,
        sampling: ArSampling,
        draws: SampleDraws,
        kept: KeptTokens | None = None,
        calls: StaticCalls | None = None,
    ) -> Iterator[Frame]:
        from var_scaling.models.ar.model import AR
        from var_scaling.models.ar.sampler import sample_tokens

        assert isinstance(network, AR)
        yield from sample_tokens(network, quantizer, labels_B, sampling, draws, calls)

    def network_passes(
        self,
        spec: Spec,
        network: nn.Module,
        quantizer: Quantizer,
        labels_B: Tensor,
        sampling: ArSampling,
        calls: StaticCalls | None = None,
    ) -> None:
        from var_scaling.models.ar.model import AR
        from var_scaling.models.ar.sampler import run_network

        assert isinstance(network, AR)
        run_network(network, quantizer, labels_B, sampling, calls)


FAMILY = ArFamily()
