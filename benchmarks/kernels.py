"""Count the kernels and bytes of a training step on a GPU, and estimate its time. Needs no GPU.

    python benchmarks/kernels.py [--depths 6 16 30] [--out benchmarks/measured/kernels.json]

The steps are those of the paper's recipe at 256 pixels in fp16, with drop path, from token ids to
updated weights. Nothing is computed: all tensors are fake. Three variants:

masked: eager code, and one attention call under the dense mask, as before this benchmark;
eager: eager code, and the parts of attention that a GPU uses;
compiled: the same, with the methods compiled that training compiles (training/compilation.py);
whole: the same, with the whole network compiled to one graph (--variants whole).

Eager kernels are the aten operations of forward and backward that are no views and no allocations.
CUDA's autocast computes LayerNorm in float32 and a CPU's does not, so LayerNorm gets a cast here.
Compiled kernels are the nodes of the inductor's scheduler after fusion, at the full batch: the
graphs of one block, times the depth, and of the head. They are those that it makes for a CPU. Its
rules for a GPU differ in details, for example a long reduction may become two kernels.
The rest (embeddings, teacher input) is eager in all variants. Each kernel reads its inputs and
writes its outputs once.

Model of the time, for an H100. A matrix product runs at MATMUL_SHARE of the peak (measured on an
H200, which has the same peak: measured/gpu_h200.json). Attention runs at MASKED_FLOPS under a mask
(from the same file: 17.4 ms for batch 32 at d16), and at PLAIN_FLOPS without one (an assumption).
Every other kernel runs at MEMORY_SHARE of the bandwidth (an assumption) and takes at least
LEAST_SECONDS. The host launches an eager kernel in LAUNCH_SECONDS; the step takes the longer of
host and device. A compiled method has the same cost a kernel: its launches are cheaper, but its
guards are checked. The update reads and writes UPDATE_BYTES for each parameter: loss scale, norm,
clipping and fused AdamW. MFU: model FLOPs, without masked pairs, over time and peak. `h200` is the
same with its bandwidth, to compare with the measured steps of eager masked code: .309 s at d16 and
.0739 s at d6 (measured/gpu_h200.json, torch 2.11). The model gives .218 and .040: it is too
optimistic by 1.4 and 1.8 times. Compare its variants, and do not plan with its times.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._inductor import compile_fx, scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import MultiOutput
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from var_scaling.accounting import total
from var_scaling.config import ImportedTokenizer
from var_scaling.models import attention
from var_scaling.models.base import Batch, ModelSpec, StepDraws
from var_scaling.models.var.accounting import var_parameters, var_training_flops
from var_scaling.models.var.config import paper_recipe
from var_scaling.models.var.model import VAR
from var_scaling.models.var.objective import training_loss
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.tokenizer.quantizer import Quantizer

CLASSES = 1000
BATCHES = {6: 96, 16: 64, 30: 16}  # images of one GPU
PEAK, H100_BANDWIDTH, H200_BANDWIDTH = 989e12, 3.35e12, 4.8e12
MATMUL_SHARE, MEMORY_SHARE = 0.72, 0.8
MASKED_FLOPS, PLAIN_FLOPS = 190e12, 250e12  # FLOP/s of all computed pairs
LEAST_SECONDS, LAUNCH_SECONDS = 2e-6, 4e-6
UPDATE_BYTES = 48
TOKENIZER = ImportedTokenizer(
    name="paper", pyramid=Pyramid(patch_nums=PAPER_256), codebook_size=4096, channels=160,
    sha256="0" * 64,
)  # fmt: skip


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


def layer_norm_of_cuda(x: Tensor, shape: Any, *rest: Any, eps: float = 1e-5) -> Tensor:
    """F.layer_norm as CUDA's autocast computes it."""
    with torch.autocast("cpu", enabled=False):
        return LAYER_NORM(x.float(), shape, *rest, eps=eps)


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
    with functorch_config.patch(enable_autograd_cache=False):
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


# Steps -------------------------------------------------------------------------------------------


class Case:
    """Fake tensors of a step of the paper's recipe at `depth`."""

    def __init__(self, depth: int, batch: int):
        self.batch = batch
        self.model = paper_recipe(depth).model
        self.spec = ModelSpec(self.model, TOKENIZER, CLASSES)
        self.network = VAR(self.model, TOKENIZER, CLASSES, 0)
        self.quantizer = Quantizer(TOKENIZER).requires_grad_(False)
        self.length = TOKENIZER.pyramid.length
        self.ids_BL = torch.zeros(batch, self.length, dtype=torch.int64)
        self.labels_B = torch.zeros(batch, dtype=torch.int64)

    def block_inputs(self) -> tuple[Any, ...]:
        width, half = self.model.width, {"dtype": torch.float16}
        x_BLC = torch.empty(self.batch, self.length, width, **half, requires_grad=True)
        cond = torch.empty(self.batch, width, **half, requires_grad=True)
        keep_2B11 = torch.empty(2, self.batch, 1, 1, **half)
        return self.network.blocks[0], x_BLC, cond, keep_2B11

    def head_inputs(self) -> tuple[Any, ...]:
        _, x_BLC, _, _ = self.block_inputs()
        cond_BC = torch.empty(self.batch, self.model.width, requires_grad=True)
        return x_BLC, cond_BC, self.ids_BL

    def network_inputs(self) -> tuple[Any, ...]:
        first, codes = TOKENIZER.pyramid.lengths[0], TOKENIZER.code_channels
        input_BLZ = torch.empty(self.batch, self.length - first, codes)
        keep_D2B = torch.empty(self.model.depth, 2, self.batch)
        return self.labels_B, input_BLZ, keep_D2B, self.ids_BL

    def eager_kernels(self, method: Callable[..., Tensor], inputs: tuple[Any, ...]) -> list[Kernel]:
        with EagerCounter() as counter, mock.patch.object(F, "layer_norm", layer_norm_of_cuda):
            with autocast():
                result = method(*inputs)
            result.backward(torch.empty_like(result))
        return counter.kernels

    def whole_step(self) -> Tensor:
        batch = Batch(self.ids_BL, self.labels_B)
        draws = StepDraws(0, 0, self.batch, slice(0, self.batch))
        return training_loss(self.spec, self.network, self.quantizer, batch, draws)


def kernels_of(depth: int, batch: int, variant: str) -> list[Kernel]:
    """The kernels of forward and backward of one step."""
    choice = attention._Choice(math.inf, 10**9 if variant == "masked" else 100, True, False)
    with mock.patch.dict(attention._CHOICES, {"cpu": choice}), FakeTensorMode():
        one = Case(depth, batch)
        block, head = one.network.run_block, one.network.head_loss
        eager_block = one.eager_kernels(block, one.block_inputs())
        eager_head = one.eager_kernels(head, one.head_inputs())
        step = one.eager_kernels(one.whole_step, ())
        if variant in ("masked", "eager"):
            return step
        if variant == "whole":  # the network in one graph, for comparison
            inputs = one.network_inputs()
            rest = remove(step, one.eager_kernels(one.network, inputs))
            return rest + compiled_kernels(one.network, inputs)
        rest = remove(step, eager_block * depth + eager_head)
        compiled_block = compiled_kernels(block, one.block_inputs())
        return rest + compiled_block * depth + compiled_kernels(head, one.head_inputs())


def remove(kernels: list[Kernel], removed: list[Kernel]) -> list[Kernel]:
    """The kernels that are left after one equal kernel for each of `removed` is taken away."""
    return list((Counter(kernels) - Counter(removed)).elements())


def estimate(kernels: list[Kernel], params: int, bandwidth: float) -> float:
    """Seconds of a step with these kernels."""
    flops_per_second = {
        "product": MATMUL_SHARE * PEAK,
        "masked attention": MASKED_FLOPS,
        "plain attention": PLAIN_FLOPS,
        "other": math.inf,
    }
    device = sum(
        max(
            LEAST_SECONDS,
            kernel.bytes / (MEMORY_SHARE * bandwidth),
            kernel.flops / flops_per_second[kernel.kind],
        )
        for kernel in kernels
    )
    update = UPDATE_BYTES * params / (MEMORY_SHARE * bandwidth)
    return max(device, LAUNCH_SECONDS * len(kernels)) + update


def row_of(depth: int, variant: str) -> dict[str, Any]:
    batch = BATCHES[depth]
    began = time.perf_counter()
    kernels = kernels_of(depth, batch, variant)
    model = paper_recipe(depth).model
    params = total(var_parameters(model, TOKENIZER, CLASSES))
    flops = batch * total(var_training_flops(model, TOKENIZER))
    h100, h200 = (estimate(kernels, params, b) for b in (H100_BANDWIDTH, H200_BANDWIDTH))
    return {
        "depth": depth,
        "variant": variant,
        "batch": batch,
        "kernels": len(kernels),
        "model_tflop": flops / 1e12,
        "computed_attention_tflop": sum(k.flops for k in kernels if "att" in k.kind) / 1e12,
        "other_gb": sum(k.bytes for k in kernels if k.kind == "other") / 1e9,
        "h100_seconds": h100,
        "h100_mfu": flops / h100 / PEAK,
        "h200_seconds": h200,
        "seconds_to_count": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=list(BATCHES), choices=BATCHES)
    parser.add_argument("--variants", nargs="+", default=["masked", "eager", "compiled"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "measured/kernels.json")
    options = parser.parse_args()
    rows = []
    print("depth  variant   batch  kernels  TFLOP  other GB  H100 s   MFU     H200 s")
    for depth in options.depths:
        for variant in options.variants:
            row = row_of(depth, variant)
            rows.append(row)
            print(
                f"{depth:5}  {variant:8}  {row['batch']:5}  {row['kernels']:7}  "
                f"{row['model_tflop']:5.1f}  {row['other_gb']:8.0f}  {row['h100_seconds']:.4f}  "
                f"{row['h100_mfu']:6.1%}  {row['h200_seconds']:.4f}",
                flush=True,
            )
    options.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
