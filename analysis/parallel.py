"""Independent computations in forked processes, which share the memory of this one."""

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


def idle_cores() -> int:
    """How many processes pay off here: the cores of this process; 1 where it must not fork."""
    # Outside Linux, system libraries can fail in a forked process.
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def in_processes(
    jobs: Sequence[Callable[[], T]],
    processes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[T]:
    """The result of each job, in their order; `processes` - 1 forked processes and this one share
    the jobs.

    A job starts when a process is free, so jobs that take long come first in `jobs`. Results of
    forked processes are pickled. An exception of a job is raised here. Do not fork a process whose
    threads hold locks that a job needs (Ray, gRPC): give 1, which runs the jobs in a loop.
    """
    processes = min(processes, len(jobs))
    if processes < 2:
        return _one_by_one(jobs, progress)
    context = multiprocessing.get_context("fork")
    following = context.Value("i", 0)

    def take() -> int:
        with following.get_lock():
            following.value += 1
            return int(following.value) - 1

    def work(pipe: Connection) -> None:
        done: dict[int, Any] = {}
        try:
            while (index := take()) < len(jobs):
                done[index] = jobs[index]()
        except BaseException as error:  # noqa: BLE001 - raised again by the parent
            pipe.send(error)
        else:
            pipe.send(done)

    results: dict[int, T] = {}
    with _no_garbage_collections(), _forked(work, processes - 1) as pipes:
        while (index := take()) < len(jobs):
            progress(index, len(jobs))
            results[index] = jobs[index]()
        for pipe in pipes:
            received = pipe.recv()
            if isinstance(received, BaseException):
                raise received
            results |= received
    return [results[index] for index in range(len(jobs))]


def _one_by_one(jobs: Sequence[Callable[[], T]], progress: Callable[[int, int], None]) -> list[T]:
    results = []
    for index, job in enumerate(jobs):
        progress(index, len(jobs))
        results.append(job())
    return results


@contextmanager
def _no_garbage_collections() -> Iterator[None]:
    """With many objects they take seconds, and they write to the memory that processes share."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _forked(work: Callable[[Connection], None], count: int) -> Iterator[list[Connection]]:
    """`count` forked processes that call `work`; yields the pipes that they send to."""
    context = multiprocessing.get_context("fork")
    pipes, children = [], []
    try:
        for _ in range(count):
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=work, args=(sender,), daemon=True)
            child.start()
            sender.close()  # so that the receiver ends when the child does
            pipes.append(receiver)
            children.append(child)
        yield pipes
    finally:
        for child in children:
            child.kill()  # it has sent its results, or they are no longer needed
            child.join()
