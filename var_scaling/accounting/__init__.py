"""Exact numbers of parameters and FLOPs by component, as integers.

Only this package and the model families count. Conventions: a multiply-add is 2 FLOPs. Matrix
products and convolutions are counted, element-wise operations are not. By default only the
attention pairs that the mask allows are counted: the model FLOPs. `dense` counts all L² pairs, as a
masked matrix product computes them and torch's FLOP counter reports them. The backward pass costs
twice the forward pass, minus the gradients of inputs that need none.
"""

Count = dict[str, int]

# On a CPU, a matrix product with fewer rows uses another kernel and rounds differently (LOG.md). So
# samplers pad their batches to this number of rows.
FEWEST_ROWS = 4

# The components of every family's counts; a component that a family does not have counts 0.
COMPONENTS = ("embedding", "attention", "mlp", "adaln", "head")
FLOP_COMPONENTS = (
    "embedding", "attention_projections", "attention_scores", "mlp", "adaln", "head",
)  # fmt: skip


def total(count: Count) -> int:
    """The sum over components."""
    return sum(count.values())
