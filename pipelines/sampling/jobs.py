"""Sampling as cluster jobs: the task, resources and folder of each job.

The folder jobs-COUNT/ of a set has the state of its jobs, one folder for each part. A larger count
has other jobs. All jobs write their images into the folder of the set.
"""

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from pipelines.execution.slurm.resources import encoding_resources
from pipelines.execution.tasks import Task
from pipelines.sampling.draw import DrawOptions, chunks_of_part, draw, finish_set, load_sampler
from pipelines.sampling.request import Plan
from pipelines.sampling.store import SampleFolder, refuse_changed
from pipelines.stages.attempt import FAILED, at_work
from pipelines.stages.context import RunContext
from pipelines.workspace import job_log as jobs
from pipelines.workspace.settings import Cluster
from pipelines.workspace.store import part_folders
from var_scaling.accounting import total
from var_scaling.accounting.tokenizer import decoding_flops
from var_scaling.disk import DONE, is_done, read_json, write_json
from var_scaling.experiment import ImportedModel, Trial
from var_scaling.experiment.sample_set import SampleSet

# Training throughput of a GPU over its sampling throughput. An assumption: training consists mostly
# of products of large matrices, sampling of smaller ones. A job that exceeds its requested time is
# put back into the queue and resumes.
_SLOWDOWN = 4
DRAWN = "drawn.json"  # progress of a job


def job_folders(plan: Plan, parts: int) -> list[Path]:
    """The folders in which the jobs of `parts` parts keep their state."""
    return part_folders(plan.folder / f"jobs-{plan.config.count}", parts)


def sample_tasks(
    plan: Plan, options: DrawOptions, parts: int, record: Trial | ImportedModel, cluster: Cluster
) -> list[Task]:
    """One task for each part; at most one for each chunk."""
    parts = min(parts, plan.config.chunks)
    flops_per_image = total(record.family.sampling_flops(record.spec, plan.config.sampling.guided))
    flops_per_image += decoding_flops(record.tokenizer)
    task_flops = flops_per_image * plan.config.drawn / parts
    precision = plan.config.sampling.precision
    resources = encoding_resources(_SLOWDOWN * task_flops, cluster, precision)
    folders = job_folders(plan, parts)
    return [
        Task(
            f"samples {plan.address}/{plan.config.name} {number + 1} of {parts}",
            folder,
            plan.folder,
            resources,
            _payload(plan, options, (number, parts)),
            # As Task.parts: if the job that finished the last part was killed before it completed
            # the set, all parts are done and the set is not. Then the first task runs again.
            tuple(folders) if number == 0 else (),
        )
        for number, folder in enumerate(folders)
    ]


def _payload(plan: Plan, options: DrawOptions, part: tuple[int, int]) -> dict[str, Any]:
    # The job imports `module` and calls its `run` with this payload.
    return {
        "module": __name__,
        "address": plan.address,
        "set": plan.config.model_dump_json(),
        "folder": str(plan.folder),
        "classifier": plan.classifier,
        "batch": options.batch,
        "strips": options.strips,
        "part": list(part),
    }


def run(context: RunContext, payload: dict[str, Any]) -> str:
    """Run the part of a job. Returns "done"; raises what `_run_part` raises."""
    config = SampleSet.model_validate_json(payload["set"])
    plan = Plan(payload["address"], Path(payload["folder"]), config, payload["classifier"])
    part = (payload["part"][0], payload["part"][1])
    options = DrawOptions(payload["batch"], payload["strips"], part)
    return _run_part(context, plan, options, job_folders(plan, part[1]))


def images_drawn(tasks: list[Task]) -> int:
    """The number of images drawn, by the progress files of the jobs."""
    files = [task.folder / DRAWN for task in tasks]
    return sum(read_json(file)["done"] for file in files if file.exists())


def reset_failed(tasks: list[Task]) -> None:
    """Mark the failed and cancelled tasks to be run again."""
    # The reconciler does not submit a failed task again without a request; this records one.
    for task in tasks:
        record = jobs.latest(task.folder)
        if record is not None and record.ended in ("failed", "cancelled") and not task.done:
            jobs.note(task.folder, "retry")
            (task.folder / FAILED).unlink(missing_ok=True)


def other_job(plan: Plan, tasks: list[Task], cluster: str) -> str:
    """A message if a job that does not belong to `tasks` may be drawing the set; else ""."""
    own_folders = {task.folder for task in tasks}
    if is_done(plan.folder):
        return ""
    # Jobs of any count and any number of parts: parts of two divisions have chunks in common.
    for ledger in sorted(plan.folder.glob(f"jobs-*/parts/*/{jobs.JOBS}")):
        folder, record = ledger.parent, jobs.latest(ledger.parent)
        # `live` means only that no driver has recorded the end of the job; it may have ended.
        if record is None or not record.live or is_done(folder):
            continue
        if folder not in own_folders or record.cluster != cluster:
            count = int(folder.name.rpartition("-")[2])  # from 002-of-016
            same_jobs = f"--on {record.cluster} --jobs {count}"
            return (
                f"job {record.job or record.submission} on {record.cluster} may still draw this "
                f"set, as one of {count}: attach to it with {same_jobs}. Or end it with "
                f"`scancel {record.job or ''}`, then run once with {same_jobs}, which records its "
                "end"
            )
    return ""


def _run_part(
    context: RunContext, plan: Plan, options: DrawOptions, folders: Sequence[Path]
) -> str:
    """Draw one part of a set. `folders`: of the jobs of all parts. Returns "done".

    Raises Stopped, Superseded, ConfigMismatchError, ValueError, OSError.
    """
    assert options.part is not None
    folder = folders[options.part[0]]
    with at_work(folder, context.process, context.requested_signal) as attempt:
        store = SampleFolder(plan.folder, plan.config)
        # The driver wrote the record when it submitted the job. The job may have waited in the
        # queue while the set was given another count.
        refuse_changed(plan.folder, plan.config)
        if is_done(plan.folder):
            return "done"
        attempt.begin({})
        sampler = load_sampler(context, plan)
        chunks = chunks_of_part(plan.config, options.part)
        draw(context, sampler, store, chunks, options.batch, attempt.stop, _JobProgress(folder))
        # Done before the set is finished: finishing draws a few damaged images again at most.
        attempt.finish({"status": "done"})
        for chunk in finish_set(
            context, sampler, store, chunks, options, lambda done: False, lambda *progress: None
        ):
            # If the part of this chunk was done, an image was lost: that part must run again.
            (folders[chunk % len(folders)] / DONE).unlink(missing_ok=True)
        return "done"


class _JobProgress:
    """Writes the progress of a job to its folder, at most twice a second; the driver reads it."""

    def __init__(self, folder: Path):
        self.path, self.last_write = folder / DRAWN, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if monotonic() - self.last_write > 0.5 or done >= total:
            self.last_write = monotonic()
            write_json(self.path, {"done": done, "total": total})
