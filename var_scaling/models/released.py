"""The released code's checkpoints (VAR.md 1.1, 1.2): read into our records, written for its loader.

Parameters have the same names there and here. The file has more beside: sidecar buffers that follow
from the settings, dropped on the way in and made anew on the way out.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from var_scaling.config import ImportedModel, ImportedTokenizer, Model, Tokenizer
from var_scaling.models.var import VAR, block_causal_mask
from var_scaling.pyramid import PAPER_256, PAPER_512, Pyramid
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.weights import State, WeightsError, as_tensors, listed, refuse_mismatch

_SIDECARS = ("ema_vocab_hit_SV", "lvl_1L", "attn_bias_for_masking", "zero_k_bias")
_PRESETS = {sum(side * side for side in sides): sides for sides in (PAPER_256, PAPER_512)}
# What the released constructor has no argument for.
_FIXED = {"multipliers": (1, 1, 2, 2, 4), "residual_blocks": 2, "norm_groups": 32}


@dataclass(frozen=True)
class Parts:
    """The weights that one file holds; a checkpoint of the released trainer holds both."""

    path: Path
    tokenizer: State | None
    var: State | None


def parts_of(path: Path, content: Any) -> Parts:
    """Tell what `content`, read from `path`, is. Raises WeightsError if neither of the two."""
    if isinstance(content, Mapping) and isinstance(content.get("trainer"), Mapping):
        trainer = content["trainer"]
        tokenizer, var = trainer.get("vae_local"), trainer.get("var_wo_ddp")
        return Parts(
            path,
            as_tensors(path, tokenizer) if tokenizer else None,
            as_tensors(path, var) if var else None,
        )
    state = as_tensors(path, content)
    heads = {name.split(".")[0] for name in state}
    if heads & {"encoder", "decoder", "quantize"}:
        return Parts(path, state, None)
    if heads & {"blocks", "head", "word_embed"}:
        return Parts(path, None, state)
    raise WeightsError(f"{path}: neither a VQVAE nor a VAR; it holds {listed(list(state))}")


def read_tokenizer(
    path: Path, state: State, name: str, sha256: str, pyramid: Pyramid
) -> tuple[ImportedTokenizer, State]:
    """The record and the weights of a released VQVAE. Raises WeightsError.

    The file knows how many scales there are, not their sides: `pyramid` says them. Half the feature
    of phi is kept, as the released constructor has it (quant_resi 0.5): no file says so.
    """
    _refuse_without(path, state, _TOKENIZER_SPEAKS, "VQVAE")
    codes, code_channels = state["quantize.embedding.weight"].shape
    channels = len(state["encoder.conv_in.weight"])
    widths = [
        len(state[f"encoder.down.{level}.block.0.conv1.weight"])
        for level in range(_count(state, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight"))
    ]
    shared = _count(state, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.weight")
    shared = shared or int("quantize.quant_resi.qresi.weight" in state)
    record = ImportedTokenizer(
        name=name,
        sha256=sha256,
        pyramid=pyramid,
        codes=codes,
        code_channels=code_channels,
        channels=channels,
        multipliers=tuple(max(1, width // channels) for width in widths),
        residual_blocks=_count(state, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight"),
        phi_convolutions=shared,
        phi_strength=0.5 if any("quant_resi" in name for name in state) else 0.0,
    )
    hits = state.get("quantize.ema_vocab_hit_SV")
    if hits is not None and len(hits) != pyramid.scales:
        sides = ", ".join(map(str, pyramid.sides))
        raise WeightsError(
            f"{path}: counts the codes of {len(hits)} scales, but {pyramid.scales} sides are named "
            f"({sides}); say the right ones with --sides"
        )
    with torch.device("meta"):
        wanted = MultiScaleVQVAE(record)
    return record, _checked(path, state, wanted)


def read_var(
    path: Path, state: State, name: str, sha256: str, tokenizer: ImportedTokenizer
) -> tuple[ImportedModel, State]:
    """The record and the weights of a released VAR over `tokenizer`. Raises WeightsError."""
    _refuse_without(path, state, _VAR_SPEAKS, "VAR")
    depth = _count(state, r"blocks\.(\d+)\.attn\.mat_qkv\.weight")
    codes, width = state["head.weight"].shape
    scales = state.get("blocks.0.attn.scale_mul_1H11")
    heads = depth if scales is None else scales.numel()
    if heads != depth or width % depth:
        raise WeightsError(
            f"{path}: depth {depth}, width {width}, {heads} heads; here, as in every "
            "published VAR, there are as many heads as blocks, and they divide the width"
        )
    channels = state["word_embed.weight"].shape[1]
    if (codes, channels) != (tokenizer.codes, tokenizer.code_channels):
        raise WeightsError(
            f"{path} predicts {codes:,} codes of {channels} channels; tokenizer {tokenizer.name} "
            f"has {tokenizer.codes:,} of {tokenizer.code_channels}"
        )
    record = ImportedModel(
        name=name,
        sha256=sha256,
        tokenizer=tokenizer,
        classes=len(state["class_emb.weight"]) - 1,
        model=Model(
            depth=depth,
            width_per_depth=width // depth,
            mlp_ratio=max(1, len(state["blocks.0.ffn.fc1.weight"]) // width),
            shared_adaln="shared_ada_lin.1.weight" in state,
            normalised_attention=scales is not None,
        ),
    )
    with torch.device("meta"):
        wanted = VAR(record.model, tokenizer, record.classes, seed=0)
    return record, _checked(path, state, wanted)


def pyramid_of(path: Path, var: State | None) -> Pyramid | None:
    """The pyramid that a VAR file tells of: by its levels, or by a length that a preset has."""
    if var is None:
        return None
    levels = var.get("lvl_1L")
    if levels is None:
        positions = var.get("pos_1LC")
        known = _PRESETS.get(positions.shape[1]) if positions is not None else None
        return Pyramid(sides=known) if known else None
    lengths = torch.bincount(levels.flatten().long()).tolist()
    sides = tuple(math.isqrt(length) for length in lengths)
    if [side * side for side in sides] != lengths or not torch.equal(
        levels.flatten().long(), levels.flatten().long().sort().values
    ):
        raise WeightsError(f"{path}: lvl_1L: scales of {lengths} tokens are not squares in order")
    return Pyramid(sides=sides)


def released_tokenizer_state(t: Tokenizer, state: State) -> State:
    """`state` as the released code's VQVAE takes it, strictly. Raises WeightsError if it cannot."""
    other = {name: getattr(t, name) for name in _FIXED if getattr(t, name) != _FIXED[name]}
    if other:
        said = ", ".join(f"{name} = {value}" for name, value in other.items())
        raise WeightsError(
            f"tokenizer {t.name} has {said}; the released code knows only "
            + ", ".join(f"{name} = {_FIXED[name]}" for name in other)
        )
    hits = torch.zeros(t.pyramid.scales, t.codes)
    return {**state, "quantize.ema_vocab_hit_SV": hits}


def released_var_state(model: Model, tokenizer: Tokenizer, state: State) -> State:
    """`state` as the released code's VAR takes it, strictly."""
    pyramid = tokenizer.pyramid
    mask_LL = block_causal_mask(pyramid)
    bias_LL = torch.zeros(mask_LL.shape).masked_fill(~mask_LL, -torch.inf)
    zeros = {
        f"blocks.{block}.attn.zero_k_bias": torch.zeros(model.width) for block in range(model.depth)
    }
    return {
        **state,
        "lvl_1L": torch.tensor(pyramid.levels)[None],
        "attn_bias_for_masking": bias_LL[None, None],
        **zeros,
    }


_TOKENIZER_SPEAKS = (
    "quantize.embedding.weight",
    "encoder.conv_in.weight",
    "encoder.down.0.block.0.conv1.weight",
)
_VAR_SPEAKS = (
    "head.weight",
    "word_embed.weight",
    "class_emb.weight",
    "blocks.0.attn.mat_qkv.weight",
    "blocks.0.ffn.fc1.weight",
)


def _refuse_without(path: Path, state: State, speaking: tuple[str, ...], what: str) -> None:
    """Without these nothing can be worked out, so what else is wrong cannot be told either."""
    missing = [name for name in speaking if name not in state]
    flat = [name for name in speaking if name in state and state[name].ndim < 2]
    if missing:
        raise WeightsError(
            f"{path}: no whole {what}: missing {listed(missing)}, from which its size is read; it "
            f"holds {len(state):,} tensors: {listed(list(state))}"
        )
    if flat:
        raise WeightsError(f"{path}: {listed(flat)} should be a matrix")


def _checked(path: Path, state: State, wanted: torch.nn.Module) -> State:
    weights = {name: value for name, value in state.items() if not name.endswith(_SIDECARS)}
    refuse_mismatch(str(path), weights, wanted)
    return {name: weights[name] for name in wanted.state_dict()}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that `pattern` finds in a name; 0 if it finds none."""
    found = (re.fullmatch(pattern, name) for name in state)
    return max((int(match.group(1)) + 1 for match in found if match), default=0)
