"""Settings of a process that computes with torch."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_TWO_GIB = 2**31 - 1
# The largest that glibc accepts. Larger tensors are mapped anew as before: before version 2.38 it
# may take several blocks of a size until it uses one again.
_LARGEST_KEPT = 32 * 2**20


def prepare_process(threads: int) -> None:
    """Compute with `threads` threads; return memory to the system now, but not between steps.

    The number of threads changes the rounding of sums: results must not depend on the core count.

    By default glibc maps each large tensor anew and the kernel clears its pages: a sixth of a
    tokenizer's training step at 64 pixels (LOG.md). Memory of up to 32 MiB is kept and used again.
    """
    torch.set_num_threads(threads)
    with suppress(AttributeError, OSError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, _TWO_GIB)
        release_memory()


def computing_threads(count: int) -> ThreadPoolExecutor:
    """A pool of threads, each of which computes like this one: OpenMP has a setting for each."""
    return ThreadPoolExecutor(count, "computing", torch.set_num_threads, (torch.get_num_threads(),))


def release_memory() -> None:
    """Return memory that was freed to the system, where the C library can."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
