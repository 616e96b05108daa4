"""How well a tokenizer gives images back and which codes it uses, on held-out images."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from var_scaling.config import Tokenizer
from var_scaling.data.dataset import ImageDataset
from var_scaling.data.order import spread_rows
from var_scaling.disk import whole
from var_scaling.metrics import Line
from var_scaling.tokenizer.autoencoder import to_pixels, to_unit
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.tokenizer.perceptual import Perceptual

_HELD_OUT = 2048  # images that are scored
_JUDGED = 256  # images that LPIPS looks at: VGG-16 costs more than the tokenizer
_SHEET = 32  # images on the reconstruction sheet
_SSIM_WINDOW = 11  # pixels


class Reconstruction(NamedTuple):
    scores: Line
    sheet: np.ndarray  # uint8 (2, n, side, side, 3): some images, and what came back


@torch.no_grad()
def reconstruct(
    t: Tokenizer,
    model: MultiScaleVQVAE,
    held_out: ImageDataset,
    device: torch.device,
    perceptual: Perceptual | None,
) -> Reconstruction:
    """PSNR in dB (of the squared error over all pixels), SSIM, LPIPS, and per scale the codes' use.

    At most 2,048 images are scored, by LPIPS at most 256, spread evenly over all.

    Used: share of codes chosen at all; dead: how many were not. Perplexity: exp of the entropy of
    the choices. SSIM: Gaussian window of 11 pixels, σ 1.5 (Wang et al. 2004); absent below that.
    """
    was_training = model.training
    model.eval()
    batch = min(256, model.max_batch_size)
    rows = spread_rows(held_out.rows, _HELD_OUT)
    counts = torch.zeros(t.pyramid.scales, t.codebook_size, dtype=torch.int64)
    sums: dict[str, float] = {}
    for part in np.array_split(rows, -(-len(rows) // batch)):
        images = _read(held_out, part).to(device)
        ids_BL = model.encode(images)
        for name, values_B in _compared(model.decode(ids_BL), images).items():
            sums[name] = sums.get(name, 0.0) + float(values_B.double().mean()) * len(part)
        for k, ids_BS in enumerate(model.quantize.scales_of(ids_BL.cpu())):
            counts[k] += torch.bincount(ids_BS.flatten(), minlength=t.codebook_size)
    means = {name: value / len(rows) for name, value in sums.items()}
    if perceptual is not None:
        judged = _read(held_out, spread_rows(held_out.rows, _JUDGED)).to(device)
        parts = judged.split(min(32, batch))
        looks = [perceptual(model.decode(model.encode(part)), part) for part in parts]
        means["lpips"] = float(torch.cat(looks).double().mean())
    shown = spread_rows(held_out.rows, _SHEET)
    originals = held_out.images(shown, np.zeros_like(shown))
    parts = to_unit(torch.from_numpy(originals)).split(batch)
    rebuilt = torch.cat([model.decode(model.encode(part.to(device))) for part in parts])
    model.train(was_training)
    scores = {
        "psnr_db": float(10 * np.log10(4 / means["mse"])),
        **means,
        "images_scored": len(rows),
        **_usage(counts),
    }
    return Reconstruction(scores, np.stack([originals, to_pixels(rebuilt.cpu()).numpy()]))


def _read(held_out: ImageDataset, rows: np.ndarray) -> Tensor:
    return to_unit(torch.from_numpy(held_out.images(rows, np.zeros_like(rows))))


def _compared(rebuilt: Tensor, images: Tensor) -> dict[str, Tensor]:
    from torchmetrics.functional.image import structural_similarity_index_measure

    compared = {"mse": (rebuilt - images).square().mean((1, 2, 3))}
    if images.shape[-1] >= _SSIM_WINDOW:
        compared["ssim"] = structural_similarity_index_measure(  # type: ignore[assignment]
            rebuilt, images, reduction="none", data_range=(-1.0, 1.0)
        )
    return compared


def _usage(counts_KV: Tensor) -> Line:
    whole, scales = counts_KV.sum(0), list(counts_KV)
    return {
        "codes_used_all": _used(whole),
        "codes_dead": int((whole == 0).sum()),
        "perplexity_all": _perplexity(whole),
        "used_per_scale": [_used(row) for row in scales],
        "perplexity_per_scale": [_perplexity(row) for row in scales],
    }


def _used(counts_V: Tensor) -> float:
    return float((counts_V > 0).double().mean())


def _perplexity(counts_V: Tensor) -> float:
    shares = counts_V.double() / counts_V.sum()
    return float((-torch.xlogy(shares, shares).sum()).exp())


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
