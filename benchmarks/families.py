"""Time training steps of VAR, AR and DiT at one width, as a share of the matmul peak.

    python benchmarks/families.py [--depth 6] [--batch 32] [--rounds 15]

The families take turns within each round, so that other load on the machine affects all of them
alike. Printed are medians over the rounds, and the median of the ratios to VAR in the same round.
"""

import argparse
import time
from statistics import median

import torch

from var_scaling.accounting import total
from var_scaling.config import Tokenizer
from var_scaling.evaluation.bench import Bench, matmul_peak
from var_scaling.ladder import tiny_optimiser
from var_scaling.models.ar.config import tiny_ar
from var_scaling.models.base import Batch, ModelRecord, ModelSpec, StepDraws
from var_scaling.models.dit.config import tiny_dit
from var_scaling.models.registry import family_of
from var_scaling.models.var.config import tiny_var
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training.optim import ScheduledOptimizer

CLASSES = 8


class Subject:
    """A family at one size, ready to take training steps on random tokens."""

    def __init__(self, name: str, model: ModelRecord, t: Tokenizer, batch: int):
        self.name, self.family = name, family_of(model)
        self.spec = ModelSpec(model, t, CLASSES)
        torch.manual_seed(0)
        self.network = self.family.build(self.spec, seed=0)
        self.quantizer = Quantizer(t).requires_grad_(False)
        self.optimizer = ScheduledOptimizer(self.network, tiny_optimiser(model.width), 1, "fp32")
        ids_BL = torch.randint(t.codebook_size, (batch, t.pyramid.length))
        self.batch = Batch(ids_BL, torch.randint(CLASSES, (batch,)))
        self.draws = StepDraws(seed=0, step=0, images=batch, local_slice=slice(0, batch))
        self.flops = batch * total(self.family.training_flops(self.spec))

    def time_step(self) -> float:
        """Seconds of one step: loss, backward, AdamW."""
        began = time.perf_counter()
        batch = self.batch._replace(numbers=self.family.random_numbers(self.spec, self.draws))
        loss = self.family.loss(self.spec, self.network, self.quantizer, batch, self.draws)
        self.optimizer.backward(loss)
        self.optimizer.step(0)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scales = Tokenizer(
        name="scales", pyramid=Pyramid(patch_nums=(1, 2, 3, 4)), codebook_size=128, code_channels=8
    )
    levels = scales.model_copy(update={"pyramid": Pyramid(patch_nums=(4, 4))})
    one_scale = scales.model_copy(
        update={"pyramid": Pyramid(patch_nums=(4,)), "codebook_size": 8192}
    )
    subjects = [
        Subject("var", tiny_var(options.depth), scales, options.batch),
        Subject("ar, two levels", tiny_ar(options.depth), levels, options.batch),
        Subject("ar, 8,192 codes", tiny_ar(options.depth), one_scale, options.batch),
        Subject("dit", tiny_dit(options.depth), scales, options.batch),
    ]
    for subject in subjects:
        subject.time_step()  # warm-up
    seconds: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for _ in range(options.rounds):
        for subject in subjects:
            seconds[subject.name].append(subject.time_step())
    peak = matmul_peak("fp32", Bench(torch.device("cpu"), 0.5)).flops_per_second
    var = subjects[0]
    print(f"depth {options.depth}, batch {options.batch}, 1 thread, peak {peak / 1e9:.0f} GFLOP/s")
    print(f"{'family':16} {'GFLOP':>7} {'ms':>7} {'share of peak':>14} {'relative to var':>20}")
    for subject in subjects:
        ratios = [
            (subject.flops / own_seconds) / (var.flops / var_seconds)
            for own_seconds, var_seconds in zip(
                seconds[subject.name], seconds[var.name], strict=True
            )
        ]
        typical = median(seconds[subject.name])
        print(
            f"{subject.name:16} {subject.flops / 1e9:7.2f} {1e3 * typical:7.1f} "
            f"{subject.flops / typical / peak:14.1%} {median(ratios):20.2f}"
        )


if __name__ == "__main__":
    main()
