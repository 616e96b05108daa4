"""Draw a sample set with several processes on this machine; each draws its own chunks.

The worker processes report their progress through pipes. They stop when the stop file exists, and
exit immediately when their parent process has ended for any reason.
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

from pipelines.sampling.draw import (
    DrawOptions,
    ReportProgress,
    draw,
    finish_set,
    load_sampler,
    stop_requested,
)
from pipelines.sampling.finalize import is_finished
from pipelines.sampling.request import Plan
from pipelines.sampling.store import SampleFolder, refuse_other
from pipelines.stages.attempt import Stopped
from pipelines.stages.context import RunContext, StopFile

_POLL = 0.5  # seconds
_EXIT_TIMEOUT = 60.0  # seconds that a process may take to write its images and exit


class ProcessFailed(RuntimeError):
    """A worker process failed; the message names the process and the error."""


def sample_set_in_processes(
    processes: int,
    context: RunContext,
    plan: Plan,
    options: DrawOptions,
    stop_file: Path,
    report_progress: ReportProgress,
) -> list[int]:
    """As `sample_set`, for a whole set, with up to `processes` processes.

    Raises what `sample_set` raises, and ProcessFailed if a process failed.
    """
    assert options.part is None
    store = SampleFolder(plan.folder, plan.config)
    refuse_other(plan.folder, plan.config)
    incomplete: list[int] = []  # chunks
    if not is_finished(store):
        # Only chunks with missing images are distributed, so after a resume every process has work.
        stored, incomplete = store.all_stored_images()
        count = min(processes, len(incomplete))
        chunks_by_rank = [incomplete[rank::processes] for rank in range(count)]
        with _started(context, plan, options, chunks_by_rank, stop_file) as workers:
            _run_until_done(workers, plan, len(stored), report_progress, stop_file)
    elif not options.strips:
        return []
    sampler = load_sampler(context, plan)
    store.init_run_dir()
    return finish_set(
        context,
        sampler,
        store,
        incomplete,
        options,
        lambda done: stop_requested(context),
        report_progress,
    )


@contextmanager
def _started(
    context: RunContext,
    plan: Plan,
    options: DrawOptions,
    chunks_by_rank: list[list[int]],
    stop_file: Path,
) -> Iterator[dict[Connection, SpawnProcess]]:
    """Start the processes; yield them by the pipe that each writes to; kill them at the end."""
    # Not fork: torch's threads and the CUDA context do not work in a forked process.
    spawn = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for rank, chunks in enumerate(chunks_by_rank):
            receiver, sender = spawn.Pipe(duplex=False)
            # `local_rank` selects the GPU (`RunContext.device`).
            process_context = replace(context.process, local_rank=rank, logs_to_stdout=False)
            # It is pickled for the new process, so it must not contain callbacks of this one. A
            # stop reaches the process through the file.
            worker_context = replace(
                context,
                process=process_context,
                requested_signal=StopFile(stop_file),
                report_progress=None,
            )
            arguments = (sender, worker_context, plan, options, chunks)
            process = spawn.Process(target=_work, args=arguments, name=str(rank + 1), daemon=True)
            process.start()
            # The pipe reports its end only when no process holds the sending side open.
            sender.close()
            workers[receiver] = process
        yield workers
        for process in workers.values():
            process.join(_EXIT_TIMEOUT)
    finally:
        for receiver, process in workers.items():
            # After an error without waiting: images with a mark are kept, the others are drawn
            # again.
            process.kill()
            process.join()
            receiver.close()


def _run_until_done(
    workers: dict[Connection, SpawnProcess],
    plan: Plan,
    done: int,
    report_progress: ReportProgress,
    stop_file: Path,
) -> None:
    """Receive the messages of all processes until they have ended.

    Raises Stopped, or ProcessFailed with the first failure.
    """
    title, total = f"samples {plan.config.name}", plan.config.drawn
    drawn = dict.fromkeys(workers, 0)  # images of each process since it started
    initial: dict[Connection, int] = {}  # first count that each process reported
    failure = None
    report_progress(title, done, total)
    open_pipes = set(workers)
    while open_pipes:
        for receiver in wait(list(open_pipes), _POLL):
            assert isinstance(receiver, Connection)
            try:
                kind, text = receiver.recv()
            except (EOFError, OSError):  # the process has ended
                open_pipes.discard(receiver)
                process = workers[receiver]
                process.join(_EXIT_TIMEOUT)
                # If the stop file exists, the process ended on request, or another one failed
                # first.
                if process.exitcode and failure is None and not stop_file.exists():
                    failure = f"it ended with {_describe_exit(process.exitcode)}"
                    failure = f"process {process.name} of {len(workers)}: {failure}"
                    stop_file.touch()
                continue
            if kind == "done":
                # A process also counts the images of its chunks that were on disk before. `done`
                # has these already.
                initial.setdefault(receiver, int(text))
                drawn[receiver] = int(text) - initial[receiver]
                report_progress(title, done + sum(drawn.values()), total)
            elif failure is None:
                failure = f"process {workers[receiver].name} of {len(workers)}: {text}"
                stop_file.touch()
    if failure is not None:
        raise ProcessFailed(failure)
    if stop_file.exists():
        count = done + sum(drawn.values())
        raise Stopped(f"{title}: {count:,} of {total:,} images are on disk")


def _describe_exit(code: int) -> str:
    if code < 0:  # multiprocessing's convention for a process that a signal ended
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _work(
    sender: Connection, context: RunContext, plan: Plan, options: DrawOptions, chunks: list[int]
) -> None:
    """The work of one process: draw `chunks`, and send ("done", count) or ("failed", error)."""
    # Ctrl-C reaches all processes; the parent handles it and creates the stop file.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        store, sampler = SampleFolder(plan.folder, plan.config), load_sampler(context, plan)
        store.init_run_dir()
        draw(
            context, sampler, store, chunks, options.batch, lambda done: stop_requested(context),
            lambda what, done, total: sender.send(("done", str(done))),
        )  # fmt: skip
    except Stopped:
        pass  # the parent requested the stop and reports it
    except Exception as error:  # noqa: BLE001  the parent reports it
        traceback.print_exc()  # to stderr, because only the message is sent to the parent
        sender.send(("failed", f"{type(error).__name__}: {error}"))
    finally:
        sender.close()


def _exit_with_parent() -> None:
    """Exit when the parent process ends. Images that are marked on disk are kept."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # `sys.exit` would end only this thread.
        os._exit(1)
