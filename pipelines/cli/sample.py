"""The command `sample`: draw images, in one or several processes, in parts, or on a cluster."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.models import Model
from pipelines.cli.options import (
    RUNS,
    Detach,
    Dirty,
    Guidance,
    HomeFolder,
    On,
    Precision,
    RawWeights,
    Seed,
    Set,
    Smooth,
    TakeOver,
    Temperature,
    TopK,
    TopP,
    read_sampling,
)
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.images import image_progress
from pipelines.stages.context import RunContext, local_context
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Home
from var_scaling.disk import DONE

if TYPE_CHECKING:
    from pipelines.sampling.draw import DrawOptions
    from pipelines.sampling.request import Plan
    from pipelines.sampling.run import ClusterOptions, Outcome

app = typer.Typer()

Classes = Annotated[
    str | None,
    typer.Option(
        help="classes, comma separated: 0,1,5-8, names such as cat, all, or none "
        "(unconditional); name:10 is the class named 10. Default: all if there are at most 16"
    ),
]
Count = Annotated[int, typer.Option(help="number of images of each class, such as 50")]
SetName = Annotated[str, typer.Option(help="name of the sample set, such as guided")]
ConstantGuidance = Annotated[
    bool,
    typer.Option(
        "--constant-guidance", help="VAR: the same guidance at all scales, instead of rising"
    ),
]
Reject = Annotated[
    float | None,
    typer.Option(
        help="rejection sampling: share of the candidates of each class to keep, above 0 to 1, "
        "such as 0.5; a classifier ranks them. Default: keep all"
    ),
]
Classifier = Annotated[
    str | None,
    typer.Option(
        help="classifier of --reject: weights of a ResNet, such as resnet101.pth, or "
        "`extractor`. Default: that of var-scaling.toml"
    ),
]
ClassMap = Annotated[
    Path | None,
    typer.Option(
        help="JSON file with the classifier's output of each class: a list in class order, or "
        "an object by class number or name. Default: the same order",
        exists=True,
        dir_okay=False,
    ),
]
Strips = Annotated[
    int,
    typer.Option(min=0, help="number of images to show with intermediate steps, such as 4"),
]
Npz = Annotated[
    Path | None,
    typer.Option(
        help="also write all images to this file, such as samples.npz, for OpenAI's evaluator",
        dir_okay=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="images per forward pass, such as 64; affects only the speed. Default: "
        "micro_batch_size of var-scaling.toml, else 16 on a CPU, 64 on a GPU",
    ),
]
Processes = Annotated[
    int, typer.Option(min=1, help="number of processes on this machine, such as 4")
]
Part = Annotated[
    str | None,
    typer.Option(help="draw only one part, such as 2/8: the second of eight. Default: all"),
]
Jobs = Annotated[int, typer.Option(min=1, help="number of jobs on the cluster, such as 8")]
Retry = Annotated[
    bool,
    typer.Option("--retry", help="on a cluster: run failed and cancelled parts again too"),
]


@app.command()
def sample(
    address: Model,
    classes: Classes = None,
    count: Count = 8,
    seed: Seed = 0,
    name: SetName = "default",
    guidance: Guidance = None,
    constant_guidance: ConstantGuidance = False,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = None,
    smooth: Smooth = False,
    precision: Precision = None,
    settings_of_family: Set = None,
    raw_weights: RawWeights = False,
    reject: Reject = None,
    classifier: Classifier = None,
    class_map: ClassMap = None,
    strips: Strips = 0,
    npz: Npz = None,
    batch: BatchSize = None,
    processes: Processes = 1,
    part: Part = None,
    on: On = "local",
    jobs: Jobs = 1,
    retry: Retry = False,
    detach: Detach = False,
    dirty: Dirty = False,
    take_over: TakeOver = False,
    home: HomeFolder = RUNS,
) -> None:
    """Draw --count images of each class.

    Writes PNG files, a grid and a manifest. After an interruption, run the same command again: it
    resumes.

    An image depends only on the model, the sampling settings, the seed, the class and its index. So
    a larger --count adds images of each class to the same set (with --reject: it adds candidates,
    and may keep others), and any number of processes, parts or jobs makes the same files.
    """
    from pipelines.sampling.request import SampleOptions, plan_set, read_part

    sampling = read_sampling(
        guidance, top_k, top_p, temperature, smooth, precision, not constant_guidance,
        settings_of_family,
    )  # fmt: skip
    this_part = read_part(part) if part else None
    _refuse_combination(part, processes, on, jobs, npz, detach, retry or take_over)
    context = local_context(Home(home), load_settings())
    device = None if on == "local" else context.settings.cluster(on).device
    sample_options = SampleOptions(
        classes, count, seed, name, sampling, reject, classifier, class_map, raw_weights, device
    )
    plan = plan_set(context, address, sample_options)
    from pipelines.sampling.draw import DrawOptions
    from pipelines.sampling.run import ClusterOptions

    draw_options = DrawOptions(batch, strips, this_part)
    cluster = None if on == "local" else ClusterOptions(on, jobs, retry, detach, dirty, take_over)
    _sample(context, plan, draw_options, processes, cluster, npz)


def _sample(
    context: RunContext,
    plan: "Plan",
    options: "DrawOptions",
    processes: int,
    cluster: "ClusterOptions | None",
    npz: Path | None,
) -> None:
    """Draw the set, then mirror, export and print what is new. Raises typer.Exit."""
    from pipelines.sampling.store import STRIPS

    done, strips = plan.folder / DONE, plan.folder / STRIPS
    done_before, strips_before = _modified_at(done), _modified_at(strips)
    outcome = _draw(context, plan, options, processes, cluster)
    _exit_unless_done(outcome, cluster)
    if outcome.missing:
        _print_missing(outcome.missing, npz is not None or options.strips > 0)
        return
    if options.strips or _modified_at(done) != done_before:
        from pipelines.tracking.sync import mirror_model

        mirror_model(context.home, context.settings, plan.address, screen.warn)
    if cluster is not None and options.strips and _modified_at(strips) == strips_before:
        screen.warn(
            f"no job drew strips; the same command without --on {cluster.cluster} draws them on "
            "this machine"
        )
    if npz is not None:  # last, so that everything else is done if it cannot be written
        from pipelines.sampling.export import export_npz

        export_npz(plan.folder, npz)
        screen.print_line(str(npz))
    _print_files(plan, [strips] if options.strips and strips.exists() else [])


def _draw(
    context: RunContext,
    plan: "Plan",
    options: "DrawOptions",
    processes: int,
    cluster: "ClusterOptions | None",
) -> "Outcome":
    """Draw on this machine, or on `cluster`."""
    from pipelines.sampling.jobs import other_job
    from pipelines.sampling.run import conflicting_part, sample_locally, sample_on_cluster
    from var_scaling.experiment.sample_set import CHUNK

    chunks = plan.config.chunks
    if processes > chunks:
        screen.warn(
            f"processes share the set in chunks of {CHUNK} images, and it has {chunks}: only "
            f"{chunks} of {processes} processes are used"
        )
    with image_progress(screen.console) as report_progress:
        if cluster is not None:
            return sample_on_cluster(context, plan, options, cluster, report_progress)
        conflict = conflicting_part(plan.folder, options.part) if options.part else ""
        for warning in filter(None, (other_job(plan, [], "local"), conflict)):
            screen.warn(warning)
        return sample_locally(context, plan, options, processes, report_progress)


def _exit_unless_done(outcome: "Outcome", cluster: "ClusterOptions | None") -> None:
    """If sampling stopped or failed, print why and how to resume, and raise typer.Exit."""
    command = "var-scaling " + shlex.join(sys.argv[1:])
    for task, error in outcome.failures.items():
        screen.print_error(f"failed {task}: {error}")
    if outcome.stopped is not None:
        screen.print_line(f"{outcome.stopped}. To resume: {command}")
        raise typer.Exit(0 if cluster is not None and cluster.detach else 130)
    if outcome.failures:
        command += " --retry" if cluster is not None and not cluster.retry else ""
        screen.print_error(f"The finished work is kept. Fix the error, then resume with: {command}")
        raise typer.Exit(1)


def _print_missing(missing: str, extras_requested: bool) -> None:
    """Print that parts of the set are missing, and with --npz or --strips what that means."""
    screen.print_line(missing)
    if extras_requested:
        screen.warn(
            "--npz and --strips are written only when the set is done: run the command again then"
        )


def _print_files(plan: "Plan", others: Sequence[Path]) -> None:
    images = plan.config.images
    screen.print_line(f"{images:,} image{'s' * (images > 1)} in {plan.folder / 'images'}")
    for path in (plan.folder / "grid.png", *others):
        screen.print_line(str(path))


def _modified_at(path: Path) -> int:
    """The modification time in nanoseconds; 0 if the file does not exist."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _refuse_combination(
    part: str | None,
    processes: int,
    on: str,
    jobs: int,
    npz: Path | None,
    detach: bool,
    other_cluster_options: bool,
) -> None:
    """Raise ValueError for options that exclude each other."""
    if part and processes > 1:
        raise ValueError(
            "--part with --processes: a part is drawn by one process. Start one command for each "
            "part"
        )
    if on != "local" and (part or processes > 1):
        raise ValueError(
            "--part and --processes are for this machine: with --on CLUSTER give --jobs N"
        )
    if on == "local" and (jobs > 1 or detach or other_cluster_options):
        raise ValueError("--jobs, --retry, --detach and --take-over need --on CLUSTER")
    if npz is not None and detach:
        raise ValueError(
            "--npz is written when the set is done, and --detach does not wait for that: leave "
            "out --npz, and run the command again when the jobs have ended"
        )
