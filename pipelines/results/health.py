"""Tokenizers and trials that have plainly failed: their law is fitted all the same, with a warning.

Each check is one that a healthy run passes by a wide margin. No torch.
"""

import math
from collections.abc import Iterator

from pipelines.execution.status import state_of
from pipelines.stages.graph import Stage, Stages
from pipelines.workspace.log_end import latest_line
from var_scaling.config import SomeTokenizer, Tokenizer
from var_scaling.metrics import Line

FEWEST_USED = 0.5  # share of all codes
LEAST_PERPLEXITY = 4.0  # of a scale's codes, where the scale has as many tokens
BELOW_RECORD = 3.0  # dB
# PSNR in dB on held-out images that the tokenizers of this project's sweeps came to, by the
# fingerprint of the record: a changed recipe has no value here. Machines differ by up to 3 dB.
PSNR_DB = {
    "b8d98d17aac3": 10.3,  # smoke
    "196e46074aea": 21.0,  # quickstart: 19.6 to 23 on four machines
    "856e4357e0a1": 21.2,  # quickstart_again
    "9bcc2fa2e492": 24.0,  # cifar10
}


def plain_failures(stages: Stages) -> tuple[str, ...]:
    """A sentence for each failed check of the tokenizers and models as they are now."""
    return tuple(
        f"{stage.title} {what}"
        for stage in stages
        if stage.kind.name in _CHECKS
        for what in _CHECKS[stage.kind.name](stage)
    )


def _of_tokenizer(stage: Stage) -> Iterator[str]:
    line = latest_line(stage.directory / "metrics.jsonl", "validation")
    if state_of(stage.directory)[0] == "diverged":
        yield "diverged: its tokens are those of noise"
    elif line is not None:
        yield from _tokenizer_failures(stage.config, line)


def _tokenizer_failures(t: SomeTokenizer, line: Line) -> Iterator[str]:
    used = line.get("codes_used_all")
    if used is not None and used < FEWEST_USED:
        yield (
            f"uses {used:.0%} of its {t.codebook_size:,} codes, fewer than {FEWEST_USED:.0%}: the "
            "law is that of a smaller vocabulary"
        )
    sides = t.pyramid.patch_nums
    poor = [
        f"{side} x {side} ({perplexity:.1f})"
        for side, perplexity in zip(sides, line.get("perplexity_per_scale", ()), strict=False)
        if side * side >= LEAST_PERPLEXITY and perplexity < LEAST_PERPLEXITY
    ]
    if poor:
        yield (
            f"has a code perplexity below {LEAST_PERPLEXITY:g} at the scales {', '.join(poor)}: "
            "their tokens say next to nothing"
        )
    recorded, found = PSNR_DB.get(t.fingerprint()), line.get("psnr_db")
    if recorded is not None and found is not None and found < recorded - BELOW_RECORD:
        yield (
            f"reconstructs with {found:.1f} dB PSNR; for its recipe {recorded:.1f} dB are recorded"
        )


def _of_trial(stage: Stage) -> Iterator[str]:
    state, why = state_of(stage.directory)
    if state == "diverged":
        yield f"diverged ({why}): it is no point of any law"
    elif state == "done":
        yield from _of_imported(stage)


def _of_imported(stage: Stage) -> Iterator[str]:
    line = latest_line(stage.directory / "metrics.jsonl", "validation")
    if line is not None:
        yield from _model_failures(stage.config.tokenizer, line)


_CHECKS = {"tokenizer": _of_tokenizer, "trial": _of_trial, "imported": _of_imported}


def _model_failures(t: Tokenizer, line: Line) -> Iterator[str]:
    loss, uniform, without = line["loss"], math.log(t.codebook_size), line.get("loss_no_label")
    if loss >= uniform:
        yield (
            f"has a held-out loss of {loss:.3f} nats a token, no better than the {uniform:.3f} of "
            f"a uniform guess among {t.codebook_size:,} codes"
        )
    if without is not None and loss > without:
        yield (
            f"is worse with the class than without: {loss:.4f} and {without:.4f} nats a token. Are "
            "the labels right?"
        )
