"""The code of a job on its node: it runs one stage, from the code snapshot of its submission.

Slurm may end a job at any time. If Slurm sends a signal before, the stage saves a checkpoint
between two steps, and the job requeues itself.
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
from pipelines.workspace.settings import Settings, compiles
from pipelines.workspace.store import Home

if TYPE_CHECKING:
    from var_scaling.training.loop import Signal

LOCAL = "local"
_REQUEUE_ATTEMPTS = 6  # ten seconds apart: slurmctld may be unavailable for a moment


@dataclass(frozen=True)
class Work:
    """One task, as submitit pickles it. It holds names and JSON only: the job reads all other state
    from disk when it starts.
    """

    home: str
    folder: str
    settings: str  # JSON of the settings at the time of submission
    cluster: str
    submission: str
    payload: dict[str, Any]

    def __call__(self) -> str:
        """Run the task; returns how it ended. Raises what the stage raises."""
        # Local processes have no Slurm variables and are not requeued; a file requests their stop.
        if self.cluster == LOCAL:
            return self._run_local()
        # Before all else: submitit's handler of SIGUSR2 would requeue at any point of the training,
        # and lose all steps since the last checkpoint.
        signals = _Signals()
        # A submission that reported an error may have been accepted all the same. Of two jobs for
        # one folder, the one that jobs.jsonl does not name exits here.
        if not self._is_current():
            return "superseded"
        settings = Settings.model_validate_json(self.settings)
        context = RunContext(
            Home(Path(self.home)), settings, signals, self._slurm_process(settings)
        )
        try:
            return self._run_stage(context)
        except Superseded as error:
            if context.process.world_size > 1:
                raise  # so that srun ends the other processes, which wait for this one
            print(error, flush=True)
            return "superseded"
        except Stopped as error:
            print(error, flush=True)
            # One requeue is enough for all processes. A cancelled job must not be requeued.
            if context.process.first and self._is_current():
                signals.requeue()
            return "stopped"

    def _is_current(self) -> bool:
        """Whether this submission is the newest and has not been cancelled."""
        record = jobs.latest(Path(self.folder))
        if record is None or (record.submission == self.submission and record.ended != "cancelled"):
            return True
        print(
            f"this job was cancelled, or a later one ({record.job}) works in {self.folder}: exiting"
        )
        return False

    def _run_local(self) -> str:
        """Run the task as one of several processes on this machine, which are not requeued."""
        settings = Settings.model_validate_json(self.settings)
        requested_signal = StopFile(Path(self.payload["stop"]))
        context = RunContext(
            Home(Path(self.home)),
            settings,
            requested_signal,
            _local_process(settings, self.submission),
        )
        try:
            return self._run_stage(context)
        except Stopped:
            return "stopped"

    def checkpoint(self) -> Any:
        """submitit calls this to requeue the job: the same task again, which resumes from disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run_stage(self, context: RunContext) -> str:
        """Call `run` of the module that the payload names: stages, scoring or sampling."""
        ended: str = importlib.import_module(self.payload["module"]).run(context, self.payload)
        return ended

    def _slurm_process(self, settings: Settings) -> ProcessContext:
        cluster = settings.cluster(self.cluster)
        # Slurm sets SLURM_RESTART_COUNT only from the first requeue on.
        job, restarts = job_id(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        node = os.environ.get("SLURMD_NODENAME", "")
        rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
        # On a single node the processes meet on the loopback interface, which other machines cannot
        # reach. Only rank 0 needs the address of its node: it writes it to the rendezvous file.
        multi_node = int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1
        # The rendezvous file has the restart in its name, because a file of an earlier start
        # contains a port on which no process listens any more.
        folder = Path(self.home) / "jobs" / self.submission
        return ProcessContext(
            rank=rank,
            world_size=size,
            local_rank=int(os.environ["SLURM_LOCALID"]),
            device=cluster.device,
            threads=cluster.threads_per_process,
            cpus=cluster.cpus_per_gpu,
            workers=max(0, cluster.cpus_per_gpu - 1),
            micro_batch_size=self.payload.get("at_once"),
            recompute_activations=cluster.recompute_activations,
            shard_optimizer=cluster.shard_optimizer,
            compile=compiles(cluster),
            cuda_graphs=cluster.cuda_graphs,
            save_every=cluster.save_every_seconds,
            alone=False,
            logs_to_stdout=rank == 0,
            restart_id=f"{job}.{restarts}",
            rendezvous_file=folder / f"meeting-{job}-{restarts}.json",
            address=slurm.node_address(node) if multi_node and rank == 0 else "127.0.0.1",
            facts={
                "job": job, "restart": restarts, "node": node, "cluster": self.cluster,
                "submission": self.submission, "processes": size,
                "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            },
        )  # fmt: skip


def _local_process(settings: Settings, submission: str) -> ProcessContext:
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
    """The id of this job, as squeue prints it."""
    # In an array, SLURM_JOB_ID is a number of its own, which `squeue -r` does not print.
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


class _Signals:
    """Handles Slurm's signals. SIGUSR2: save and stop. SIGTERM: save only, because Slurm may kill
    the job soon.

    A job that exits on SIGTERM would count as ended even if Slurm was about to requeue it.
    """

    def __init__(self) -> None:
        self.stop = self.save = False
        self.submitit_handler = signal.getsignal(signal.SIGUSR2)
        signal.signal(signal.SIGUSR2, self._stop)
        signal.signal(signal.SIGTERM, self._save)

    def __call__(self) -> "Signal":
        from var_scaling.training.loop import Signal

        # A stop persists until the process exits; a request for a checkpoint applies once.
        if self.stop:
            return Signal.STOP
        save, self.save = self.save, False
        return Signal.CHECKPOINT if save else Signal.CONTINUE

    def requeue(self) -> None:
        """Requeue the job, which ends this process. Returns if Slurm does not requeue it."""
        if not callable(self.submitit_handler):
            return
        # If all attempts fail, the job ends, and the driver submits the task again.
        for left in reversed(range(_REQUEUE_ATTEMPTS)):
            try:
                # Calls `checkpoint` and `scontrol requeue`, then exits the process.
                self.submitit_handler(signal.SIGUSR2, None)
            except (subprocess.SubprocessError, OSError) as error:
                print(f"Slurm did not requeue this job: {error}; {left} attempts left", flush=True)
                time.sleep(10 if left else 0)

    # The handlers only set a flag: a checkpoint is consistent only between two steps.
    def _stop(self, number: int, frame: Any) -> None:
        self.stop = True

    def _save(self, number: int, frame: Any) -> None:
        self.save = True
