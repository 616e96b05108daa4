"""Evaluation is deterministic, weights all tokens equally, and its FLOPs are counted."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import tokenizer, trial
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from var_scaling.evaluation.likelihood import LABELS, evaluate, evaluation_flops
from var_scaling.models.var.accounting import var_forward_flops
from var_scaling.models.var.model import VAR
from var_scaling.tokenizer.cache import TokenCache

SPEC = trial().spec


def test_evaluation_is_deterministic_and_independent_of_the_batch_size(quantizer, token_cache):
    model = VAR(trial().model, tokenizer(), 8, seed=0).train()
    cache = token_cache(30)
    first = evaluate(SPEC, model, quantizer, cache)
    assert evaluate(SPEC, model, quantizer, cache) == first
    assert model.training
    again = evaluate(SPEC, model, quantizer, cache, batch=7)
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-6)
    assert again["error"] == pytest.approx(first["error"])


def test_evaluation_weights_all_tokens_equally(quantizer, token_cache):
    scores = evaluate(SPEC, VAR(trial().model, tokenizer(), 8, seed=0), quantizer, token_cache(30))
    lengths = np.array([1, 4, 16])
    assert scores["loss"] == pytest.approx(np.average(scores["loss_parts"], weights=lengths))
    assert scores["loss_last"] == pytest.approx(scores["loss_parts"][-1])
    assert scores["loss"] == pytest.approx(np.log(32), rel=0.02)  # untrained: uniform over 32 codes
    assert 0.9 < scores["error"] <= 1


def test_one_pass_scores_every_label_setting_and_its_flops_are_counted(quantizer, token_cache):
    model, cache = VAR(trial().model, tokenizer(), 8, seed=0), token_cache(30)
    with torch.no_grad():
        model.class_emb.weight[8] += 3  # so that the unconditional loss differs
    both = evaluate(SPEC, model, quantizer, cache, LABELS)
    assert {k: both[k] for k in evaluate(SPEC, model, quantizer, cache)} == evaluate(
        SPEC, model, quantizer, cache
    )
    unlabelled = TokenCache(cache.tokens, np.full(30, 8), 1, {})
    unlabelled_scores = evaluate(SPEC, model, quantizer, unlabelled)
    assert both["loss_no_label"] == unlabelled_scores["loss"] != both["loss"]
    assert both["error_no_label_parts"] == unlabelled_scores["error_parts"]
    # A quantizer that is not frozen: its convolutions are counted apart from the network.
    trainable = deepcopy(quantizer).requires_grad_(True)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        evaluate(SPEC, model, trainable, cache, LABELS)
    walk = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    spent = evaluation_flops(SPEC, 30, LABELS)
    masked = sum(  # the counter counts all pairs, our accounting those that the mask allows
        30 * 2 * (var_forward_flops(trial().model, tokenizer(), dense)["attention_scores"])
        * (1 if dense else -1) for dense in (True, False)
    )  # fmt: skip
    assert counter.get_total_flops() - walk == spent + masked
