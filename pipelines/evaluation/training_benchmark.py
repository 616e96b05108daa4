"""Measure a training step of each distinct size of a sweep, here or in a job, and save it.

`plan`, and the GPUs and hours of jobs, use these measurements instead of an assumed throughput.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

from pipelines.evaluation.throughput import machine_of
from pipelines.execution.slurm.resources import trial_resources
from pipelines.execution.speeds.benchmarks import (
    Hardware,
    StepBenchmark,
    TrainingSize,
    read_benchmarks,
    save_benchmark,
    size_of,
)
from pipelines.execution.speeds.throughput import Throughput, local_share
from pipelines.stages.attempt import Stopped, at_work
from pipelines.stages.context import RunContext
from pipelines.workspace.provenance import code_version
from pipelines.workspace.settings import Cluster, Local, SettingsError
from pipelines.workspace.store import Home
from var_scaling.disk import read_json, write_json
from var_scaling.experiment import Sweep, Trial

_SIZES_DONE = "sizes.json"  # progress of a job
ReportProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BenchmarkCase:
    """A distinct size of a sweep: all that decides the time of a step of one process."""

    trials: tuple[str, ...]  # the names of its trials
    trial: Trial  # one of them, with the batch of one process
    micro_batch: int  # images of one pass
    unfit: str | None = None  # why it is not measured, if an estimate says that it does not fit

    @property
    def size(self) -> TrainingSize:
        return size_of(self.trial, self.trial.batch_size, self.micro_batch)


def local_cases(sweep: Sweep, local: Local) -> list[BenchmarkCase]:
    """The sizes of `sweep` on this machine, the smallest first. Raises ValueError if the processes
    do not divide a batch.
    """
    cases = []
    for trial in sweep.trials:
        if trial.batch_size % local.processes:
            raise ValueError(
                f"[local] processes = {local.processes}: does not divide the batch of "
                f"{trial.batch_size} of {trial.name}"
            )
        cases.append(_case(trial, *local_share(trial, local)))
    return _distinct(cases)


def cluster_cases(sweep: Sweep, cluster: Cluster, throughput: Throughput) -> list[BenchmarkCase]:
    """The sizes of `sweep` with the numbers of GPUs and micro-batches that its jobs would have."""
    cases = []
    for trial in sweep.trials:
        try:
            resources = trial_resources(trial, cluster, throughput)
        except SettingsError as error:
            cases.append(BenchmarkCase((trial.name,), trial, trial.batch_size, str(error)))
            continue
        images = trial.batch_size // resources.processes
        cases.append(_case(trial, images, resources.micro_batch_size or images))
    return _distinct(cases)


def _case(trial: Trial, images: int, micro_batch: int) -> BenchmarkCase:
    # A checkpoint to start from belongs to the whole batch, and does not change the time of a step.
    one_process = trial.model_copy(update={"batch_size": images, "start": None, "keep_steps": ()})
    return BenchmarkCase((trial.name,), one_process, micro_batch)


def _distinct(cases: Iterable[BenchmarkCase]) -> list[BenchmarkCase]:
    """One case for each size, with the names of all its trials; the smallest models first."""
    by_size: dict[str, BenchmarkCase] = {}
    for one in cases:
        key = one.size.fingerprint()
        names = by_size[key].trials if key in by_size else ()
        by_size[key] = BenchmarkCase((*names, *one.trials), one.trial, one.micro_batch, one.unfit)
    return sorted(
        by_size.values(), key=lambda one: one.trial.family.block_parameters(one.trial.spec)
    )


def not_measured(
    home: Home, hardware: Hardware, cases: Sequence[BenchmarkCase]
) -> list[BenchmarkCase]:
    """Those of `cases` that have no measurement with numbers on `hardware`."""
    known = {
        one.size_fingerprint
        for one in read_benchmarks(home, hardware)
        if one.flops_per_second is not None
    }
    return [one for one in cases if one.unfit is None and one.size.fingerprint() not in known]


def measure(
    context: RunContext,
    cases: Sequence[BenchmarkCase],
    hardware: Hardware,
    seconds: float,
    peak_flops: float | None,
    report_progress: ReportProgress,
) -> Iterator[StepBenchmark]:
    """Measure and save each of `cases` in turn, about `seconds` each.

    Utilisation is relative to `peak_flops`; None: to the measured peak of matrix products. A size
    that does not fit into memory is saved with the reason instead of numbers.
    """
    from var_scaling.evaluation.bench import Bench, matmul_peak
    from var_scaling.evaluation.training_step import step_speed
    from var_scaling.process import prepare_process

    prepare_process(context.process.threads)
    device = context.device()
    bench, machine = Bench(device, seconds), machine_of(device)
    peaks = {}
    for done, case in enumerate(cases):
        trial = case.trial
        report_progress(f"step of {case.trials[0]}", done, len(cases))
        if trial.precision not in peaks:
            peaks[trial.precision] = matmul_peak(trial.precision, bench)
        matmul = peaks[trial.precision]
        peak = matmul.flops_per_second if peak_flops is None else peak_flops
        benchmark = StepBenchmark(
            size_fingerprint=case.size.fingerprint(),
            size=case.size,
            hardware=hardware,
            machine=machine,
            host=gethostname(),
            commit=code_version(),
            time=time.strftime("%FT%TZ", time.gmtime()),
            seconds=seconds,
            peak_flops=peak,
            matmul=matmul,
            speed=step_speed(
                trial,
                case.micro_batch,
                peak,
                matmul,
                bench,
                context.process.compile,
                context.process.recompute_activations,
            ),
        )
        # After each size, so that an interrupted command keeps what it has measured.
        save_benchmark(context.home, benchmark)
        report_progress(f"step of {case.trials[0]}", done + 1, len(cases))
        yield benchmark


# As a job -----------------------------------------------------------------------------------------


def payload_of(
    cases: Sequence[BenchmarkCase],
    hardware: Hardware,
    seconds: float,
    peak_flops: float,
    folder: Path,
) -> dict[str, Any]:
    """The work of a job: it imports `module` and calls its `run` with this payload."""
    return {
        "module": __name__,
        "folder": str(folder),
        "hardware": hardware.model_dump_json(),
        "seconds": seconds,
        "peak_flops": peak_flops,
        "cases": [
            [list(one.trials), one.trial.model_dump_json(), one.micro_batch] for one in cases
        ],
    }


def run(context: RunContext, payload: dict[str, Any]) -> str:
    """Measure the sizes of a job. Returns "done"; raises Stopped, Superseded, ValueError."""
    folder, hardware = Path(payload["folder"]), Hardware.model_validate_json(payload["hardware"])
    cases = [
        BenchmarkCase(tuple(names), Trial.model_validate_json(trial), micro_batch)
        for names, trial, micro_batch in payload["cases"]
    ]
    with at_work(folder, context.process, context.requested_signal) as attempt:
        attempt.begin({})
        # A job that was requeued measures the rest.
        before = sizes_done(folder)
        missing = [one for one in cases if one.size.fingerprint() not in before]
        steps = measure(
            context, missing, hardware, payload["seconds"], payload["peak_flops"],
            lambda what, done, total: print(f"{what}: {done} of {total}", flush=True),
        )  # fmt: skip
        for done, benchmark in enumerate(steps, 1):
            before.append(benchmark.size_fingerprint)
            write_json(folder / _SIZES_DONE, {"sizes": before})
            if attempt.stop(done) and done < len(missing):
                raise Stopped(f"stopped after {done} of {len(missing)} sizes")
        attempt.finish({"status": "done"})
    return "done"


def sizes_done(folder: Path) -> list[str]:
    """The fingerprints of the sizes that the job in `folder` has measured."""
    file = folder / _SIZES_DONE
    return list(read_json(file)["sizes"]) if file.exists() else []
