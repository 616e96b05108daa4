"""Exact parameters and FLOPs, by component, in integers. Only this and the families count.

Conventions. A multiply-add is 2 FLOPs; matrix products and convolutions are counted, element-wise
work is not. `dense` counts the L² attention pairs that one masked product computes (what torch's
counter sees); otherwise only the pairs that the block-causal mask allows: the model's own FLOPs.
Backward costs twice forward, less the gradient of inputs that need none.
"""

Count = dict[str, int]

# A processor's matrix product of fewer rows takes another path, and rounds otherwise (LOG.md): so
# samplers let no fewer rows through.
FEWEST_ROWS = 4

# What counts are given by, whatever the family; one that a family lacks counts 0.
COMPONENTS = ("embedding", "attention", "mlp", "adaln", "head")
FLOP_COMPONENTS = (
    "embedding", "attention_projections", "attention_scores", "mlp", "adaln", "head",
)  # fmt: skip


def total(count: Count) -> int:
    return sum(count.values())
