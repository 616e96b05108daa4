"""Ray's door: the stages of a sweep as a graph of tasks, run as this machine's resources allow."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import stages
from pipelines.collect import View, overview
from pipelines.settings import Settings
from pipelines.stages import Place
from pipelines.store import Home, drift, held, refuse
from var_scaling.accounting.ledger import trial_ledger
from var_scaling.config import Sweep
from var_scaling.datasets import as_seen
from var_scaling.disk import is_done, read_json
from var_scaling.record import difference

Observe = Callable[[list[View]], None]
Stage = Callable[..., str]


@dataclass(frozen=True)
class Outcome:
    """How a run ended; `failures` maps a stage to the error that stopped it."""

    interrupted: bool
    failures: dict[str, str]


def refuse_drift(home: Home, sweep: Sweep) -> None:
    """Raise Drift if any folder of `sweep` is the home of something else; nothing is written."""
    for t in (*sweep.tokenizers, *(model.tokenizer for model in sweep.imported)):
        path = home.tokenizer(t.name) / "tokenizer.json"
        refuse(path, drift(path, t))
    for trial in sweep.trials:
        path = home.trial(sweep.name, trial.name) / "trial.json"
        refuse(path, drift(path, trial))
    for model in sweep.imported:
        path = home.imported(model.name) / "model.json"
        refuse(path, drift(path, model))
    for t, data in sweep.token_sets:
        for split in ("train", "validation"):
            path = home.tokens(t.name, data.name, split) / "manifest.json"
            if path.exists():
                wanted = as_seen(data, split).model_dump(mode="json")
                refuse(path, difference(read_json(path)["data"], wanted))


def run(sweep: Sweep, home: Home, settings: Settings, observe: Observe) -> Outcome:
    """Bring `sweep` to its end: what is done stays, what is half done goes on.

    `observe` is given the state of every stage about twice a second. Ctrl-C or SIGTERM asks the
    stages to save and stop; a second one ends them at once. Raises Drift, or Busy if another driver
    runs this sweep.
    """
    refuse_drift(home, sweep)
    if all(view.finished for view in overview(home, sweep)):
        return Outcome(interrupted=False, failures={})
    with held(home.sweep(sweep.name), file="driver.lock"), _ray(settings):
        stop_file = home.sweep(sweep.name) / "stop"
        stop_file.unlink(missing_ok=True)
        with _asking_to_stop(stop_file):
            place = Place(home, settings, _threads(settings), stop_file)
            failures = _run_graph(sweep, place, lambda: observe(overview(home, sweep)))
        interrupted = stop_file.exists()
        stop_file.unlink(missing_ok=True)
        return Outcome(interrupted, failures)


def _run_graph(sweep: Sweep, place: Place, look: Callable[[], None]) -> dict[str, str]:
    """Run every unfinished stage behind those it needs; returns the errors of those that failed.

    What trials need goes to Ray at once. Trials follow one by one as others end, largest first:
    Ray would start tasks that wait for the same thing in an order of its own.
    """
    import ray

    home = place.home
    tasks: dict[Any, str] = {}

    def submit(name: str, work: Stage, needs: list[Any], *words: Any) -> Any:
        # A killed worker's stage is started again: stages go on from the disk.
        remote = ray.remote(num_cpus=place.threads, max_retries=2)(_after)
        task = remote.remote(work, place, words, *needs)
        tasks[task] = name
        return task

    tokenizers = {
        t.name: submit(f"tokenizer {t.name}", stages.run_tokenizer, [], t)
        for t in sweep.tokenizers
        if not is_done(home.tokenizer(t.name))
    }
    tokens: dict[tuple[str, str], list[Any]] = {}
    for t, data in sweep.token_sets:
        needs = [tokenizers[t.name]] if t.name in tokenizers else []
        tokens[t.name, data.name] = [
            submit(f"tokens {data.name}-{split}", stages.run_tokens, needs, t, data, split)
            for split in ("train", "validation")
            if not is_done(home.tokens(t.name, data.name, split))
        ]
    by_size = sorted(sweep.trials, key=lambda trial: -trial_ledger(trial)["train_flops"])
    queue = [t for t in by_size if not is_done(home.trial(sweep.name, t.name))]

    slots = max(1, place.settings.local.cpus // place.threads)
    failures: dict[str, str] = {}
    waiting = list(tasks)
    while waiting or queue:
        while queue and len(waiting) < slots and not place.stop_file.exists():
            trial = queue.pop(0)
            needs = tokens[trial.tokenizer.name, trial.data.name]
            waiting.append(submit(f"trial {trial.name}", stages.run_trial, needs, sweep, trial))
        if not waiting:
            break  # asked to stop before the queue was empty
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=0.5)
        look()
        for task in ready:
            _note_failure(task, tasks[task], failures)
    return failures


def _threads(settings: Settings) -> int:
    return min(settings.local.cpus, settings.local.threads_per_stage)


def _after(work: Stage, place: Place, words: tuple[Any, ...], *needs: str) -> str:
    """Do `work`. Ray's only dependency is an argument: `needs` are what other tasks returned."""
    return work(place, *words)


def _note_failure(task: Any, name: str, failures: dict[str, str]) -> None:
    """Add why `task` failed, if it did by itself: Ray hands a need's error to what needs it."""
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        said = f"{type(cause).__name__}: {cause}"
        if not isinstance(cause, stages.Stopped) and said not in failures.values():
            failures[name] = said


@contextmanager
def _ray(settings: Settings) -> Iterator[None]:
    """A Ray of our own on this machine: quiet, offline, on loopback only, no telemetry."""
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # the odd name of "bind every port to 127.0.0.1"
        RAY_AUTH_MODE="disabled",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    )
    import ray

    ray.init(
        address="local",
        num_cpus=settings.local.cpus,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=100 * 2**20,  # stages pass names, not data
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _asking_to_stop(stop_file: Path) -> Iterator[None]:
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
