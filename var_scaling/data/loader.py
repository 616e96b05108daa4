"""An ordered `map` in worker processes, to decode images while the model trains."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Lookup(Dataset, Generic[Key, Value]):
    def __init__(self, read: Callable[[Key], Value]):
        self.read = read

    # DataLoader calls this with one element of its batch_sampler. A key is a whole batch here.
    def __getitems__(self, key: Key) -> Value:
        return self.read(key)


def in_order(read: Callable[[Key], Value], keys: Iterable[Key], workers: int) -> Iterator[Value]:
    """`map(read, keys)`, prefetched by `workers` processes (0: in this process, on demand).

    It uses torch's DataLoader, which re-raises workers' errors and ends workers with their parent.
    """
    if workers == 0:
        return map(read, keys)
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


def _identity(value: Value) -> Value:
    return value
