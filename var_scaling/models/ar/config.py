"""AR's configs: model, sampling settings, and the published and tiny sizes."""

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from var_scaling.models.base import ModelRecord, SamplingRecord
from var_scaling.recipe import NonNegativeFloat, PositiveFloat, Share

_MAX_FRAMES = 8  # intermediate results of a sample


class ArModel(ModelRecord):
    """An autoregressive transformer: it predicts the tokens one by one in raster order.

    `block`: "adaln" is VAR's block, conditioned on the class by AdaLN; "llama" is LlamaGen's (arXiv
    2406.06525): RMSNorm, SwiGLU, no biases, the class as a prefix token. `embedding`: the input of
    a token is a linear map of its code vector ("codes") or a learned embedding ("table").
    """

    family: Literal["ar"] = "ar"
    # VAR's rules: width 64 d and d heads, so 64 channels per head; drop path 0.1 d / 24.
    width_per_depth: PositiveInt = 64
    fixed_width: PositiveInt | None = None  # overrides width_per_depth x depth
    fixed_heads: PositiveInt | None = None  # overrides heads = depth
    block: Literal["adaln", "llama"] = "adaln"
    positions: Literal["learned", "rotary"] = "learned"
    embedding: Literal["codes", "table"] = "codes"
    mlp_ratio: PositiveInt = 4  # of the adaln block
    hidden_multiple: PositiveInt = 256  # llama block: 8/3 x width is rounded up to a multiple
    drop_path_per_depth: NonNegativeFloat = 0.1 / 24
    normalised_attention: bool = True  # of the adaln block
    gamma_init: NonNegativeFloat = 1e-3  # scale of the initial AdaLN weights of the two gates
    adaln_init: NonNegativeFloat = 0.5  # scale of the other initial AdaLN weights
    head_init: NonNegativeFloat = 0.02  # scale of the initial head weights

    @property
    def width(self) -> int:
        return self.fixed_width or self.width_per_depth * self.depth

    @property
    def heads(self) -> int:
        return self.fixed_heads or self.depth

    @property
    def hidden(self) -> int:
        """Channels between the two layers of the MLP."""
        if self.block == "adaln":
            return self.mlp_ratio * self.width
        # SwiGLU has three matrices where an MLP has two: 8/3 w gives the 8 w² weights of ratio 4.
        return -(-(8 * self.width // 3) // self.hidden_multiple) * self.hidden_multiple

    @property
    def drop_path(self) -> float:
        """Drop rate of the last block; the rate grows linearly from 0 at the first."""
        return self.drop_path_per_depth * self.depth

    def at_depth(self, depth: int) -> "ArModel":
        if self.fixed_width or self.fixed_heads:
            raise ValueError("fixed_width or fixed_heads is set, so the depth cannot be varied")
        return self.model_copy(update={"depth": depth})

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if self.positions == "rotary" and self.width // self.heads % 4:
            raise ValueError(
                f"positions = rotary: {self.width // self.heads} channels per head; they must be a "
                "multiple of 4, because rows and columns both rotate pairs of channels"
            )
        # The kept branches are divided by 1 - drop_path.
        if self.drop_path >= 1:
            raise ValueError(
                f"drop_path_per_depth x depth = {self.drop_path:.3g} must stay below 1"
            )
        return self


class ArSampling(SamplingRecord):
    """The sampling settings of an AR model. LlamaGen's guidance scale 2.0 is guidance 1.0 here."""

    family: Literal["ar"] = "ar"
    guidance: NonNegativeFloat = 1.0
    top_k: NonNegativeInt = 0  # 0: all
    top_p: Share = 0.0  # 0: all
    temperature: PositiveFloat = 1.0


def frame_rows(side: int) -> tuple[int, ...]:
    """The number of sampled rows of the grid in each frame."""
    # The last entry is always `side`, so the last frame is the whole sample.
    frames = min(side, _MAX_FRAMES)
    return tuple(side * (number + 1) // frames for number in range(frames))


def tiny_ar(depth: int, width_per_depth: int = 8) -> ArModel:
    """A model that a CPU can train: width 8 d, the blocks of `tiny_var`, no drop path."""
    return ArModel(depth=depth, width_per_depth=width_per_depth, drop_path_per_depth=0.0)


# Layers, width, heads of LlamaGen (arXiv 2406.06525, table 1).
_LLAMAGEN = {
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (36, 1280, 20),
    "XXL": (48, 1536, 24),
    "3B": (24, 3200, 32),
}


def llamagen(size: str) -> ArModel:
    """A published LlamaGen: "B", "L", "XL", "XXL" or "3B". Its tokenizer has 16,384 codes."""
    if size not in _LLAMAGEN:
        raise ValueError(f"LlamaGen {size}: unknown size; use {', '.join(_LLAMAGEN)}")
    depth, width, heads = _LLAMAGEN[size]
    return ArModel(
        depth=depth,
        fixed_width=width,
        fixed_heads=heads,
        block="llama",
        positions="rotary",
        embedding="table",
        drop_path_per_depth=0.0,
    )
