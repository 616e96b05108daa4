"""Count the kernels of code on fake tensors: as eager operations, or as the inductor fuses them."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._inductor import compile_fx, scheduler
from torch._inductor import config as inductor_config
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import MultiOutput
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Kernel(NamedTuple):
    kind: Literal["product", "masked attention", "plain attention", "other"]
    bytes: int  # read and written
    flops: int = 0  # computed, in attention also the masked pairs


def size_of(tensors: Any) -> int:
    """Bytes of the tensors; an expanded one counts what it stores."""
    leaves = {id(leaf): leaf for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)}
    return sum(
        min(leaf.numel() * leaf.element_size(), leaf.untyped_storage().nbytes())
        for leaf in leaves.values()
    )


def kernel_of(function: Any, args: Any, kwargs: Any, result: Any, moved: int) -> Kernel:
    """The kernel of an aten operation that moves `moved` bytes."""
    packet = getattr(function, "overloadpacket", None)
    if "scaled_dot_product" in str(function):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        backward = "backward" in str(function)
        q, k = tensors[1:3] if backward else tensors[:2]  # backward: the gradient is before them
        flops = int(4 * q.numel() * k.shape[2] * (2.5 if backward else 1))
        if True in [leaf for leaf in tree_leaves(args) if isinstance(leaf, bool)]:
            flops //= 2  # causal: the flash kernel computes half of the pairs
        masked = any(tensor.shape[-2:] == (q.shape[2], k.shape[2]) for tensor in tensors)
        return Kernel("masked attention" if masked else "plain attention", moved, flops)
    if packet in flop_registry:
        return Kernel("product", moved, flop_registry[packet](*args, **kwargs, out_val=result))
    return Kernel("other", moved)


class EagerCounter(TorchDispatchMode):
    """Counts the operations that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        written = function._schema.is_mutable
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if is_tensor(leaf)}
        made = [leaf for leaf in tree_leaves(result) if is_tensor(leaf)]
        view = not written and all(leaf.untyped_storage()._cdata in given for leaf in made)
        if not view and "empty" not in str(function):
            moved = size_of((args, kwargs)) + size_of(made)
            self.kernels.append(kernel_of(function, args, kwargs, result, moved))
        return result


def is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def eager_kernels(method: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Kernel]:
    """The kernels of `method`, and of the backward pass of its result if that is a tensor."""
    norms = {"layer_norm": layer_norm_of_cuda, "rms_norm": rms_norm_of_cuda}
    with EagerCounter() as counter, mock.patch.multiple(F, **norms):
        with autocast():
            result = method(*inputs)
        if is_tensor(result) and result.requires_grad:
            result.backward(torch.empty_like(result))
    return counter.kernels


def layer_norm_of_cuda(x: Tensor, shape: Any, *rest: Any, eps: float = 1e-5) -> Tensor:
    """F.layer_norm as CUDA's autocast computes it."""
    with torch.autocast("cpu", enabled=False):
        return LAYER_NORM(x.float(), shape, *rest, eps=eps)


def rms_norm_of_cuda(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
    """An operation that moves the same bytes: on a CPU, F.rms_norm is several operations."""
    return layer_norm_of_cuda(x, shape, weight, eps=eps)


LAYER_NORM = F.layer_norm


# Compiled ----------------------------------------------------------------------------------------


def compiled_kernels(method: Callable[..., Tensor], inputs: tuple[Any, ...]) -> list[Kernel]:
    """The kernels of forward and backward of `method`, as the inductor fuses them."""
    kernels: list[Kernel] = []

    def count_graph(gm: Any, example_inputs: Any, **options: Any) -> Any:
        compile_fx.record_original_output_strides(gm)
        compile_fx.view_to_reshape(gm)
        # The graph's tensors have the mode of the tracer, not that of `kernels_of`.
        values = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
        fake_mode = next(value.fake_mode for value in values if isinstance(value, FakeTensor))
        with (
            unset_fake_temporarily(),
            V.set_fake_mode(fake_mode),
            V.set_debug_handler(DebugContext()),
        ):
            compile_fx._recursive_post_grad_passes(gm, False)
            graph = GraphLowering(gm, example_inputs=example_inputs)
            with V.set_graph_handler(graph):
                graph.run(*example_inputs)
                graph._update_scheduler()
                made = map(kernel_of_node, graph.scheduler.nodes)
                kernels.extend(kernel for kernel in made if kernel is not None)
        return gm.forward

    def backend(gm: Any, example_inputs: Any) -> Any:
        return compile_fx.compile_fx(gm, example_inputs, inner_compile=count_graph)

    torch.compiler.reset()
    with (
        functorch_config.patch(enable_autograd_cache=False),
        # The scheduler that makes the kernels for a GPU. It is only asked what it would fuse.
        inductor_config.patch(cpu_backend="triton"),
        mock.patch.object(scheduler, "has_triton", return_value=True),
    ):
        compiled = torch.compile(method, backend=backend, fullgraph=True, dynamic=False)
        with autocast():
            result = compiled(*inputs)
        result.backward(torch.empty_like(result))
    return kernels


def kernel_of_node(node: Any) -> Kernel | None:
    """The kernel of a node of the scheduler; None if it has none."""
    if isinstance(node, scheduler.NopKernelSchedulerNode) or isinstance(node.node, MultiOutput):
        return None
    moved = node.get_read_write_buffers_sizes()
    if isinstance(node, scheduler.ExternKernelSchedulerNode):
        for origin in node.node.origins:  # an operation of which the inductor calls the aten kernel
            args, kwargs = map_arg((origin.args, origin.kwargs), lambda given: given.meta["val"])
            # Not `moved`: for a slice, that is the size of the tensor of which it is a view.
            size = size_of((args, kwargs)) + size_of(origin.meta["val"])
            kernel = kernel_of(origin.target, args, kwargs, origin.meta["val"], size)
            if kernel.kind != "other":
                return kernel
    return Kernel("other", moved)


def autocast() -> Any:
    return torch.autocast("cpu", dtype=torch.float16)


def remove(kernels: list[Kernel], removed: list[Kernel]) -> list[Kernel]:
    """The kernels that are left after one equal kernel for each of `removed` is taken away."""
    missing = Counter(removed) - Counter(kernels)
    assert not missing, missing
    return list((Counter(kernels) - Counter(removed)).elements())
