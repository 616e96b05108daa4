"""A set of samples as jobs of a cluster: what each is told, what it asks for, where it works.

Below the set's folder jobs-COUNT-of-N/ has what the jobs of N parts note of themselves; a set that
has grown gets other jobs. The images are the set's own.
"""

from pathlib import Path
from typing import Any

from pipelines import jobs
from pipelines.attempt import FAILED
from pipelines.place import Place
from pipelines.resources import encoding_resources
from pipelines.sample_request import Plan
from pipelines.sampling import DRAWN, How, run_part
from pipelines.settings import Cluster
from pipelines.store import part_folders
from pipelines.units import Unit
from var_scaling.accounting import total
from var_scaling.accounting.tokenizer import decoding_flops
from var_scaling.accounting.transformer import var_sampling_flops
from var_scaling.config import ImportedModel, Trial
from var_scaling.disk import is_done, read_json
from var_scaling.generation.sets import SampleSet

# Of what a cluster sustains in training, which is mostly products of large matrices: an assumption.
# A job that takes longer than it asked for goes back into the queue and goes on.
_SLOWER = 4


def job_folders(plan: Plan, parts: int) -> list[Path]:
    """Where each of so many jobs keeps its notes."""
    return part_folders(plan.folder / f"jobs-{plan.wanted.count}", parts)


def sample_units(
    plan: Plan, how: How, parts: int, record: Trial | ImportedModel, cluster: Cluster
) -> list[Unit]:
    """One unit a part; as few as there are chunks."""
    parts = min(parts, plan.wanted.chunks)
    image = total(var_sampling_flops(record.model, record.tokenizer))
    image += decoding_flops(record.tokenizer)
    resources = encoding_resources(_SLOWER * image * plan.wanted.drawn / parts, cluster)
    folders = job_folders(plan, parts)
    return [
        Unit(
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
        "kind": "samples",
        "address": plan.address,
        "set": plan.wanted.model_dump_json(),
        "folder": str(plan.folder),
        "classifier": plan.classifier,
        "batch": how.batch,
        "strips": how.strips,
        "part": list(part),
    }


def run(place: Place, words: dict[str, Any]) -> str:
    """What a job does. Returns "done"; raises what `run_part` raises."""
    wanted = SampleSet.model_validate_json(words["set"])
    plan = Plan(words["address"], Path(words["folder"]), wanted, words["classifier"])
    part = (words["part"][0], words["part"][1])
    how = How(words["batch"], words["strips"], part)
    return run_part(place, plan, how, job_folders(plan, part[1]))


def images_drawn(units: list[Unit]) -> int:
    """How many images the jobs have come to, by their own word."""
    notes = [unit.folder / DRAWN for unit in units]
    return sum(read_json(note)["done"] for note in notes if note.exists())


def forgive(units: list[Unit]) -> None:
    """Have what failed or was cancelled tried again."""
    for unit in units:
        record = jobs.latest(unit.folder)
        if record is not None and record.ended in ("failed", "cancelled") and not unit.done:
            jobs.note(unit.folder, "retry")
            (unit.folder / FAILED).unlink(missing_ok=True)


def others_at_it(plan: Plan, mine: list[Unit], cluster: str) -> str:
    """Which job may be drawing the set, other than those that `mine` attach to; "" if none."""
    attached = {unit.folder for unit in mine}
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
