"""Exact parameters and FLOPs, by component, in integers. Nothing else in the project counts.

Conventions. A multiply-add is 2 FLOPs; matrix products and convolutions are counted, element-wise
work is not. `dense` counts the L² attention pairs that one masked product computes (what torch's
counter sees); otherwise only the pairs that the block-causal mask allows: the model's own FLOPs.
Backward costs twice forward, less the gradient of inputs that need none.
"""

Count = dict[str, int]


def total(count: Count) -> int:
    return sum(count.values())
