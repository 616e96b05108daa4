"""The released code's checkpoints: read into our records, written for its loader.

Parameters have the same names there and here. The file has more beside: sidecar buffers that follow
from the settings, dropped on the way in and made anew on the way out.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from var_scaling.config import ImportedTokenizer, Tokenizer
from var_scaling.models.base import ModelSpec, PublishedFormat
from var_scaling.models.var.config import VarModel
from var_scaling.models.var.model import VAR, block_causal_mask
from var_scaling.pyramid import PAPER_256, PAPER_512, Pyramid
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.weights import State, WeightsError, as_tensors, listed, refuse_mismatch

_HITS = "quantize.ema_vocab_hit_SV"
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
    trainer = content.get("trainer") if isinstance(content, Mapping) else None
    if isinstance(trainer, Mapping):
        both = (trainer.get("vae_local"), trainer.get("var_wo_ddp"))
        return Parts(path, *(None if one is None else as_tensors(path, one) for one in both))
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

    The file knows how many scales there are, not their sides: `pyramid` says them. No file says how
    strong phi is (0.5), nor whether codes are looked up by cosine (not): as the constructor has it.
    Each size is read off whichever name has it, so that every name that is wrong can be listed.
    """
    channels = _size(state, 160, ("encoder.conv_in.weight", 0), ("encoder.conv_in.bias", 0))
    levels = _count(state, r"encoder\.down\.(\d+)\..*")
    ends = ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")
    widths = [
        _size(state, channels, *((f"encoder.down.{level}.block.0.{end}", 0) for end in ends))
        for level in range(levels)
    ]
    shared = _count(state, r"quantize\.quant_resi\.qresi_ls\.(\d+)\..*")
    shared = shared or int("quantize.quant_resi.qresi.weight" in state)
    record = ImportedTokenizer(
        name=name,
        sha256=sha256,
        pyramid=pyramid,
        codebook_size=_size(state, 4096, ("quantize.embedding.weight", 0)),
        code_channels=_size(state, 32, ("quantize.embedding.weight", 1), ("quant_conv.weight", 0)),
        channels=channels,
        multipliers=tuple(max(1, width // channels) for width in widths) or (1, 1, 2, 2, 4),
        residual_blocks=max(1, _count(state, r"encoder\.down\.0\.block\.(\d+)\..*")),
        phi_convolutions=shared,
        phi_strength=0.5 if any("quant_resi" in name for name in state) else 0.0,
    )
    with torch.device("meta"):
        wanted = MultiScaleVQVAE(record)
    weights = _checked(path, state, wanted, _tokenizer_sidecars(record))
    _refuse_other_kinds(record, f"{path}: ")
    return record, weights


def read_var(
    path: Path, state: State, tokenizer: ImportedTokenizer
) -> tuple[ModelSpec[VarModel], State]:
    """What a released VAR over `tokenizer` is built from, and its weights. Raises WeightsError."""
    depth = max(1, _count(state, r"blocks\.(\d+)\..*"))
    width = _size(state, 64 * depth, ("head.weight", 1), ("word_embed.weight", 0), ("pos_1LC", 2))
    codes = _size(state, tokenizer.codebook_size, ("head.weight", 0), ("head.bias", 0))
    channels = _size(state, tokenizer.code_channels, ("word_embed.weight", 1))
    normalised = any(name.endswith("scale_mul_1H11") for name in state)
    heads = _size(state, depth, *((f"blocks.{k}.attn.scale_mul_1H11", 1) for k in range(depth)))
    if heads != depth or width % depth:
        raise WeightsError(
            f"{path}: {depth} blocks, width {width}, {heads} heads; here, as in every published "
            "VAR, there are as many heads as blocks, and they divide the width"
        )
    if (codes, channels) != (tokenizer.codebook_size, tokenizer.code_channels):
        raise WeightsError(
            f"{path} predicts {codes:,} codes of {channels} channels; tokenizer {tokenizer.name} "
            f"has {tokenizer.codebook_size:,} of {tokenizer.code_channels}"
        )
    hidden = _size(state, 4 * width, *((f"blocks.{k}.ffn.fc1.weight", 0) for k in range(depth)))
    model = VarModel(
        depth=depth,
        width_per_depth=width // depth,
        mlp_ratio=max(1, hidden // width),
        shared_adaln=any(name.startswith("shared_ada_lin") for name in state),
        normalised_attention=normalised,
    )
    classes = max(1, _size(state, 1001, ("class_emb.weight", 0)) - 1)
    with torch.device("meta"):
        wanted = VAR(model, tokenizer, classes, seed=0)
    weights = _checked(path, state, wanted, _var_sidecars(model, tokenizer.pyramid))
    return ModelSpec(model, tokenizer, classes), weights


def pyramid_of(path: Path, var: State | None) -> Pyramid | None:
    """The pyramid that a VAR file tells of: by its levels, or by a length that a preset has."""
    levels = None if var is None else var.get("lvl_1L")
    if var is None or levels is None:
        known = _PRESETS.get(_size(var or {}, 0, ("pos_1LC", 1)))
        return Pyramid(patch_nums=known) if known else None
    levels_L = levels.flatten().tolist()
    present = set(levels_L)
    scales = next(level for level in range(len(levels_L) + 1) if level not in present)
    sides = tuple(math.isqrt(levels_L.count(level)) for level in range(scales))
    told = [level for level, side in enumerate(sides) for _ in range(side * side)]
    if told != levels_L or any(low >= high for low, high in pairwise(sides)):
        raise WeightsError(f"{path}: lvl_1L does not say the levels of square maps that grow")
    return Pyramid(patch_nums=sides)


def scales_of(tokenizer: State) -> int | None:
    """How many scales a VQVAE file counts the codes of; the released loader does not insist."""
    return _size(tokenizer, 0, ("quantize.ema_vocab_hit_SV", 0)) or None


def released_tokenizer_state(t: Tokenizer, state: State) -> State:
    """`state` as the released code's VQVAE takes it, strictly. Raises WeightsError if it cannot."""
    _refuse_other_kinds(t, f"tokenizer {t.name} cannot go out: ")
    return {**state, **_tokenizer_sidecars(t)}


class ReleasedVar(PublishedFormat):
    """The released code's VAR."""

    def export(self, spec: ModelSpec, state: State) -> tuple[State, str]:
        """`state` as the released code takes it, strictly, and the call that loads it."""
        m: VarModel = spec.config
        call = (
            f"VAR(vae, num_classes={spec.classes}, depth={m.depth}, embed_dim={m.width}, "
            f"num_heads={m.heads}, mlp_ratio={m.mlp_ratio}, norm_eps=1e-6, "
            f"shared_aln={m.shared_adaln}, attn_l2_norm={m.normalised_attention}, "
            f"patch_nums={spec.tokenizer.pyramid.patch_nums})"
        )
        return {**state, **_var_sidecars(m, spec.tokenizer.pyramid)}, call


def _tokenizer_sidecars(t: Tokenizer) -> State:
    return {_HITS: torch.zeros(t.pyramid.scales, t.codebook_size)}


def _var_sidecars(model: VarModel, pyramid: Pyramid) -> State:
    mask_LL = block_causal_mask(pyramid)
    bias_LL = torch.zeros(mask_LL.shape).masked_fill(~mask_LL, -torch.inf)
    zeros = {
        f"blocks.{block}.attn.zero_k_bias": torch.zeros(model.width) for block in range(model.depth)
    }
    levels = torch.tensor(pyramid.levels)
    return {"lvl_1L": levels[None], "attn_bias_for_masking": bias_LL[None, None], **zeros}


def _refuse_other_kinds(t: Tokenizer, said: str) -> None:
    """The released constructor has no argument for these."""
    other = [f"{name} = {getattr(t, name)}" for name in _FIXED if getattr(t, name) != _FIXED[name]]
    if t.channels % 32:
        other.append(f"channels = {t.channels}")
    if other:
        raise WeightsError(
            f"{said}{', '.join(other)}; the released code knows only "
            + ", ".join(f"{name} = {value}" for name, value in _FIXED.items())
            + " and multiples of 32 channels"
        )


def _checked(path: Path, state: State, wanted: torch.nn.Module, sidecars: State) -> State:
    """The weights alone, in the order of the module; the sidecars must be what they would be."""
    weights = {name: value for name, value in state.items() if name not in sidecars}
    refuse_mismatch(str(path), weights, wanted)
    for name, expected in sidecars.items():
        found = state.get(name)
        if name == _HITS or found is None:
            continue  # a count of the past; a file of bare parameters
        if found.shape != expected.shape or not torch.equal(found.to(expected.dtype), expected):
            raise WeightsError(
                f"{path}: {name} is not what follows from the sizes, so the released code would "
                "compute something else with it than we do"
            )
    return {name: weights[name] for name in wanted.state_dict()}


def _size(state: State, default: int, *sources: tuple[str, int]) -> int:
    """The side that the first of `sources` (name, dimension) has; `default` if none is there."""
    for name, dimension in sources:
        if name in state and state[name].ndim > dimension:
            return max(1, state[name].shape[dimension])
    return default


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that `pattern` finds in a name; 0 if it finds none."""
    found = (re.fullmatch(pattern, name) for name in state)
    numbers = [int(match.group(1)) for match in found if match]
    return max((number + 1 for number in numbers if number < len(state)), default=0)
