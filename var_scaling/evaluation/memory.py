"""Peak memory of a computation, and a check that enough memory is free before it."""

from pathlib import Path

import torch

from var_scaling.evaluation.rates import Memory
from var_scaling.process import release_memory

_PROCESS = Path("/proc/self")  # Linux only; elsewhere the peak is unknown
_RESET_PEAK = "5"  # proc(5): written to clear_refs, it resets VmHWM (the peak) to VmRSS


class PeakMemory:
    """The peak memory since this object was created."""

    def __init__(self, device: torch.device):
        self.device = device
        self.before: int | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _reset_peak():
            self.before = _bytes(_PROCESS / "status", "VmRSS")

    def read(self) -> Memory:
        if self.device.type == "cuda":
            return Memory(gpu_peak_bytes=torch.cuda.max_memory_allocated(self.device))
        peak = _bytes(_PROCESS / "status", "VmHWM")
        if self.before is None or peak is None or peak <= self.before:
            return Memory()  # unknown: it fitted into memory that the process already held
        return Memory(process_growth_bytes=peak - self.before)


def memory_shortage(needed_bytes: int, device: torch.device) -> str | None:
    """A message if fewer than `needed_bytes` are free; None if they are free or it is unknown.

    A GPU is not checked, because its allocator raises an error. Linux overcommits the memory of a
    CPU: the allocation succeeds, and the kernel kills the process when it uses the memory.
    """
    free = None if device.type == "cuda" else _bytes(Path("/proc/meminfo"), "MemAvailable")
    if free is None or needed_bytes <= free:
        return None
    return f"out of memory: needs {needed_bytes / 1e9:.1f} GB or more; {free / 1e9:.1f} GB are free"


def out_of_memory(error: Exception) -> bool:
    """Whether `error` is an out-of-memory error of torch or Python."""
    typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return typed or "can't allocate memory" in str(error)  # a RuntimeError of the CPU allocator


def _reset_peak() -> bool:
    release_memory()  # kept memory would hide the next peak
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _bytes(file: Path, name: str) -> int | None:
    """The value of a line `name: 123 kB` in a file of /proc; None if there is no such line."""
    if not file.exists():
        return None
    rows = (line.split() for line in file.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in rows if words[:1] == [f"{name}:"]), None)
