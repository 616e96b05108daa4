"""Ray's door: the stages of a sweep as a graph of tasks, run as this machine's resources allow."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import launch
from pipelines.collect import View, overview
from pipelines.damage import damage_in, ended
from pipelines.driver import driving
from pipelines.ray_session import ray_here
from pipelines.settings import Cluster, Settings
from pipelines.stages import stages
from pipelines.stages.attempt import Stopped
from pipelines.stages.context import Place, StopFile, asking_to_stop, local_seat
from pipelines.store import Home, drift, refuse
from pipelines.units import (
    SPLITS,
    Unit,
    refuse_held_elsewhere,
    sweep_units,
    to_be_retried,
    token_units,
    tokenizer_unit,
    trial_arrays,
)
from var_scaling.accounting.ledger import trial_ledger
from var_scaling.config import Sweep
from var_scaling.datasets import as_seen
from var_scaling.disk import read_json
from var_scaling.record import Record, difference

STOP = "stop"  # a file that asks the stages of a sweep on this machine to stop
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
        _refuse_other(home.tokenizer(t.name) / "tokenizer.json", t)
    for trial in sweep.trials:
        _refuse_other(home.trial(sweep.name, trial.name) / "trial.json", trial)
    for model in sweep.imported:
        _refuse_other(home.imported(model.name) / "model.json", model)
    for t, data in sweep.token_sets:
        for split in SPLITS:
            path = home.tokens(t.name, data.name, split) / "manifest.json"
            if path.exists() and not _is_damaged(path):
                wanted = as_seen(data, split).model_dump(mode="json")
                refuse(path, difference(read_json(path)["data"], wanted))


def _refuse_other(path: Path, record: Record) -> None:
    if not _is_damaged(path):
        refuse(path, drift(path, record))


def _is_damaged(path: Path) -> bool:
    """Whether a finished stage's file is not what it was: then its state says so, no drift."""
    found = damage_in(path.parent)
    return found is not None and path.name in found.files


def run(
    sweep: Sweep,
    home: Home,
    settings: Settings,
    observe: Observe,
    take_over: bool = False,
) -> Outcome:
    """Bring `sweep` to its end: what is done stays, what is half done goes on.

    `observe` is given the state of every stage about twice a second. Ctrl-C or SIGTERM asks the
    stages to save and stop; a second one ends them at once. Raises Drift, or Busy if another driver
    runs this sweep.
    """
    refuse_drift(home, sweep)
    if all(view.over for view in overview(home, sweep)):
        return Outcome(interrupted=False, failures={})
    refuse_held_elsewhere(home, sweep, "local")
    with driving(home.sweep(sweep.name), "local", take_over), ray_here(settings.local.cpus):
        stop_file = home.sweep(sweep.name) / STOP
        stop_file.unlink(missing_ok=True)
        with asking_to_stop(stop_file):
            place = Place(home, settings, StopFile(stop_file), local_seat(settings.local))
            failures = _run_graph(sweep, place, stop_file, lambda: observe(overview(home, sweep)))
        interrupted = stop_file.exists()
        stop_file.unlink(missing_ok=True)
        return Outcome(interrupted, failures)


def run_on_cluster(
    sweep: Sweep,
    home: Home,
    reconciler: Callable[[], Any],
    cluster: Cluster,
    look: Callable[[], None],
) -> dict[str, str]:
    """The same on a cluster: one actor sees all jobs through, each array behind what it needs.

    `reconciler` makes the actor's Reconciler. Returns why, by unit, for each that is not done. Ends
    at once on Ctrl-C: the jobs are Slurm's, and go on.
    """
    import ray

    # No retry of a submission: it would submit twice.
    actor = ray.remote(num_cpus=0, max_concurrency=1000)(_Door).remote(reconciler)

    def see_through(units: list[Unit], needs: list[Any]) -> Any:
        return actor.see_through.remote(units, *needs)

    tokenizers = {
        t.name: see_through([tokenizer_unit(home, t, cluster)], []) for t in sweep.tokenizers
    }
    tokens = {
        (t.name, data.name): [
            see_through(token_units(home, t, data, split, cluster), [tokenizers[t.name]])
            for split in SPLITS
        ]
        for t, data in sweep.token_sets
    }
    arrays = trial_arrays(home, sweep, cluster)
    units = {unit.name: unit for unit in sweep_units(home, sweep, cluster)}
    waiting = [*tokenizers.values(), *(task for tasks in tokens.values() for task in tasks)]
    waiting += [see_through(units, tokens[key[1:]]) for key, units in arrays.items()]
    failures: dict[str, str] = {}
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=min(5.0, cluster.poll_seconds))
        look()
        for task in ready:
            failures |= ray.get(task)
        for name in [name for name in failures if to_be_retried(units[name])]:
            del failures[name]
            waiting.append(see_through([units[name]], []))
    return failures


class _Door:
    """The actor around a Reconciler, which knows no Ray."""

    def __init__(self, reconciler: Callable[[], Any]):
        self.reconciler = reconciler()

    async def see_through(self, units: list[Unit], *needs: dict[str, str]) -> dict[str, str]:
        return dict(await self.reconciler.see_through(units, *needs))


def _run_graph(
    sweep: Sweep, place: Place, stop_file: Path, look: Callable[[], None]
) -> dict[str, str]:
    """Run every unfinished stage behind those it needs; returns the errors of those that failed.

    What trials need goes to Ray at once. Trials follow one by one as others end, largest first:
    Ray would start tasks that wait for the same thing in an order of its own.
    """
    import ray

    home, local = place.home, place.settings.local
    processes = local.processes
    tokenize, train = stages.run_tokenizer, stages.run_trial
    if processes > 1:
        tokenize, train = (
            partial(launch.tokenize_here, stop_file),
            partial(launch.train_here, stop_file),
        )
    tasks: dict[Any, str] = {}

    def submit(name: str, work: Stage, needs: list[Any], *words: Any) -> Any:
        # A killed worker's stage is started again: stages go on from the disk.
        alone = work is stages.run_tokens
        cpus = place.seat.threads if alone else min(local.cpus, place.seat.threads * processes)
        remote = ray.remote(num_cpus=cpus, max_retries=2)(_after)
        task = remote.remote(work, place, words, *needs)
        tasks[task] = name
        return task

    tokenizers = {
        t.name: submit(f"tokenizer {t.name}", tokenize, [], t)
        for t in sweep.tokenizers
        if not ended(home.tokenizer(t.name))
    }
    tokens: dict[tuple[str, str], list[Any]] = {}
    for t, data in sweep.token_sets:
        needs = [tokenizers[t.name]] if t.name in tokenizers else []
        tokens[t.name, data.name] = [
            submit(f"tokens {data.name}-{split}", stages.run_tokens, needs, t, data, split)
            for split in ("train", "validation")
            if not ended(home.tokens(t.name, data.name, split))
        ]
    by_size = sorted(sweep.trials, key=lambda trial: -trial_ledger(trial)["train_flops"])
    queue = [t for t in by_size if not ended(home.trial(sweep.name, t.name))]

    slots = max(1, local.cpus // (place.seat.threads * processes))
    failures: dict[str, str] = {}
    waiting = list(tasks)
    while waiting or queue:
        while queue and len(waiting) < slots and not stop_file.exists():
            trial = queue.pop(0)
            needs = tokens[trial.tokenizer.name, trial.data.name]
            waiting.append(submit(f"trial {trial.name}", train, needs, sweep.name, trial))
        if not waiting:
            break  # asked to stop before the queue was empty
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=0.5)
        look()
        for task in ready:
            _note_failure(task, tasks[task], failures)
    return failures


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
        if not isinstance(cause, Stopped) and said not in failures.values():
            failures[name] = said
