"""Compile a network's training with torch.compile, or train with eager code if that fails."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

# Without benchmarks that choose how to reduce: each way rounds differently, and a resumed training
# must compute the same bits.
_OPTIONS: dict[str, Any] = {"deterministic": True}


def compile_network(network: nn.Module, forward_and_backward: Callable[[], None]) -> str | None:
    """Compile the methods of `network` that its class names in `compiled_methods`, or `forward`.

    `forward_and_backward` runs the network at each batch size of the training: torch compiles a
    method at its first call, and later steps only use the result. Names of parameters stay.
    Returns None, or the error of a failure, after which the network is as before.
    """
    # Graphs of an earlier training in this process would count towards torch's limit.
    torch.compiler.reset()
    names = getattr(network, "compiled_methods", ("forward",))
    for name in names:
        # One graph a method and static shapes. A method that needs several graphs is an error.
        compiled = torch.compile(
            getattr(network, name), fullgraph=True, dynamic=False, options=_OPTIONS
        )
        # An attribute of the instance, which hides the method of the class.
        setattr(network, name, compiled)
    try:
        forward_and_backward()
    # The errors of compilers have no common class. Any other error occurs again in the first step.
    except Exception as error:  # noqa: BLE001
        for name in names:
            delattr(network, name)
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return None


def eager(compiled: bool) -> AbstractContextManager[object]:
    """Within the block, a `compiled` network runs as eager code. Each further case, such as no
    gradients or another batch size, would be compiled too.
    """
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
