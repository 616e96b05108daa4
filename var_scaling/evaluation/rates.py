"""What was measured of speed, as records: seconds, and the rates that follow. No torch."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Self

from var_scaling.recipe import Precision
from var_scaling.record import Record


class Timing(Record):
    """What one piece of work took, over repeats after a first that does not count."""

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
    """Absent where it cannot be told."""

    gpu_peak_bytes: int | None = None  # of all tensors, weights among them
    process_growth_bytes: int | None = None  # of the process's peak over what it held before


class Machine(Record):
    """What the clock ran on."""

    name: str  # of the GPU, or else of the processor
    device: str
    threads: int
    torch: str


class MatmulPeak(Record):
    """The most that square matrix products reached, FLOPs (2 a multiply-add) by the second."""

    precision: Precision
    side: int
    flops_per_second: float


Peaks = Mapping[Precision, MatmulPeak]


class SamplingSpeed(Record):
    """One way to sample; `missing` says why there is nothing else, if there is not.

    `whole` has all: random numbers, transformer, filters, the grid, the decoder, the way to the
    processor. MFU (PaLM, arXiv 2204.02311, appendix B) is the transformer's `model_flops` a second
    over the measured peak of its precision. They are those of the batch that the settings need: two
    passes only for as long as guidance has weight, and the first scale untold once a batch.
    `computed_flops` has also the rows that are there to make every batch round alike.
    """

    precision: Precision  # of the transformer; the decoder always runs in fp32
    guidance: float
    batch: int
    settings: str = ""  # others that are not the family's usual ones, in words
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
    """Steps on random tokens: forward, backward, AdamW; MFU as above, backward counted."""

    precision: Precision
    micro_batch: int
    missing: str | None = None
    step: Timing | None = None
    images_per_second: float | None = None
    tokens_per_second: float | None = None
    model_flops: int | None = None  # of one step
    mfu: float | None = None
    memory: Memory = Memory()


def utilisation(flops: int, seconds: float, peak: MatmulPeak | None) -> float | None:
    """Share of `peak` that `flops` in `seconds` come to; None where no peak was measured."""
    return None if peak is None else flops / seconds / peak.flops_per_second
