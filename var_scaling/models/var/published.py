"""Import and export of the released code's checkpoints.

Parameters have the same names in both programs. The released files also contain sidecar buffers,
which follow from the config: the import checks and drops them, the export recomputes them.
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
from var_scaling.models.attention import AttentionMask
from var_scaling.models.base import ModelSpec, PublishedFormat
from var_scaling.models.var.config import VarModel
from var_scaling.models.var.model import VAR
from var_scaling.pyramid import PAPER_256, PAPER_512, Pyramid
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.weights import State, WeightsError, as_tensors, refuse_mismatch, shorten_list

_HITS = "quantize.ema_vocab_hit_SV"
# A VAR file may lack its levels; the number of positions, 680 or 2,240, identifies a preset.
_PRESETS = {sum(side * side for side in sides): sides for sides in (PAPER_256, PAPER_512)}
# Fields that the released constructor has no argument for, with their fixed values.
_FIXED = {"multipliers": (1, 1, 2, 2, 4), "residual_blocks": 2, "norm_groups": 32}


@dataclass(frozen=True)
class CheckpointParts:
    """The weights in one file. A checkpoint of the released trainer contains both models."""

    path: Path
    tokenizer: State | None
    var: State | None


def split_checkpoint(path: Path, content: Any) -> CheckpointParts:
    """The tokenizer and VAR weights of a checkpoint file. Raises WeightsError if it has neither."""
    # Names of the released trainer: `vae_local` is the tokenizer, `var_wo_ddp` the transformer.
    trainer = content.get("trainer") if isinstance(content, Mapping) else None
    if isinstance(trainer, Mapping):
        states = (trainer.get("vae_local"), trainer.get("var_wo_ddp"))
        both = (None if state is None else as_tensors(path, state) for state in states)
        return CheckpointParts(path, *both)
    state = as_tensors(path, content)
    modules = {name.split(".")[0] for name in state}
    if modules & {"encoder", "decoder", "quantize"}:
        return CheckpointParts(path, state, None)
    if modules & {"blocks", "head", "word_embed"}:
        return CheckpointParts(path, None, state)
    names = shorten_list(list(state))
    raise WeightsError(f"{path}: neither a VQVAE nor a VAR; it contains {names}")


def read_tokenizer(
    path: Path, state: State, name: str, sha256: str, pyramid: Pyramid
) -> tuple[ImportedTokenizer, State]:
    """The config and the weights of a released VQVAE. Raises WeightsError.

    The file contains the number of scales but not their sides, which `pyramid` gives, and neither
    the strength of phi nor the distance of the code lookup: the released defaults apply, 0.5 and
    Euclidean. Each size is read from any tensor that has it, so the error lists all missing ones.
    """
    channels = _size(state, 160, ("encoder.conv_in.weight", 0), ("encoder.conv_in.bias", 0))
    levels = _count(state, r"encoder\.down\.(\d+)\..*")
    keys = ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")
    widths = [
        _size(state, channels, *((f"encoder.down.{level}.block.0.{key}", 0) for key in keys))
        for level in range(levels)
    ]
    # Phi's names: `qresi_ls.N` (shared by scales) or `qresi` (one for all); neither: one per scale.
    phis = _count(state, r"quantize\.quant_resi\.qresi_ls\.(\d+)\..*")
    phis = phis or int("quantize.quant_resi.qresi.weight" in state)
    record = ImportedTokenizer(
        name=name,
        sha256=sha256,
        pyramid=pyramid,
        codebook_size=_size(state, 4096, ("quantize.embedding.weight", 0)),
        code_channels=_size(state, 32, ("quantize.embedding.weight", 1), ("quant_conv.weight", 0)),
        channels=channels,
        multipliers=tuple(max(1, width // channels) for width in widths) or (1, 1, 2, 2, 4),
        residual_blocks=max(1, _count(state, r"encoder\.down\.0\.block\.(\d+)\..*")),
        phi_convolutions=phis,
        phi_strength=0.5 if any("quant_resi" in name for name in state) else 0.0,
    )
    # Only names and shapes are compared: the meta device allocates no memory.
    with torch.device("meta"):
        expected = MultiScaleVQVAE(record)
    weights = _checked(path, state, expected, _tokenizer_sidecars(record))
    _refuse_unsupported(record, f"{path}: ")
    return record, weights


def read_var(
    path: Path, state: State, tokenizer: ImportedTokenizer
) -> tuple[ModelSpec[VarModel], State]:
    """The spec and the weights of a released VAR that uses `tokenizer`. Raises WeightsError."""
    depth = max(1, _count(state, r"blocks\.(\d+)\..*"))
    width = _size(state, 64 * depth, ("head.weight", 1), ("word_embed.weight", 0), ("pos_1LC", 2))
    codes = _size(state, tokenizer.codebook_size, ("head.weight", 0), ("head.bias", 0))
    channels = _size(state, tokenizer.code_channels, ("word_embed.weight", 1))
    normalised = any(name.endswith("scale_mul_1H11") for name in state)
    # Only the temperatures show the number of heads; without them it is the depth.
    heads = _size(state, depth, *((f"blocks.{k}.attn.scale_mul_1H11", 1) for k in range(depth)))
    if heads != depth or width % depth:
        raise WeightsError(
            f"{path}: {depth} blocks, width {width}, {heads} heads; only as many heads as blocks "
            "are supported, as in every published VAR, and they must divide the width"
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
    # The last row of the class embedding is the null class.
    classes = max(1, _size(state, 1001, ("class_emb.weight", 0)) - 1)
    with torch.device("meta"):
        expected = VAR(model, tokenizer, classes, seed=0)
    weights = _checked(path, state, expected, _var_sidecars(model, tokenizer.pyramid))
    return ModelSpec(model, tokenizer, classes), weights


def pyramid_of(path: Path, var: State | None) -> Pyramid | None:
    """The pyramid of a VAR file from its levels, its length, or None. Raises WeightsError."""
    levels = None if var is None else var.get("lvl_1L")
    if var is None or levels is None:
        preset = _PRESETS.get(_size(var or {}, 0, ("pos_1LC", 1)))
        return Pyramid(patch_nums=preset) if preset else None
    levels_L = levels.flatten().tolist()
    present = set(levels_L)
    # The number of consecutive levels from 0. The side of a scale is the root of its length.
    scales = next(level for level in range(len(levels_L) + 1) if level not in present)
    sides = tuple(math.isqrt(levels_L.count(level)) for level in range(scales))
    implied = [level for level, side in enumerate(sides) for _ in range(side * side)]
    if implied != levels_L or any(low >= high for low, high in pairwise(sides)):
        raise WeightsError(f"{path}: lvl_1L does not describe square token maps of increasing side")
    return Pyramid(patch_nums=sides)


def scale_count(tokenizer: State) -> int | None:
    """The number of scales in a VQVAE file's code counts, which are optional; else None."""
    return _size(tokenizer, 0, ("quantize.ema_vocab_hit_SV", 0)) or None


def released_tokenizer_state(t: Tokenizer, state: State) -> State:
    """The weights for the released VQVAE's strict loading. Raises WeightsError if unsupported."""
    _refuse_unsupported(t, f"tokenizer {t.name} cannot be exported: ")
    return {**state, **_tokenizer_sidecars(t)}


class ReleasedVar(PublishedFormat):
    """The checkpoint format of the released VAR code."""

    def export(self, spec: ModelSpec, state: State) -> tuple[State, str]:
        """The weights for the released code's strict loading, and the call that builds the VAR."""
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
    # Released form of the mask: added to the attention scores, 0 or -inf, (1, 1, L, L).
    bias_LL = AttentionMask(pyramid.lengths).bias_LL
    zeros = {
        f"blocks.{block}.attn.zero_k_bias": torch.zeros(model.width) for block in range(model.depth)
    }
    levels = torch.tensor(pyramid.levels)
    return {"lvl_1L": levels[None], "attn_bias_for_masking": bias_LL[None, None], **zeros}


def _refuse_unsupported(t: Tokenizer, prefix: str) -> None:
    """Raise WeightsError for a tokenizer that the released constructor cannot build."""
    wrong = [f"{name} = {getattr(t, name)}" for name in _FIXED if getattr(t, name) != _FIXED[name]]
    if t.channels % 32:
        wrong.append(f"channels = {t.channels}")
    if wrong:
        raise WeightsError(
            f"{prefix}{', '.join(wrong)}; the released code supports only "
            + ", ".join(f"{name} = {value}" for name, value in _FIXED.items())
            + " and multiples of 32 channels"
        )


def _checked(path: Path, state: State, module: torch.nn.Module, sidecars: State) -> State:
    """The weights without sidecars, in the order of `module`. Raises WeightsError on a mismatch."""
    weights = {name: value for name, value in state.items() if name not in sidecars}
    refuse_mismatch(str(path), weights, module)
    # Other values would be another network, for example full attention or a bias of the keys.
    for name, expected in sidecars.items():
        buffer = state.get(name)
        if name == _HITS or buffer is None:
            continue  # code counts of training have any values; some files contain no sidecars
        if buffer.shape != expected.shape or not torch.equal(buffer.to(expected.dtype), expected):
            raise WeightsError(
                f"{path}: {name} has other values than the sizes imply, so the released code would "
                "compute other outputs from this file than this program"
            )
    return {name: weights[name] for name in module.state_dict()}


def _size(state: State, default: int, *sources: tuple[str, int]) -> int:
    """The size of the first of `sources` (name, dimension) in `state`; `default` if none is."""
    for name, dimension in sources:
        if name in state and state[name].ndim > dimension:
            return max(1, state[name].shape[dimension])
    return default


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """The largest number that `pattern` matches in a name, plus 1; 0 if no name matches."""
    matches = (re.fullmatch(pattern, name) for name in state)
    # A list has at least one tensor for each item. A larger number cannot be an index, and it would
    # set the size of the network that is built for comparison.
    numbers = [int(match.group(1)) for match in matches if match]
    return max((number + 1 for number in numbers if number < len(state)), default=0)
