"""Where and with how much of a machine a stage runs. Nothing here can change what it computes."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from pipelines.workspace.settings import Local, Settings
from pipelines.workspace.store import Home

if TYPE_CHECKING:
    from var_scaling.training.loop import Wish
    from var_scaling.training.world import World


@dataclass(frozen=True)
class Seat:
    """One of the processes that do a stage, and what of its machine it may use."""

    rank: int = 0
    size: int = 1
    local: int = 0  # its number among those on the same node
    device: str = "cpu"
    threads: int = 1
    workers: int = 0  # processes that decode images
    at_once: int | None = None
    save_every: float = 20.0
    alone: bool = True  # whether a lock of this machine's kernel keeps others out
    speaks: bool = False  # whether its output is read by somebody
    life: str = ""  # tells this life of a job from those before it
    meeting: Path | None = None  # where the processes find each other
    address: str = "127.0.0.1"  # of the first one's machine
    facts: dict[str, Any] = field(default_factory=dict)  # for provenance.json

    @property
    def first(self) -> bool:
        return self.rank == 0


class StopFile:
    """The wish of whoever drives stages on this machine: to stop, once `path` is there."""

    def __init__(self, path: Path):
        self.path, self.looked, self.found = path, 0.0, False

    def __call__(self) -> "Wish":
        from var_scaling.training.loop import Wish

        if not self.found and monotonic() - self.looked > 0.5:
            self.looked, self.found = monotonic(), self.path.exists()
        return Wish.STOP if self.found else Wish.GO_ON


@contextmanager
def asking_to_stop(stop_file: Path) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a word to the stages, and leave the second as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach only the main thread
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        stop_file.touch()
        for which, handler in before.items():
            signal.signal(which, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Place:
    """Where and with how much of a machine a stage runs: never part of what it computes."""

    home: Home
    settings: Settings
    wish: "Callable[[], Wish]"
    seat: Seat = field(default_factory=Seat)
    tell: Callable[[str, int, int], None] | None = None  # hears what is done, how far, of how much

    def drawing_threads(self) -> int:
        """Threads to draw images with. On several a processor rounds by the batch: so it is one."""
        return 1 if self.seat.device == "cpu" else self.seat.threads

    def device(self) -> Any:
        import torch

        if self.seat.device == "cpu":
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise ValueError('device = "cuda", but torch sees no GPU here')
        # Slurm may show a process all GPUs of its job on the node, or its own alone.
        return torch.device("cuda", self.seat.local % torch.cuda.device_count())

    @contextmanager
    def world(self) -> "Iterator[World]":
        """The processes that train one stage, met and parted from again."""
        from var_scaling.training.distributed import join, leave

        seat = self.seat
        assert seat.size == 1 or seat.meeting is not None
        world = join(
            seat.rank, seat.size, self.device(), seat.meeting or Path(), seat.address, seat.at_once
        )
        yield world
        leave(world)  # not after an error: the others would wait for what never comes


def local_seat(local: Local) -> Seat:
    """All that a stage on this machine may use."""
    return Seat(
        device=local.device,
        threads=min(local.cpus, local.threads_per_stage),
        workers=local.cpus,
        save_every=local.save_every_seconds,
        at_once=local.images_at_once,
    )
