"""Checks that find failed tokenizers and trials. The law is still fitted, with a warning.

A healthy run passes each check by a wide margin. No torch.
"""

import math
from collections.abc import Iterator

from pipelines.execution.status import state_of
from pipelines.stages.graph import Stage, Stages
from pipelines.workspace.log_end import latest_line
from var_scaling.config import SomeTokenizer, Tokenizer
from var_scaling.metrics import Line

MIN_CODES_USED = 0.5  # as a share of the codebook
MIN_PERPLEXITY = 4.0  # of a scale's codes, if it has at least as many tokens
PSNR_TOLERANCE_DB = 3.0  # dB
# Measured PSNR in dB on held-out images of the tokenizers of this project's sweeps, by the
# fingerprint of the record. A changed recipe has no entry. Machines differ by up to 3 dB.
PSNR_DB = {
    "96dc71770472": 13.1,  # smoke
    "64138fa802ec": 22.1,  # quickstart
    "7a7cb8f1b1e0": 22.8,  # quickstart_again
}


def failed_checks(stages: Stages) -> tuple[str, ...]:
    """One sentence for each check that a tokenizer or model currently fails."""
    return tuple(
        f"{stage.title} {failure}"
        for stage in stages
        if stage.kind.name in _CHECKS
        for failure in _CHECKS[stage.kind.name](stage)
    )


def _check_tokenizer(stage: Stage) -> Iterator[str]:
    line = latest_line(stage.directory / "metrics.jsonl", "validation")
    if state_of(stage.directory)[0] == "diverged":
        yield "diverged: its tokens carry no information about the images"
    elif line is not None:
        yield from _tokenizer_score_failures(stage.config, line)


def _tokenizer_score_failures(t: SomeTokenizer, line: Line) -> Iterator[str]:
    used = line.get("codes_used_all")
    if used is not None and used < MIN_CODES_USED:
        yield (
            f"uses {used:.0%} of its {t.codebook_size:,} codes, fewer than {MIN_CODES_USED:.0%}: "
            "the law holds for a smaller codebook"
        )
    sides = t.pyramid.patch_nums
    poor = [
        f"{side} x {side} ({perplexity:.1f})"
        # strict=False: the line may lack the key.
        for side, perplexity in zip(sides, line.get("perplexity_per_scale", ()), strict=False)
        if side * side >= MIN_PERPLEXITY and perplexity < MIN_PERPLEXITY
    ]
    if poor:
        yield (
            f"has a code perplexity below {MIN_PERPLEXITY:g} at the scales {', '.join(poor)}: "
            "their tokens carry almost no information"
        )
    recorded, psnr_db = PSNR_DB.get(t.fingerprint()), line.get("psnr_db")
    if recorded is not None and psnr_db is not None and psnr_db < recorded - PSNR_TOLERANCE_DB:
        yield (
            f"reconstructs with {psnr_db:.1f} dB PSNR; for its recipe {recorded:.1f} dB are "
            "recorded"
        )


def _check_trial(stage: Stage) -> Iterator[str]:
    state, reason = state_of(stage.directory)
    if state == "diverged":
        yield f"diverged ({reason}): no law is fitted to it"
    elif state == "done":
        yield from _check_evaluation(stage)


def _check_evaluation(stage: Stage) -> Iterator[str]:
    line = latest_line(stage.directory / "metrics.jsonl", "validation")
    if line is not None:
        yield from _loss_failures(stage.config.tokenizer, line)


_CHECKS = {"tokenizer": _check_tokenizer, "trial": _check_trial, "imported": _check_evaluation}


def _loss_failures(t: Tokenizer, line: Line) -> Iterator[str]:
    loss, uniform, unconditional = (
        line["loss"],
        math.log(t.codebook_size),  # nats per token of a uniform guess
        line.get("loss_no_label"),
    )
    if loss >= uniform:
        yield (
            f"has a held-out loss of {loss:#.4g} nats per token, not below the {uniform:#.4g} "
            f"of a uniform distribution over {t.codebook_size:,} codes"
        )
    if unconditional is not None and loss > unconditional:
        yield (
            f"has a higher loss with the class ({loss:#.5g} nats per token) than without "
            f"({unconditional:#.5g}). Are the labels right?"
        )
