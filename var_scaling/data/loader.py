"""An ordered `map` in other processes or threads, to read images while the model trains."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

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
    """
    if workers == 0:
        return map(read, keys) if threads == 1 else _in_threads(read, keys, threads)
    # The results come in the order of the keys, whichever worker is first: the order of training
    # images must not depend on the number of workers.
    loader: Any = DataLoader
    return iter(
        loader(
            _Lookup(read),
            batch_sampler=keys,
            # `read` returns complete arrays; the default would convert them to tensors.
            collate_fn=_identity,
            num_workers=workers,
        )
    )


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


def _identity(value: Value) -> Value:
    return value
