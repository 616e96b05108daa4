"""Reconstruction quality and codebook use of a tokenizer on held-out images."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from var_scaling.config import Tokenizer
from var_scaling.data.dataset import ImageDataset
from var_scaling.data.order import spread_rows
from var_scaling.disk import atomic_write
from var_scaling.metrics import Line
from var_scaling.recipe import Precision
from var_scaling.tokenizer.autoencoder import to_pixels, to_unit
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.tokenizer.perceptual import Perceptual
from var_scaling.training.optim import precision_context

_MAX_SCORED = 2048  # images
_MAX_LPIPS = 256  # images scored by LPIPS: VGG-16 costs more than the tokenizer
_SHEET = 32  # images on the reconstruction sheet
_SSIM_WINDOW = 11  # pixels


class Reconstruction(NamedTuple):
    scores: Line
    sheet: np.ndarray  # uint8 (2, n, side, side, 3): images and their reconstructions


@torch.no_grad()
def reconstruct(
    t: Tokenizer,
    model: MultiScaleVQVAE,
    held_out: ImageDataset,
    device: torch.device,
    perceptual: Perceptual | None,
) -> Reconstruction:
    """PSNR in dB (from the mean squared error over all pixels), SSIM, LPIPS, and use of the codes.

    At most 2,048 images are scored, by LPIPS at most 256, spread evenly over the held-out images.
    With an `encode_precision` other than fp32 also the share of equal tokens (`equal_tokens`).

    Used: share of the codes that occur; dead: number of codes that do not. Perplexity: exp of the
    entropy of the code frequencies. Both are given per scale and over all scales. SSIM: Gaussian
    window of 11 pixels, σ 1.5 (Wang et al. 2004); absent for smaller images.
    """
    was_training = model.training
    model.eval()
    batch = min(256, model.max_batch_size)
    rows = spread_rows(held_out.rows, _MAX_SCORED)
    # (K, V): how often each code is used at each scale.
    counts = torch.zeros(t.pyramid.scales, t.codebook_size, dtype=torch.int64)
    sums: dict[str, float] = {}
    for part in np.array_split(rows, -(-len(rows) // batch)):
        images = _read(held_out, part, device)
        ids_BL = encode_in(t.encode_precision, model, images)
        for name, values_B in _pixel_scores(model.decode(ids_BL), images).items():
            # Weighted by the length of the part, because the last parts can be one image shorter.
            sums[name] = sums.get(name, 0.0) + float(values_B.double().mean()) * len(part)
        for k, ids_BS in enumerate(model.quantize.scales_of(ids_BL.cpu())):
            counts[k] += torch.bincount(ids_BS.flatten(), minlength=t.codebook_size)
    means = {name: value / len(rows) for name, value in sums.items()}
    # A pass of its own over fewer images (_MAX_LPIPS).
    if perceptual is not None:
        images = _read(held_out, spread_rows(held_out.rows, _MAX_LPIPS), device)
        parts = images.split(min(32, batch))
        distances = [
            perceptual(model.decode(encode_in(t.encode_precision, model, part)), part)
            for part in parts
        ]
        means["lpips"] = float(torch.cat(distances).double().mean())
    rows_of_sheet = spread_rows(held_out.rows, _SHEET)
    originals = held_out.images(rows_of_sheet, np.zeros_like(rows_of_sheet))
    parts = to_unit(torch.from_numpy(originals)).split(batch)
    rebuilt = torch.cat(
        [model.decode(encode_in(t.encode_precision, model, part.to(device))) for part in parts]
    )
    if t.encode_precision != "fp32":
        pixels = (_pixels(held_out, part) for part in np.array_split(rows, -(-len(rows) // batch)))
        means |= equal_tokens(model, pixels, t.encode_precision)
    model.train(was_training)
    scores = {
        "psnr_db": float(10 * np.log10(4 / means["mse"])),  # 4 = 2²: pixels are in [-1, 1]
        **means,
        "images_scored": len(rows),
        **_usage(counts),
    }
    return Reconstruction(scores, np.stack([originals, to_pixels(rebuilt.cpu()).numpy()]))


def encode_in(precision: Precision, model: MultiScaleVQVAE, images_B3HH: Tensor) -> Tensor:
    """Token ids (B, L), with the encoder in `precision`."""
    with precision_context(precision, images_B3HH.device):
        return model.encode(images_B3HH)


@torch.no_grad()
def equal_tokens(
    model: MultiScaleVQVAE, batches: Iterable[Tensor], precision: Precision
) -> dict[str, float]:
    """The share of tokens that are the same if the encoder runs in `precision` and in fp32.

    `batches` are uint8 images (B, H, H, 3). `equal_tokens`: of all tokens; `equal_tokens_K`: of
    scale K, from 1. A difference at one scale changes the residuals of all finer scales, so the
    shares fall from scale to scale.
    """
    device, pyramid = model.quantize.embedding.weight.device, model.quantize.pyramid
    equal_L, images = torch.zeros(pyramid.length, dtype=torch.int64, device=device), 0
    for pixels_BHH3 in batches:
        for part in to_unit(pixels_BHH3.to(device)).split(model.max_batch_size):
            ids_BL, exact_BL = (encode_in(one, model, part) for one in (precision, "fp32"))
            equal_L += (ids_BL == exact_BL).sum(0)
            images += len(part)
    shares_L = equal_L.double().cpu() / images
    shares = {"equal_tokens": float(shares_L.mean())}
    for k, share_S in enumerate(shares_L.split(list(pyramid.lengths)), 1):
        shares[f"equal_tokens_{k}"] = float(share_S.mean())
    return shares


def _read(held_out: ImageDataset, rows: np.ndarray, device: torch.device) -> Tensor:
    # To the device as bytes, a quarter of their size as floats.
    return to_unit(_pixels(held_out, rows).to(device))


def _pixels(held_out: ImageDataset, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(held_out.images(rows, np.zeros_like(rows)))


def _pixel_scores(rebuilt: Tensor, images: Tensor) -> dict[str, Tensor]:
    from torchmetrics.functional.image import structural_similarity_index_measure

    scores = {"mse": (rebuilt - images).square().mean((1, 2, 3))}
    if images.shape[-1] >= _SSIM_WINDOW:
        scores["ssim"] = structural_similarity_index_measure(  # type: ignore[assignment]
            rebuilt, images, reduction="none", data_range=(-1.0, 1.0)
        )
    return scores


def _usage(counts_KV: Tensor) -> Line:
    total, scales = counts_KV.sum(0), list(counts_KV)
    return {
        "codes_used_all": _used(total),
        "codes_dead": int((total == 0).sum()),
        "perplexity_all": _perplexity(total),
        "used_per_scale": [_used(row) for row in scales],
        "perplexity_per_scale": [_perplexity(row) for row in scales],
    }


def _used(counts_V: Tensor) -> float:
    return float((counts_V > 0).double().mean())


def _perplexity(counts_V: Tensor) -> float:
    # xlogy below: a code that is never used contributes 0, not NaN.
    shares = counts_V.double() / counts_V.sum()
    return float((-torch.xlogy(shares, shares).sum()).exp())


def draw_sheet(path: Path, pairs: np.ndarray) -> None:
    """Write a PNG of images, each above its reconstruction; small images are enlarged."""
    _, count, side, _, _ = pairs.shape
    columns = min(count, 16)
    zoom = max(1, 64 // side)
    lines = []
    # A last row that is not full is left out; images and reconstructions alternate row by row.
    for start in range(0, count - count % columns, columns):
        for images in pairs[:, start : start + columns]:
            framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
            lines.append(np.concatenate(list(framed), axis=1))
    sheet = np.concatenate(lines).repeat(zoom, axis=0).repeat(zoom, axis=1)
    with atomic_write(path) as temporary_path:
        Image.fromarray(sheet).save(temporary_path, format="PNG")
