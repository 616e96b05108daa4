"""Calls of a network that are recorded once as CUDA graphs and then replayed.

With few images a GPU waits for the launches of kernels. A graph launches all kernels of a call at
once, always on the same memory and with the same numbers. So a recorded function takes all that
changes between two calls from its inputs, or from tensors that are overwritten in place.

Shapes: B images.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from var_scaling.models.layers import autocast_dtype

# Records a function without arguments. Returns its output, and a function that computes the output
# again in the same memory. Recording alone need not compute it.
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]


class BatchSampler(Protocol):
    """Samples batches of one size. What depends on the batch stays in the same tensors."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the network, whose Linear layers run in the autocast dtype."""

    def restart(self, labels_B: Tensor) -> Tensor:
        """Overwrite what depends on the labels. Returns one of the tensors."""


S = TypeVar("S", bound=BatchSampler)


class _Recording(NamedTuple):
    buffers: list[Tensor]  # the inputs of every replay
    output: Tensor
    replay: Callable[[], None]


@dataclass
class _Current:
    """The sampler in use, and the recordings of its calls."""

    key: Hashable
    sampler: Any
    record: Record
    recordings: dict[Hashable, _Recording | None] = field(default_factory=dict)  # None: ran once
    weights: dict[nn.Parameter, Tensor] = field(default_factory=dict)  # in the autocast dtype


class StaticCalls:
    """Runs the network's calls of samplers, of which one is in use at a time.

    Without a `recorder` each call simply runs. With one, the first call of a name runs, the second
    is recorded, and it and all later ones are replayed. If recording fails, all calls simply run
    from then on, and a sentence with the reason goes to `report`.
    """

    def __init__(
        self,
        recorder: Callable[[], Record] | None = None,
        report: Callable[[str], object] = warnings.warn,
    ):
        self.recorder, self.report = recorder, report
        self._current: _Current | None = None

    @property
    def active(self) -> bool:
        return self.recorder is not None

    def sampler(self, key: Hashable, make: Callable[[], S], labels_B: Tensor) -> S:
        """The sampler of the batch before, restarted, if it has the same `key`; else a new one.

        `key` is all that `make` depends on, except for the labels. A new key drops all recordings.
        """
        if self.recorder is None:
            return make()
        if self._current is not None and self._current.key == key:
            kept: S = self._current.sampler
            self("restart", kept.restart, labels_B)
            return kept
        self._current = None  # before `make`, to free the memory
        made = make()
        self._current = _Current(key, made, self.recorder())
        return made

    def __call__(self, name: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """The result of `function`; the next call of this name or the next batch overwrites it.

        `name` determines the function and the shapes of its inputs.
        """
        if self._current is None:
            return function(*inputs)
        recordings = self._current.recordings
        if name not in recordings:
            # A call that is not repeated, such as VAR's in a short last batch, needs no recording.
            recordings[name] = None
            return function(*inputs)
        recording = recordings[name] or self._recorded(self._current, function, inputs)
        if recording is None:
            return function(*inputs)
        recordings[name] = recording
        for buffer, given in zip(recording.buffers, inputs, strict=True):
            buffer.copy_(given)
        recording.replay()
        return recording.output

    def _recorded(
        self, current: _Current, function: Callable[..., Tensor], inputs: Sequence[Tensor]
    ) -> _Recording | None:
        buffers = [given.clone() for given in inputs]
        # Not through `current`, which will refer to the recording: a cycle would keep its memory.
        blocks, weights = current.sampler.blocks, current.weights

        def run() -> Tensor:
            with cast_weights(blocks, weights):
                return function(*buffers)

        cache_enabled = torch.is_autocast_cache_enabled()
        # Autocast drops the weights that it has cast at its end; a graph would still read them.
        torch.set_autocast_cache_enabled(False)
        try:
            return _Recording(buffers, *current.record(run))
        # Errors of a capture have no common class. Any other error occurs again in the plain call.
        except Exception as error:  # noqa: BLE001
            # An invalid capture ends with a second error, which does not say why.
            first = error.__context__ or error
            reason = f"{type(first).__name__}: {first}".strip().splitlines()[0]
        finally:
            torch.set_autocast_cache_enabled(cache_enabled)
        self.recorder = self._current = None
        current.recordings.clear()
        self.report(f"CUDA graphs failed, so sampling continues without them, slower: {reason}")
        return None


def static_calls(
    device: torch.device, cuda_graphs: bool = True, report: Callable[[str], object] = warnings.warn
) -> StaticCalls:
    """With CUDA graphs on a GPU, if they are enabled; without recordings elsewhere."""
    if device.type != "cuda" or not cuda_graphs:
        return StaticCalls()
    return StaticCalls(lambda: record_graphs(device), report)


def record_graphs(device: torch.device) -> Record:
    """Records CUDA graphs that share the memory of all but their outputs."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        caller, graph = torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
        # Around `graph` too, which does not leave the stream if the capture fails.
        with torch.cuda.stream(stream):
            stream.wait_stream(caller)
            # Once without recording on the same stream: libraries allocate their workspaces there.
            function()
            caller.wait_stream(stream)
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                output = function()
        return output, graph.replay

    return record


@contextmanager
def cast_weights(
    blocks: Sequence[nn.Module], weights: dict[nn.Parameter, Tensor]
) -> Iterator[None]:
    """Within the block, Linear layers have their weights in the autocast dtype, those of `weights`.

    Missing ones are added. So a recorded call casts no weight of the network's blocks.
    """
    layers = [
        layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)
    ]
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    originals = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            if parameter not in weights:
                weights[parameter] = parameter.data.to(autocast_dtype(parameter.device))
            parameter.data = weights[parameter]
        yield
    finally:
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.data = original
