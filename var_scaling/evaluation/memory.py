"""How much memory a piece of work took at most, and whether it can be had at all."""

import ctypes
from contextlib import suppress
from pathlib import Path

import torch

from var_scaling.evaluation.rates import Memory

_PROCESS = Path("/proc/self")  # Linux; elsewhere nothing can be told
_FORGET_PEAK = "5"  # proc(5): what clear_refs takes to set VmHWM back to what is held now


class PeakMemory:
    """The most that is held from its making on."""

    def __init__(self, device: torch.device):
        self.device = device
        self.before: int | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _peak_forgotten():
            self.before = _bytes(_PROCESS / "status", "VmRSS")

    def read(self) -> Memory:
        if self.device.type == "cuda":
            return Memory(gpu_peak_bytes=torch.cuda.max_memory_allocated(self.device))
        most = _bytes(_PROCESS / "status", "VmHWM")
        if self.before is None or most is None or most <= self.before:
            return Memory()  # it fitted into what earlier work had left
        return Memory(process_growth_bytes=most - self.before)


def lacking(needed_bytes: int, device: torch.device) -> str | None:
    """Why `needed_bytes` cannot be had; None where they can, or only trying would tell.

    A GPU says so itself; a processor's kernel lends what it has not, and kills who uses it.
    """
    free = None if device.type == "cuda" else _bytes(Path("/proc/meminfo"), "MemAvailable")
    if free is None or needed_bytes <= free:
        return None
    return f"out of memory: needs more than {needed_bytes / 1e9:.1f} GB, {free / 1e9:.1f} are free"


def out_of_memory(error: Exception) -> bool:
    """Whether this is torch's or Python's word for too little memory."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or "can't allocate memory" in str(error)  # as torch's CPU allocator says it


def _peak_forgotten() -> bool:
    with suppress(AttributeError, OSError):  # glibc alone has it, and keeps much that was freed
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (_PROCESS / "clear_refs").write_text(_FORGET_PEAK)
    except OSError:
        return False
    return True


def _bytes(file: Path, name: str) -> int | None:
    """A line `name: 123 kB` of /proc; None where there is none."""
    if not file.exists():
        return None
    found = (line.split() for line in file.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in found if words[:1] == [f"{name}:"]), None)
