"""A set of samples drawn by several processes of this machine: each draws chunks of its own.

They say by a pipe how far they are. They leave when asked to by the stop file, and at once when the
process that started them is gone, however it went.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from pipelines.sampling.draw import How, ReportProgress, draw, end, make_ready, stop_requested
from pipelines.sampling.finalize import ended
from pipelines.sampling.request import Plan
from pipelines.sampling.store import SampleFolder, refuse_other
from pipelines.stages.attempt import Stopped
from pipelines.stages.context import RunContext, StopFile

_POLL = 0.5  # seconds
_LEAVES = 60.0  # seconds that a process may take to write what it has and leave

Said = tuple[str, str]  # what it is about; in words


class ProcessFailed(RuntimeError):
    """One of several processes failed; the message says which and why."""


def sample_set_by(
    processes: int,
    context: RunContext,
    plan: Plan,
    how: How,
    stop_file: Path,
    report_progress: ReportProgress,
) -> list[int]:
    """The same as `sample_set`, of a whole set, by so many processes.

    Raises what that raises; ProcessFailed where one of them failed.
    """
    assert how.part is None
    at = SampleFolder(plan.folder, plan.wanted)
    refuse_other(plan.folder, plan.wanted)
    lacking: list[int] = []
    if not ended(at):
        found, lacking = at.look_at_all()
        shares = [lacking[rank::processes] for rank in range(min(processes, len(lacking)))]
        with _started(context, plan, how, shares, stop_file) as workers:
            _run_until_done(workers, plan, len(found), report_progress, stop_file)
    elif not how.strips:
        return []
    ready = make_ready(context, plan)
    at.init_run_dir()
    return end(
        context, ready, at, lacking, how, lambda done: stop_requested(context), report_progress
    )


@contextmanager
def _started(
    context: RunContext, plan: Plan, how: How, shares: list[list[int]], stop_file: Path
) -> Iterator[dict[Connection, SpawnProcess]]:
    """The processes, by the pipe on which each is heard; none is left behind."""
    # A fork would inherit torch's threads and a GPU's context, neither of which lives on in it.
    spawn = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for rank, chunks in enumerate(shares):
            hears, says = spawn.Pipe(duplex=False)
            process_context = replace(context.process, local_rank=rank, logs_to_stdout=False)
            there = replace(
                context,
                process=process_context,
                requested_signal=StopFile(stop_file),
                report_progress=None,
            )
            words = (says, there, plan, how, chunks)
            process = spawn.Process(target=_work, args=words, name=str(rank + 1), daemon=True)
            process.start()
            says.close()  # so that its end is seen here
            workers[hears] = process
        yield workers
        for process in workers.values():
            process.join(_LEAVES)
    finally:
        for hears, process in workers.items():
            process.kill()
            process.join()
            hears.close()


def _run_until_done(
    workers: dict[Connection, SpawnProcess],
    plan: Plan,
    done: int,
    report_progress: ReportProgress,
    stop_file: Path,
) -> None:
    """Hear all of them out. Raises Stopped, or ProcessFailed with the first failure."""
    title, total = f"samples {plan.wanted.name}", plan.wanted.drawn
    reached = dict.fromkeys(workers, 0)
    started: dict[Connection, int] = {}
    failure = None
    report_progress(title, done, total)
    listening = set(workers)
    while listening:
        for hears in wait(list(listening), _POLL):
            assert isinstance(hears, Connection)
            try:
                about, said = hears.recv()
            except (EOFError, OSError):
                listening.discard(hears)
                process = workers[hears]
                process.join(_LEAVES)
                if process.exitcode and failure is None and not stop_file.exists():
                    failure = f"it ended with {_how(process.exitcode)}"
                    failure = f"process {process.name} of {len(workers)}: {failure}"
                    stop_file.touch()
                continue
            if about == "done":
                started.setdefault(hears, int(said))
                reached[hears] = int(said) - started[hears]
                report_progress(title, done + sum(reached.values()), total)
            elif failure is None:
                failure = f"process {workers[hears].name} of {len(workers)}: {said}"
                stop_file.touch()
    if failure is not None:
        raise ProcessFailed(failure)
    if stop_file.exists():
        count = done + sum(reached.values())
        raise Stopped(f"{title}: {count:,} of {total:,} images are on disk")


def _how(code: int) -> str:
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _work(says: Connection, context: RunContext, plan: Plan, how: How, chunks: list[int]) -> None:
    """What one process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first one decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        at, ready = SampleFolder(plan.folder, plan.wanted), make_ready(context, plan)
        at.init_run_dir()
        draw(
            context, ready, at, chunks, how.batch, lambda done: stop_requested(context),
            lambda what, done, total: says.send(("done", str(done))),
        )  # fmt: skip
    except Stopped:
        pass  # the first process asked for it, and says so itself
    except Exception as error:  # noqa: BLE001  it is the first process's to report
        traceback.print_exc()  # on stderr: where it came about is lost with this process
        says.send(("failed", f"{type(error).__name__}: {error}"))
    finally:
        says.close()


def _leave_with_parent() -> None:
    """A killed parent asks for nothing any more: its marked chunks are kept, no more is made."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
