"""An ordered `map` in other processes or threads, to read images while the model trains."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from var_scaling.process import computing_threads

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Lookup(Dataset, Generic[Key, Value]):
    def __init__(self, read: Callable[[Key], Value]):
        self.read = read

    # DataLoader calls this with one element of its batch_sampler. A key is a whole batch here.
    def __getitems__(self, key: Key) -> Value:
        return self.read(key)


def in_order(
    read: Callable[[Key], Value], keys: Iterable[Key], workers: int, threads: int = 1
) -> Iterator[Value]:
    """`map(read, keys)`, prefetched by `workers` processes; without them, by `threads` threads of
    this process (1: on demand).

    It uses torch's DataLoader, which re-raises workers' errors and ends workers with their parent.
    Arrays of other processes arrive in shared memory (/dev/shm); other values are pickled.
    """
    if workers == 0:
        return map(read, keys) if threads == 1 else _in_threads(read, keys, threads)
    # The results come in the order of the keys, whichever worker is first: the order of training
    # images must not depend on the number of workers.
    loader: Any = DataLoader
    values = loader(
        _Lookup(read),
        batch_sampler=keys,
        # `read` returns complete values; the default would collate them to a batch.
        collate_fn=_shareable,
        num_workers=workers,
    )
    return map(_array, values)


def for_device(arrays: Iterator[np.ndarray], device: torch.device) -> Iterator[Tensor]:
    """`arrays` as tensors; for a GPU in pinned memory, to which a thread copies them ahead."""
    if device.type != "cuda":
        return map(torch.from_numpy, arrays)
    return in_order(lambda array: pinned(torch.from_numpy(array), device), arrays, 0, threads=2)


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """`values`, for a GPU in pinned memory: a copy from there does not wait for the GPU."""
    return values.pin_memory() if device.type == "cuda" else values


def _in_threads(read: Callable[[Key], Value], keys: Iterable[Key], threads: int) -> Iterator[Value]:
    """`map(read, keys)`, at most `threads` values ahead."""
    pool, ahead = computing_threads(threads), deque[Future[Value]]()
    try:
        for key in keys:
            ahead.append(pool.submit(read, key))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:  # also if the caller stops before the last key
        pool.shutdown(cancel_futures=True)


def _shareable(value: Any) -> Any:
    """In a worker: an array as a tensor, which DataLoader moves to shared memory."""
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _array(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value
