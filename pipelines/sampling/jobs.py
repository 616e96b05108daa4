"""A set of samples as jobs of a cluster: what each is told, what it asks for, where it works.

Below the set's folder jobs-COUNT-of-N/ has what the jobs of N parts note of themselves; a set that
has grown gets other jobs. The images are the set's own.
"""

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from pipelines.execution.slurm.resources import encoding_resources
from pipelines.execution.tasks import Task
from pipelines.sampling.draw import How, chunks_of, draw, end, make_ready
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

# Of what a cluster sustains in training, which is mostly products of large matrices: an assumption.
# A job that takes longer than it asked for goes back into the queue and goes on.
_SLOWER = 4
DRAWN = "drawn.json"


def job_folders(plan: Plan, parts: int) -> list[Path]:
    """Where each of so many jobs keeps its notes."""
    return part_folders(plan.folder / f"jobs-{plan.wanted.count}", parts)


def sample_tasks(
    plan: Plan, how: How, parts: int, record: Trial | ImportedModel, cluster: Cluster
) -> list[Task]:
    """One unit a part; as few as there are chunks."""
    parts = min(parts, plan.wanted.chunks)
    image = total(record.family.sampling_flops(record.spec, plan.wanted.sampling.guided))
    image += decoding_flops(record.tokenizer)
    resources = encoding_resources(_SLOWER * image * plan.wanted.drawn / parts, cluster)
    folders = job_folders(plan, parts)
    return [
        Task(
            f"samples {plan.address}/{plan.wanted.name} {number + 1} of {parts}",
            folder,
            plan.folder,
            resources,
            _words(plan, how, (number, parts)),
            tuple(folders) if number == 0 else (),
        )
        for number, folder in enumerate(folders)
    ]


def _words(plan: Plan, how: How, part: tuple[int, int]) -> dict[str, Any]:
    return {
        "module": __name__,
        "address": plan.address,
        "set": plan.wanted.model_dump_json(),
        "folder": str(plan.folder),
        "classifier": plan.classifier,
        "batch": how.batch,
        "strips": how.strips,
        "part": list(part),
    }


def run(context: RunContext, payload: dict[str, Any]) -> str:
    """What a job does. Returns "done"; raises what `_run_part` raises."""
    wanted = SampleSet.model_validate_json(payload["set"])
    plan = Plan(payload["address"], Path(payload["folder"]), wanted, payload["classifier"])
    part = (payload["part"][0], payload["part"][1])
    how = How(payload["batch"], payload["strips"], part)
    return _run_part(context, plan, how, job_folders(plan, part[1]))


def images_drawn(tasks: list[Task]) -> int:
    """How many images the jobs have come to, by their own word."""
    notes = [task.folder / DRAWN for task in tasks]
    return sum(read_json(note)["done"] for note in notes if note.exists())


def reset_failed(tasks: list[Task]) -> None:
    """Have what failed or was cancelled tried again."""
    for task in tasks:
        record = jobs.latest(task.folder)
        if record is not None and record.ended in ("failed", "cancelled") and not task.done:
            jobs.note(task.folder, "retry")
            (task.folder / FAILED).unlink(missing_ok=True)


def others_at_it(plan: Plan, mine: list[Task], cluster: str) -> str:
    """Which job may be drawing the set, other than those that `mine` attach to; "" if none."""
    attached = {task.folder for task in mine}
    if is_done(plan.folder):
        return ""
    for ledger in sorted(plan.folder.glob(f"jobs-*/parts/*/{jobs.JOBS}")):
        folder, record = ledger.parent, jobs.latest(ledger.parent)
        if record is None or not record.live or is_done(folder):
            continue
        if folder not in attached or record.cluster != cluster:
            of = int(folder.name.rpartition("-")[2])
            return (
                f"job {record.job or record.submission} on {record.cluster} may still draw this "
                f"set, as one of {of}: attach to it with --on {record.cluster} --jobs {of}, or end "
                f"it with `scancel {record.job or ''}` and see it off with the same words"
            )
    return ""


def _run_part(context: RunContext, plan: Plan, how: How, folders: Sequence[Path]) -> str:
    """A job's part of a set; `folders` are those of the jobs of all parts. Returns "done".

    Raises Stopped, Superseded, Drift, ValueError, OSError.
    """
    assert how.part is not None
    folder = folders[how.part[0]]
    with at_work(folder, context.process, context.requested_signal) as attempt:
        at = SampleFolder(plan.folder, plan.wanted)
        refuse_changed(plan.folder, plan.wanted)
        if is_done(plan.folder):
            return "done"
        attempt.begin({})
        ready = make_ready(context, plan)
        chunks = chunks_of(plan.wanted, how.part)
        draw(context, ready, at, chunks, how.batch, attempt.stop, _Drawn(folder))
        attempt.finish({"status": "done"})  # what the end draws again is a file or two
        for chunk in end(context, ready, at, chunks, how, lambda done: False, lambda *said: None):
            # Where that part was done, an image of it is lost: it is to be done again.
            (folders[chunk % len(folders)] / DONE).unlink(missing_ok=True)
        return "done"


class _Drawn:
    """Leaves how far a job has come, at most twice a second: for its driver, who asks the disk."""

    def __init__(self, folder: Path):
        self.path, self.written = folder / DRAWN, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if monotonic() - self.written > 0.5 or done >= total:
            self.written = monotonic()
            write_json(self.path, {"done": done, "total": total})
