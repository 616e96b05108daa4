"""Counts of published models and costs of sweeps, as docs/families.md and others show them."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typer.testing import CliRunner

from pipelines.cli.main import app
from var_scaling.accounting import total
from var_scaling.accounting.tokenizer import encoding_flops
from var_scaling.config import Tokenizer
from var_scaling.models.ar.config import llamagen
from var_scaling.models.base import ModelRecord, ModelSpec
from var_scaling.models.dit.config import published_dit
from var_scaling.models.registry import family_of
from var_scaling.models.var.config import VarModel
from var_scaling.pyramid import Pyramid

IMAGES = 1_281_167  # ImageNet's training images
KL_F8 = Tokenizer(name="kl-f8", pyramid=Pyramid(patch_nums=(32,)), code_channels=4)
VAR = Tokenizer(name="var")


def _one_map(side: int) -> Tokenizer:
    return Tokenizer(
        name="vq", pyramid=Pyramid(patch_nums=(side,)), codebook_size=16_384, code_channels=8
    )


@dataclass(frozen=True)
class PublishedModel:
    """A row of the table of published figures; FID and IS as printed by `source`."""

    name: str
    spec: ModelSpec
    epochs: float
    passes: int  # network passes of an image, both of guidance
    fid: str
    inception_score: str
    source: str

    @property
    def parameters(self) -> int:
        return parameters_of(self.spec)

    @property
    def train_flops(self) -> float:
        """Forward and backward, attention pairs that the mask allows."""
        return 3 * forward(self.spec) * IMAGES * self.epochs

    @property
    def sampling_flops(self) -> float:
        return self.passes * forward(self.spec)


def _spec(model: ModelRecord, tokenizer: Tokenizer) -> ModelSpec:
    return ModelSpec(model, tokenizer, 1000)


def forward(spec: ModelSpec, dense: bool = False) -> int:
    return total(family_of(spec.config).forward_flops(spec, dense))


def parameters_of(spec: ModelSpec) -> int:
    return total(family_of(spec.config).parameters(spec))


def dit(size: str) -> ModelSpec:
    return _spec(published_dit(size, 2), KL_F8)


def ar(size: str, side: int = 16) -> ModelSpec:
    return _spec(llamagen(size), _one_map(side))


def var(depth: int) -> ModelSpec:
    return _spec(VarModel(depth=depth), VAR)


@cache
def published_models() -> tuple[PublishedModel, ...]:
    """Tian et al., Table 1; Sun et al. and their README; Peebles and Xie, Table 2."""
    # 7 M steps of 256 images.
    dit_epochs = 7_000_000 * 256 / IMAGES
    return (
        PublishedModel("VAR-d16", var(16), 200, 2, "3.30", "274.4", "V"),
        PublishedModel("VAR-d20", var(20), 250, 2, "2.57", "302.6", "V"),
        PublishedModel("VAR-d24", var(24), 350, 2, "2.09", "312.9", "V"),
        PublishedModel("VAR-d30", var(30), 350, 2, "1.92", "323.1", "V"),
        PublishedModel("LlamaGen-B, 256 tokens", ar("B"), 300, 2, "5.46", "193.6", "L"),
        PublishedModel("LlamaGen-L, 256 tokens", ar("L"), 300, 2, "3.80", "248.3", "L"),
        PublishedModel("LlamaGen-XL, 576 tokens", ar("XL", 24), 300, 2, "2.62", "", "L"),
        PublishedModel("LlamaGen-XXL, 576 tokens", ar("XXL", 24), 300, 2, "2.34", "", "L"),
        PublishedModel("DiT-XL/2, 250 steps", dit("XL"), dit_epochs, 500, "2.27", "278.2", "D"),
    )


def by_name(start: str) -> PublishedModel:
    return next(model for model in published_models() if model.name.startswith(start))


@cache
def plan_of(sweep: str, *options: str) -> dict[str, Any]:
    """What `var-scaling plan SWEEP --json` prints, in an empty home without a settings file."""
    with TemporaryDirectory() as folder:
        words = ["plan", sweep, "--json", "--home", folder, *options]
        settings = Path(folder, "var-scaling.toml")
        settings.touch()
        done = CliRunner().invoke(app, words, env={"VAR_SCALING_SETTINGS": str(settings)})
    if done.exit_code:
        raise RuntimeError(f"var-scaling {' '.join(words)}: {done.output}")
    return json.loads(done.stdout)


def encoding_share(depth: int) -> float:
    """Of the encoder, in the released training of a VAR, which encodes every image again."""
    encoder = encoding_flops(VAR)
    return encoder / (encoder + 3 * forward(var(depth), dense=True))


def count_rows() -> list[tuple[str, ...]]:
    """Parameters and dense forward FLOPs of the published sizes, three families side by side."""
    columns = [
        [(f"DiT-{size}/2", dit(size)) for size in ("S", "B", "L", "XL")],
        [(f"LlamaGen-{size}", ar(size)) for size in ("B", "L", "XL", "XXL", "3B")],
        [(f"VAR-d{depth}", var(depth)) for depth in (12, 16, 20, 24, 30)],
    ]
    rows = [("", "parameters", "forward GFLOPs") * 3]
    for index in range(5):
        cells: list[str] = []
        for column in columns:
            if index >= len(column):
                cells += ["", "", ""]
                continue
            name, spec = column[index]
            parameters = parameters_of(spec) / 1e6
            digits = 0 if parameters >= 1000 else 1
            gflops = forward(spec, dense=True) / 1e9
            cells += [name, f"{parameters:,.{digits}f} M", f"{gflops:,.1f}"]
        rows.append(tuple(cells))
    return rows


def figure_rows() -> list[tuple[str, ...]]:
    """Published FID and IS, with the compute counted here."""
    rows = [("model", "parameters", "epochs", "training FLOPs", "sampling", "FID", "IS", "from")]
    for one in published_models():
        millions = one.parameters / 1e6
        size = f"{millions:.0f} M" if millions < 1000 else f"{millions / 1e3:.2f} B"
        rows.append((
            one.name, size, f"{one.epochs:,.0f}", flops_text(one.train_flops),
            sampling_text(one.sampling_flops), one.fid, one.inception_score, one.source,
        ))  # fmt: skip
    return rows


def flops_text(flops: float) -> str:
    """Two digits below 1e21, three above."""
    text = f"{flops:.1e}" if flops < 1e21 else f"{flops:.2e}"
    return text.replace("e+", "e")


def sampling_text(flops: float) -> str:
    return f"{flops / 1e12:.2f} T" if flops < 1e13 else f"{flops / 1e12:.0f} T"
