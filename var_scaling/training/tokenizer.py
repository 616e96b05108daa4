"""Train a tokenizer: reconstruction and commitment by descent, the codes by moving averages."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from var_scaling.accounting import tokenizer_flops, total
from var_scaling.config import Tokenizer
from var_scaling.data.loader import in_order
from var_scaling.data.order import batch_rows, spread_rows
from var_scaling.data.sources import Source
from var_scaling.disk import whole
from var_scaling.tokenizer.autoencoder import to_pixels, to_unit
from var_scaling.tokenizer.codebook import CodebookAverages
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training import checkpoint
from var_scaling.training.loop import (
    Interrupted,
    Stats,
    Stopwatch,
    Window,
    descend,
    log_steps,
    updates,
)
from var_scaling.training.optim import adamw, set_rates
from var_scaling.training.trial import Log

_HELD_OUT = 2048  # images that PSNR and usage are measured on
_SHEET = 32  # images on the reconstruction sheet
_EVALUATIONS = 5


def train_tokenizer(
    t: Tokenizer,
    training: Source,
    held_out: Source,
    folder: Path,
    log: Log,
    save_every: float,
    stop: Callable[[], bool],
    workers: int,
    sheet: Path,
) -> MultiScaleVQVAE:
    """The trained tokenizer. Resumes bitwise; raises Diverged, or Interrupted if `stop` asks."""
    model = MultiScaleVQVAE(t)
    averages = CodebookAverages(model.quantize, t.codebook, t.seed)
    optimizer = adamw(model, t.optimiser)
    state = checkpoint.latest(folder)
    if state is None:
        state = {"step": 0, "seconds": 0.0, "window": None}
    else:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        averages.restore(state["averages"])
    window, watch = Window(state["window"]), Stopwatch(state["seconds"], save_every)
    logged = log_steps(t.steps)
    evaluated = frozenset(max(1, t.steps * k // _EVALUATIONS) for k in range(1, _EVALUATIONS + 1))
    keys = (
        batch_rows(training.rows, t.batch, t.seed, step) for step in range(state["step"], t.steps)
    )
    batches = iter(in_order(lambda key: training.images(*key), keys, workers))

    def update(step: int) -> Stats:
        set_rates(optimizer, t.optimiser, step, t.steps)
        if step == t.codebook.starts_at:
            averages.start(_first_features(t, model, training))
        images = to_unit(torch.from_numpy(next(batches)))
        f_BCHH = model.features(images)
        quantisation = torch.zeros(())
        if step >= t.codebook.starts_at:
            f_BCHH, quantisation = quantise(model, averages, f_BCHH, step)
        reconstruction = F.mse_loss(model.render(f_BCHH), images)
        loss = reconstruction + quantisation
        norm = descend(loss, optimizer, model.parameters(), t.optimiser.clip)
        return {
            "loss": loss.detach(),
            "reconstruction": reconstruction.detach(),
            "quantisation": quantisation.detach(),
            "grad_norm": norm,
        }

    def save(done: int) -> None:
        weights, moments = model.state_dict(), optimizer.state_dict()
        progress = {"seconds": watch.lap(), "window": window.sums, "averages": averages.state()}
        checkpoint.save(folder, done, {"model": weights, "optimizer": moments, **progress})
        watch.saved()

    def look(done: int) -> None:
        scores, rows = score(t, model, held_out)
        log("validation", done, {**scores, **progress_of(t, done, watch.lap())})
        draw_sheet(sheet, rows)

    for done, stats in updates(update, state["step"], t.steps):
        window.add(stats)
        if done in logged:
            rate = {"learning_rate": optimizer.param_groups[0]["lr"]}
            log("train", done, {**window.take(), **rate, **progress_of(t, done, watch.lap())})
        if done in evaluated:
            with watch.paused():
                look(done)
        if done < t.steps and (watch.save_is_due() or stop()):
            save(done)
            if stop():
                raise Interrupted(f"{t.name} stopped after step {done} of {t.steps}")
    return model.eval()


def quantise(
    model: MultiScaleVQVAE, averages: CodebookAverages, f_BCHH: torch.Tensor, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The quantised grid, straight through, and its loss; the codes move to what chose them."""
    quantized = model.quantize(f_BCHH)
    ids_N = torch.cat([ids.flatten() for ids in quantized.ids])
    averages.update(torch.cat(quantized.vectors), ids_N, step)
    return quantized.f_BCHH, quantized.loss


@torch.no_grad()
def score(
    t: Tokenizer, model: MultiScaleVQVAE, held_out: Source
) -> tuple[dict[str, object], np.ndarray]:
    """PSNR in dB (of the mean squared error over all pixels) and, per scale, the use of the codes.

    Used: share of codes chosen at all. Perplexity: exp of the entropy of the choices. Also returns
    some images and their reconstructions, uint8 (2, n, side, side, 3).
    """
    model.eval()
    rows = spread_rows(held_out.rows, _HELD_OUT)
    counts = torch.zeros(t.pyramid.scales, t.codes, dtype=torch.int64)
    squares = 0.0
    for part in np.array_split(rows, -(-len(rows) // 256)):
        images = to_unit(torch.from_numpy(held_out.images(part, np.zeros_like(part))))
        ids_BL = model.encode(images)
        rebuilt = model.decode(ids_BL)
        squares += float((rebuilt - images).double().square().mean()) * len(part)
        for k, ids_BS in enumerate(model.quantize.scales_of(ids_BL)):
            counts[k] += torch.bincount(ids_BS.flatten(), minlength=t.codes)
    shown = spread_rows(held_out.rows, _SHEET)
    originals = held_out.images(shown, np.zeros_like(shown))
    rebuilt = model.decode(model.encode(to_unit(torch.from_numpy(originals))))
    model.train()
    mse = squares / len(rows)
    return {
        "psnr_db": float(10 * np.log10(4 / mse)),
        "mse": mse,
        **_usage("all", counts.sum(0)),
        "used_per_scale": [_usage("", row)["codes_used_"] for row in counts],
        "perplexity_per_scale": [_usage("", row)["perplexity_"] for row in counts],
    }, np.stack([originals, to_pixels(rebuilt).numpy()])


def draw_sheet(path: Path, pairs: np.ndarray) -> None:
    """A PNG of images, each over its reconstruction, enlarged until a person can see them."""
    _, count, side, _, _ = pairs.shape
    columns = min(count, 16)
    zoom = max(1, 64 // side)
    lines = []
    for start in range(0, count - count % columns, columns):
        for images in pairs[:, start : start + columns]:
            framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
            lines.append(np.concatenate(list(framed), axis=1))
    sheet = np.concatenate(lines).repeat(zoom, axis=0).repeat(zoom, axis=1)
    with whole(path) as beside:
        Image.fromarray(sheet).save(beside, format="PNG")


def progress_of(t: Tokenizer, done: int, seconds: float) -> dict[str, float]:
    images = done * t.batch
    return {
        "images_seen": images,
        "train_flops": 3 * images * total(tokenizer_flops(t)),
        "seconds": seconds,
        "images_per_second": images / seconds if seconds > 0 else 0.0,
    }


def _usage(scope: str, counts_V: torch.Tensor) -> dict[str, float]:
    shares = counts_V.double() / counts_V.sum()
    entropy = -torch.xlogy(shares, shares).sum()
    return {
        f"codes_used_{scope}": float((counts_V > 0).double().mean()),
        f"perplexity_{scope}": float(entropy.exp()),
    }


@torch.no_grad()
def _first_features(t: Tokenizer, model: MultiScaleVQVAE, training: Source) -> torch.Tensor:
    rows = spread_rows(training.rows, t.codebook.k_means_images)
    return model.features(to_unit(torch.from_numpy(training.images(rows, np.zeros_like(rows)))))
