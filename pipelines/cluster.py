"""A sweep on a cluster, as a whole: launch it, or submit what can go and leave it."""

import os
import shutil
import time
from dataclasses import replace
from functools import partial

from pipelines import jobs, slurm
from pipelines.collect import overview
from pipelines.driver import Driver, alive, driving
from pipelines.orchestrate import Observe, Outcome, refuse_drift, run_on_cluster
from pipelines.provenance import attempts
from pipelines.ray_session import ray_here
from pipelines.reconcile import NOTE, Reconciler
from pipelines.settings import Cluster, MLflow, Settings, SettingsError
from pipelines.slurm import Queue
from pipelines.snapshot import take_snapshot
from pipelines.store import Home, claim
from pipelines.units import (
    SPLITS,
    Unit,
    refuse_held_elsewhere,
    stage_folders,
    token_units,
    tokenizer_unit,
    trial_arrays,
)
from var_scaling.config import ImportedTokenizer, Sweep, TrainedTokenizer
from var_scaling.disk import is_done

# What must not reach a job from the shell that submits: it describes another job, or Ray.
_OTHERS = ("RAY_", "SBATCH_", "SRUN_",
           "SLURM_JOB", "SLURM_STEP", "SLURM_TASK", "SLURM_NODE", "SLURM_NTASKS",
           "SLURM_PROC", "SLURM_LOCAL", "SLURM_ARRAY", "SLURM_CPUS", "SLURM_MEM", "SLURM_GPUS",
           "SLURM_TRES", "SLURM_SRUN", "SLURM_GTIDS", "SLURM_RESTART")  # fmt: skip


def launch(
    sweep: Sweep,
    home: Home,
    settings: Settings,
    cluster: str,
    dirty: bool,
    detach: bool,
    take_over: bool,
    observe: Observe,
) -> Outcome:
    """Bring `sweep` to its end on `cluster`: what is done stays, what runs is attached to.

    With `detach`, submit what can be submitted now, and leave. Raises Drift, DirtyTree,
    SettingsError, or Busy if another driver is at it.
    """
    refuse_drift(home, sweep)
    _refuse_unready(home, sweep, cluster)
    where = settings.cluster(cluster)
    refuse_without_slurm(cluster)
    arrays = trial_arrays(home, sweep, where)  # refuses before it spends
    snapshot = take_snapshot(home, dirty)
    settings = _for_jobs(sweep, settings)
    environment = environment_for_jobs()
    folder = home.sweep(sweep.name)
    with driving(folder, cluster, take_over) as driver:
        _claim_all(home, sweep)
        make = partial(Reconciler, home, folder, settings, cluster, snapshot, environment, driver)
        if detach:
            units = _ready(sweep, home, where, [u for array in arrays.values() for u in array])
            return Outcome(True, submit_once(make(), units))
        queue = _Queue(where)
        try:
            with ray_here(cpus=2):
                failures = run_on_cluster(
                    sweep, home, make, where, lambda: observe(overview(home, sweep, queue()))
                )
        except KeyboardInterrupt:
            return Outcome(True, {})
    return Outcome(False, failures)


def refuse_without_slurm(cluster: str) -> None:
    if shutil.which("sbatch") is None:
        raise SettingsError(f"--on {cluster}: no sbatch here; submit from a login node of Slurm")


def environment_for_jobs() -> dict[str, str]:
    """Ours, without what describes another job."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_OTHERS)}


class _Queue:
    """Slurm's queue as the screen needs it: asked seldom."""

    def __init__(self, cluster: Cluster):
        self.every = min(10.0, cluster.poll_seconds)
        self.known: Queue | None = None
        self.asked = 0.0

    def __call__(self) -> Queue | None:
        if time.time() - self.asked > self.every:
            self.asked = time.time()
            self.known = slurm.look()
        return self.known


def _refuse_unready(home: Home, sweep: Sweep, cluster: str) -> None:
    """Raise if a tokenizer is to be imported first, or another cluster has a stage in hand."""
    refuse_held_elsewhere(home, sweep, cluster)
    for t in sweep.tokenizers:
        if isinstance(t, ImportedTokenizer) and not is_done(home.tokenizer(t.name)):
            raise ValueError(
                f"tokenizer {t.name} is to be imported, not trained, and is not here yet: "
                f"var-scaling import VQVAE.pth --as {t.name} (SHA-256 {t.sha256})"
            )


def _for_jobs(sweep: Sweep, settings: Settings) -> Settings:
    """What jobs need of the settings: where data lies, whatever their environment says."""
    trained = [t.data for t in sweep.tokenizers if isinstance(t, TrainedTokenizer)]
    names = {data.name for data in (*trained, *(trial.data for trial in sweep.trials))}
    roots = {name: settings.data_root(name) for name in sorted(names)}
    data = {**settings.data, **{name: root for name, root in roots.items() if root is not None}}
    return settings.model_copy(update={"data": data, "mlflow": MLflow()})


def _claim_all(home: Home, sweep: Sweep) -> None:
    """Every folder gets its record now: whoever looks sees what is to come."""
    for t in sweep.tokenizers:
        claim(home.tokenizer(t.name), "tokenizer.json", t)
    for trial in sweep.trials:
        claim(home.trial(sweep.name, trial.name), "trial.json", trial)


def _ready(sweep: Sweep, home: Home, where: Cluster, trials: list[Unit]) -> list[Unit]:
    """What waits for nothing that is not done."""
    units = [tokenizer_unit(home, t, where) for t in sweep.tokenizers]
    ready = [unit for unit in units if not unit.done]
    encoded = set()
    for t, data in sweep.token_sets:
        if is_done(home.tokenizer(t.name)):
            parts = [u for split in SPLITS for u in token_units(home, t, data, split, where)]
            ready += [unit for unit in parts if not unit.done]
            if all(is_done(unit.whole) for unit in parts):
                encoded.add((t.name, data.name))
    names = {t.name: (t.tokenizer.name, t.data.name) for t in sweep.trials}
    return ready + [u for u in trials if names[u.folder.name] in encoded and not u.done]


def submit_once(reconciler: Reconciler, units: list[Unit]) -> dict[str, str]:
    """Attach to what runs, submit what is missing, each array of equal resources, and leave.

    Looks again for as long as a job has ended and it is not yet sure how.
    """
    failures: dict[str, str] = {}
    arrays: dict[object, list[Unit]] = {}
    for unit in units:
        asks = replace(unit.resources, at_once=None)
        arrays.setdefault((asks, unit.words["kind"]), []).append(unit)
    while True:
        for array in arrays.values():
            failures |= reconciler.step(array)
        if not reconciler.unsettled:
            return failures | {about: text for about, text in reconciler.notes.items() if text}
        time.sleep(reconciler.cluster.poll_seconds)


def asks_slurm(home: Home, sweep: Sweep) -> bool:
    """Whether a job may have some stage of `sweep` in hand."""
    records = [jobs.latest(folder) for folder in stage_folders(home, sweep).values()]
    return any(record is not None and record.live for record in records)


def cluster_of(home: Home, sweep: Sweep) -> str | None:
    """The cluster that last had a trial of `sweep`; before any has begun, one of its other stages.

    None where its trials ran on this machine.
    """
    folders = stage_folders(home, sweep)
    trials = [home.trial(sweep.name, trial.name) for trial in sweep.trials]
    begun = any(attempts(folder) or jobs.latest(folder) for folder in trials)
    known = [jobs.latest(folder) for folder in (trials if begun else folders.values())]
    there = [record for record in known if record is not None and record.cluster]
    return max(there, key=lambda record: record.time).cluster if there else None


def driver_words(home: Home, sweep: Sweep) -> str:
    """Who drives `sweep` now, and what it has to say."""
    folder = home.sweep(sweep.name)
    driver: Driver | None = alive(folder)
    if driver is None:
        return ""
    note = (folder / NOTE).read_text() if (folder / NOTE).exists() else ""
    return f"driver: {driver}" + (f"\n{note}" if note else "")
