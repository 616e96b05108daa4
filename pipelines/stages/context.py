"""Where a stage runs and with which resources. Nothing here can change its results."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from pipelines.workspace.settings import Local, Settings, compiles
from pipelines.workspace.store import Home

if TYPE_CHECKING:
    from var_scaling.models.static_calls import StaticCalls
    from var_scaling.training.loop import Signal
    from var_scaling.training.world import World


@dataclass(frozen=True)
class ProcessContext:
    """One of the processes that run a stage, and the resources it may use."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among the processes of the same node
    device: str = "cpu"
    threads: int = 1  # of one operation of torch
    cpus: int = 1  # on which parts of a stage that do not depend on each other may run
    workers: int = 0  # processes that decode images
    micro_batch_size: int | None = None
    recompute_activations: bool = False
    shard_optimizer: bool = False
    compile: bool = False  # training steps by torch.compile
    cuda_graphs: bool = True  # sampling by CUDA graphs; no effect without a GPU
    save_every: float = 20.0
    # Whether this process locks the folder. False in cluster jobs, because such a lock works on one
    # machine only, and in processes whose parent holds the lock.
    alone: bool = True
    logs_to_stdout: bool = False  # whether a user reads its output
    restart_id: str = ""  # differs between the restarts of one job
    rendezvous_file: Path | None = None  # where the processes of a job find each other
    address: str = "127.0.0.1"  # of the machine of rank 0
    facts: dict[str, Any] = field(default_factory=dict)  # for provenance.json

    @property
    def first(self) -> bool:
        return self.rank == 0


class StopFile:
    """Requests a stop as soon as the file `path` exists."""

    def __init__(self, path: Path):
        self.path, self.last_check, self.exists = path, 0.0, False

    def __call__(self) -> "Signal":
        from var_scaling.training.loop import Signal

        # Called after every step, which may take milliseconds: check the disk twice a second.
        if not self.exists and monotonic() - self.last_check > 0.5:
            self.last_check, self.exists = monotonic(), self.path.exists()
        return Signal.STOP if self.exists else Signal.CONTINUE


@contextmanager
def asking_to_stop(stop_file: Path) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks the stages to stop; a second one acts as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach only the main thread
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request_stop(number: int, frame: Any) -> None:
        stop_file.touch()
        # With the old handlers restored, a second Ctrl-C ends the process immediately.
        for handled, handler in before.items():
            signal.signal(handled, handler)

    for number in before:
        signal.signal(number, request_stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class RunContext:
    """Home, settings, process and callbacks of a running stage. None of it changes a result."""

    home: Home
    settings: Settings
    requested_signal: "Callable[[], Signal]"
    process: ProcessContext = field(default_factory=ProcessContext)
    report_progress: Callable[[str, int, int], None] | None = None  # (task, done, total)

    def drawing_threads(self) -> int:
        """Threads for sampling: 1 on a CPU, where more would make rounding depend on the batch."""
        return 1 if self.process.device == "cpu" else self.process.threads

    def device(self) -> Any:
        import torch

        if self.process.device == "cpu":
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise ValueError('device = "cuda", but torch sees no GPU here')
        # Slurm may show a process all GPUs of its job on the node, or only its own GPU.
        return torch.device("cuda", self.process.local_rank % torch.cuda.device_count())

    def static_calls(self, folder: Path) -> "StaticCalls":
        """For samplers. If CUDA graphs fail, the process prints why; `folder` is in the line."""
        from var_scaling.models.static_calls import static_calls

        def report(text: str) -> None:
            print(f"{folder}: {text}", flush=True)

        return static_calls(self.device(), self.process.cuda_graphs, report)

    @contextmanager
    def world(self) -> "Iterator[World]":
        """Join the process group of this stage's training; leave it after the block."""
        from var_scaling.training.distributed import join, leave

        process = self.process
        assert process.world_size == 1 or process.rendezvous_file is not None
        world = join(
            process.rank,
            process.world_size,
            self.device(),
            process.rendezvous_file or Path(),
            process.address,
        )
        yield replace(
            world,
            micro_batch_size=process.micro_batch_size,
            recompute_activations=process.recompute_activations,
            shard_optimizer=process.shard_optimizer,
        )
        leave(world)  # not after an error: the other processes would wait for this one forever


def local_process(local: Local) -> ProcessContext:
    """The resources that a stage on this machine may use."""
    return ProcessContext(
        device=local.device,
        threads=min(local.cpus, local.threads_per_stage),
        cpus=max(1, local.cpus // local.processes),
        workers=local.cpus,
        save_every=local.save_every_seconds,
        micro_batch_size=local.micro_batch_size,
        recompute_activations=local.recompute_activations,
        shard_optimizer=local.shard_optimizer,
        compile=compiles(local),
        cuda_graphs=local.cuda_graphs,
    )


def local_context(
    home: Home,
    settings: Settings,
    report_progress: Callable[[str, int, int], None] | None = None,
) -> RunContext:
    """The context of work that a command does on this machine, in its own process."""
    stop = StopFile(home.root / "stop")
    return RunContext(home, settings, stop, local_process(settings.local), report_progress)
