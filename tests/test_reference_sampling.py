"""Sampling and editing give the tokens of the released code (shared/reference)."""

import re

import pytest
import torch
from test_reference import FOLDER, arrays, assert_close, weights
from test_reference import io as io
from test_reference import model as model
from test_reference import record as record
from test_reference import settings as settings

from var_scaling.generation.kept import kept_positions
from var_scaling.models.base import KeptTokens
from var_scaling.models.logits import filter_logits
from var_scaling.models.var.config import VarModel, VarSampling
from var_scaling.models.var.model import VAR
from var_scaling.models.var.sampler import sample_tokens

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(
        not (FOLDER / "config.json").exists(), reason=f"no reference arrays at {FOLDER}"
    ),
]
GREEDY = VarSampling(guidance=1.5, top_k=1, top_p=0)


class Halves:
    """Random numbers that are all 0.5."""

    @staticmethod
    def uniform(purpose: str, step: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.full((4, *shape), 0.5)

    @staticmethod
    def uniforms(purpose: str, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
        return [torch.full((4, *shape), 0.5) for shape in shapes]


@pytest.fixture(scope="module", params=["var", "var_saln"])
def transformer(request, settings, record):
    v = {**settings["var"], **settings[request.param]}
    config = VarModel(
        depth=v["depth"],
        width_per_depth=v["embed_dim"] // v["depth"],
        shared_adaln=v["shared_aln"],
        normalised_attention=v["attn_l2_norm"],
    )
    module = VAR(config, record, v["num_classes"], seed=0)
    module.load_state_dict(weights(f"{request.param}_state.npz"), strict=True)
    return module, arrays(f"{request.param}_io.npz")


def as_image(model, f_hat):
    return (model.render(f_hat).clamp(-1, 1) + 1) / 2


@torch.no_grad()
def test_greedy_guided_sampling_equals_the_reference(model, transformer):
    module, expected = transformer
    drawn = list(sample_tokens(module, model.quantize, expected["labels"], GREEDY, Halves))
    for step in drawn:
        assert torch.equal(step.ids_BS, expected[f"ar_idx_{step.k}"])
        assert_close(step.logits_BSV, expected[f"ar_guided_logits_{step.k}"])
    assert torch.equal(torch.cat([step.ids_BS for step in drawn], 1), expected["ar_idx_all"])
    assert_close(drawn[-1].f_BZHH, expected["ar_f_hat"])
    assert_close(as_image(model, drawn[-1].f_BZHH), expected["ar_images"])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["inpaint", "outpaint"])
def test_in_and_out_painting_equal_the_reference(kind, model, io, transformer):
    """The tokens drawn at every position, kept or not, and the resulting images."""
    module, expected = transformer
    mask_BL = kept_positions(expected[f"{kind}_mask"].bool(), model.quantize.pyramid)[None]
    kept = KeptTokens(io["idx_all"], mask_BL.expand(4, -1))
    drawn = list(sample_tokens(module, model.quantize, expected["labels"], GREEDY, Halves, kept))
    chosen = torch.cat([step.sampled_BS for step in drawn], 1)
    assert torch.equal(chosen, expected[f"{kind}_idx_all"])
    ids = torch.cat([step.ids_BS for step in drawn], 1)
    assert torch.equal(ids, io["idx_all"].where(kept.mask_BL, chosen))
    assert_close(as_image(model, drawn[-1].f_BZHH), expected[f"{kind}_images"])


def filters() -> list[str]:
    if not (FOLDER / "sampler_filter.npz").exists():
        return []
    return sorted(name for name in arrays("sampler_filter.npz") if name != "logits")


@pytest.mark.parametrize("name", filters())
def test_every_filter_equals_the_reference(name):
    found = arrays("sampler_filter.npz")
    match = re.fullmatch(r"filtered_k(\d+)_p(\d+)", name)
    assert match
    top_k, top_p = int(match[1]), int(match[2]) / 100
    before = found["logits"].clone()
    ours = filter_logits(found["logits"], top_k, top_p)
    assert torch.equal(ours, found[name])
    assert torch.equal(found["logits"], before)  # no input is changed in place
