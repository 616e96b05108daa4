"""Records of measured speed: seconds and the rates that follow from them. No torch."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Self

from var_scaling.recipe import Precision
from var_scaling.record import Record


class Timing(Record):
    """Seconds of one computation over `repeats`, after an untimed first run."""

    median_seconds: float
    least_seconds: float
    most_seconds: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        return cls(
            median_seconds=median(seconds),
            least_seconds=min(seconds),
            most_seconds=max(seconds),
            repeats=len(seconds),
        )


class Memory(Record):
    """Peak memory; None where it is unknown."""

    gpu_peak_bytes: int | None = None  # of all tensors, weights included
    process_growth_bytes: int | None = None  # the process's peak minus its memory before


class Machine(Record):
    """The machine on which the times were measured."""

    name: str  # of the GPU, or of the CPU if there is none
    device: str
    threads: int
    torch: str


class MatmulPeak(Record):
    """The highest FLOP/s of square matrix products; a multiply-add is 2 FLOPs."""

    precision: Precision
    side: int
    flops_per_second: float


Peaks = Mapping[Precision, MatmulPeak]


class SamplingSpeed(Record):
    """Speed of sampling with one setting; `missing` gives the reason if it was not measured.

    `whole` includes everything: random numbers, transformer, filters, grids, decoder, and the copy
    to the CPU. MFU (PaLM, arXiv 2204.02311, appendix B) is the transformer's `model_flops` per
    second over the measured peak of its precision. `model_flops` are the FLOPs that the settings
    require for the batch: a second, unconditional pass only at scales where the guidance weight is
    not 0, and the unconditional first scale once per batch. `computed_flops` also count the rows
    that pad every batch to the same shape, so that rounding does not depend on the batch.
    """

    precision: Precision  # of the transformer; the decoder runs in fp32 or tf32
    guidance: float
    batch: int
    settings: str = ""  # other settings that differ from the defaults of the family, as text
    missing: str | None = None
    whole: Timing | None = None
    transformer: Timing | None = None  # without filters
    decoder: Timing | None = None
    images_per_second: float | None = None
    model_flops: int | None = None
    computed_flops: int | None = None
    transformer_mfu: float | None = None
    memory: Memory = Memory()


class TrainingSpeed(Record):
    """Speed of training steps on random tokens: forward, backward (counted in MFU), AdamW."""

    precision: Precision
    micro_batch: int
    missing: str | None = None
    step: Timing | None = None
    images_per_second: float | None = None
    tokens_per_second: float | None = None
    model_flops: int | None = None  # of one step
    mfu: float | None = None
    memory: Memory = Memory()
    compile_error: str | None = None  # why the steps were eager although they should be compiled


def utilisation(flops: int, seconds: float, peak: MatmulPeak | None) -> float | None:
    """`flops` / `seconds` as a share of `peak`; None if no peak was measured."""
    return None if peak is None else flops / seconds / peak.flops_per_second
