"""What a job does on its node: one stage, from the snapshot of the code it was submitted with.

Slurm may end a job at any moment. It says so with a signal where it can: then the stage saves
between two steps, and the job goes back into the queue by itself.
"""

import importlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.execution.slurm import slurm
from pipelines.stages.attempt import Stopped, Superseded
from pipelines.stages.context import ProcessContext, RunContext, StopFile, local_process
from pipelines.workspace import job_log as jobs
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home

if TYPE_CHECKING:
    from var_scaling.training.loop import Signal

LOCAL = "local"
_REQUEUES = 6  # tries, ten seconds apart: slurmctld may be away for a moment


@dataclass(frozen=True)
class Work:
    """One unit, as submitit pickles it: names and JSON, so that what counts is read from disk."""

    home: str
    folder: str
    settings: str  # as they were on submission
    cluster: str
    submission: str
    payload: dict[str, Any]

    def __call__(self) -> str:
        """Do it; returns how it ended. Raises what the stage raises."""
        if self.cluster == LOCAL:
            return self._here()
        signals = _Signals()
        if not self._wanted():
            return "superseded"
        settings = Settings.model_validate_json(self.settings)
        context = RunContext(Home(Path(self.home)), settings, signals, self._process(settings))
        try:
            return self._stage(context)
        except Superseded as error:
            if context.process.world_size > 1:
                raise  # so that srun ends the others, who wait for this one
            print(error, flush=True)
            return "superseded"
        except Stopped as error:
            print(error, flush=True)
            if context.process.first and self._wanted():
                signals.requeue()
            return "stopped"

    def _wanted(self) -> bool:
        """Whether this submission is the newest and has not been cancelled."""
        record = jobs.latest(Path(self.folder))
        if record is None or (record.submission == self.submission and record.ended != "cancelled"):
            return True
        print(f"this job was cancelled, or a later one ({record.job}) works here: nothing to do")
        return False

    def _here(self) -> str:
        """The same as one of several processes on this machine, which are not requeued."""
        settings = Settings.model_validate_json(self.settings)
        requested_signal = StopFile(Path(self.payload["stop"]))
        context = RunContext(
            Home(Path(self.home)),
            settings,
            requested_signal,
            _process_here(settings, self.submission),
        )
        try:
            return self._stage(context)
        except Stopped:
            return "stopped"

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same again, for the disk has the rest."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _stage(self, context: RunContext) -> str:
        """By the module that the words name: any kind of work is done here."""
        ended: str = importlib.import_module(self.payload["module"]).run(context, self.payload)
        return ended

    def _process(self, settings: Settings) -> ProcessContext:
        cluster = settings.cluster(self.cluster)
        job, life = job_id(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        node = os.environ.get("SLURMD_NODENAME", "")
        rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
        many = int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1
        folder = Path(self.home) / "jobs" / self.submission
        return ProcessContext(
            rank=rank,
            world_size=size,
            local_rank=int(os.environ["SLURM_LOCALID"]),
            device=cluster.device,
            threads=cluster.threads_per_process,
            workers=max(0, cluster.cpus_per_gpu - 1),
            micro_batch_size=self.payload.get("at_once"),
            save_every=cluster.save_every_seconds,
            alone=False,
            logs_to_stdout=rank == 0,
            restart_id=f"{job}.{life}",
            rendezvous_file=folder / f"meeting-{job}-{life}.json",
            address=slurm.node_address(node) if many and rank == 0 else "127.0.0.1",
            facts={
                "job": job, "restart": life, "node": node, "cluster": self.cluster,
                "submission": self.submission, "processes": size,
                "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            },
        )  # fmt: skip


def _process_here(settings: Settings, submission: str) -> ProcessContext:
    rank = int(os.environ["SUBMITIT_LOCAL_GLOBALID"])
    return replace(
        local_process(settings.local),
        rank=rank,
        world_size=settings.local.processes,
        local_rank=rank,
        alone=False,  # the process that started these holds the lock for all
        logs_to_stdout=rank == 0,
        restart_id=submission,
        rendezvous_file=Path(os.environ["SUBMITIT_FOLDER"]) / "meeting.json",
        facts={"processes": settings.local.processes},
    )


def job_id() -> str:
    """This job's id as squeue prints it."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


class _Signals:
    """What Slurm's signals mean: SIGUSR2, save and leave; SIGTERM, save, for the end may be near.

    A job that leaves on SIGTERM would count as ended where Slurm was about to requeue it.
    """

    def __init__(self) -> None:
        self.stop = self.save = False
        self.submitit = signal.getsignal(signal.SIGUSR2)
        signal.signal(signal.SIGUSR2, self._stop)
        signal.signal(signal.SIGTERM, self._save)

    def __call__(self) -> "Signal":
        from var_scaling.training.loop import Signal

        if self.stop:
            return Signal.STOP
        save, self.save = self.save, False
        return Signal.CHECKPOINT if save else Signal.CONTINUE

    def requeue(self) -> None:
        """Go back into the queue, and end this process; where Slurm will not, simply return."""
        if not callable(self.submitit):
            return
        for left in reversed(range(_REQUEUES)):
            try:
                self.submitit(signal.SIGUSR2, None)
            except (subprocess.SubprocessError, OSError) as error:
                print(f"Slurm did not requeue this job: {error}; {left} more tries", flush=True)
                time.sleep(10 if left else 0)

    def _stop(self, number: int, frame: Any) -> None:
        self.stop = True

    def _save(self, number: int, frame: Any) -> None:
        self.save = True
