"""The command `sample`: draw images, in one or several processes, in parts, or on a cluster."""

import shlex
import sys
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
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Home
from var_scaling.disk import DONE

if TYPE_CHECKING:
    from pipelines.sampling.run import Outcome

app = typer.Typer()


@app.command()
def sample(
    address: Model,
    classes: Annotated[
        str | None,
        typer.Option(
            help="classes, comma separated: 0,1,5-8, names such as cat, all, or none "
            "(unconditional); name:10 is the class named 10. Default: all if there are at most 16"
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="number of images of each class, such as 50")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="random seed, such as 1")] = 0,
    name: Annotated[str, typer.Option(help="name of the sample set, such as guided")] = "default",
    guidance: Guidance = None,
    constant_guidance: Annotated[
        bool,
        typer.Option(
            "--constant-guidance", help="VAR: the same guidance at all scales, instead of rising"
        ),
    ] = False,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = None,
    smooth: Smooth = False,
    precision: Precision = None,
    settings_of_family: Set = None,
    raw_weights: RawWeights = False,
    reject: Annotated[
        float | None,
        typer.Option(
            help="rejection sampling: share of the candidates of each class to keep, above 0 to 1, "
            "such as 0.5; a classifier ranks them. Default: keep all"
        ),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="classifier of --reject: weights of a ResNet, such as resnet101.pth, or "
            "`extractor`. Default: that of var-scaling.toml"
        ),
    ] = None,
    class_map: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the classifier's output of each class: a list in class order, or "
            "an object by class number or name. Default: the same order",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    strips: Annotated[
        int,
        typer.Option(min=0, help="number of images to show with intermediate steps, such as 4"),
    ] = 0,
    npz: Annotated[
        Path | None,
        typer.Option(
            help="also write all images to this file, such as samples.npz, for OpenAI's evaluator",
            dir_okay=False,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="images per forward pass, such as 64; affects only the speed. Default: "
            "micro_batch_size of var-scaling.toml, else 16 on a CPU, 64 on a GPU",
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="number of processes on this machine, such as 4")
    ] = 1,
    part: Annotated[
        str | None,
        typer.Option(help="draw only one part, such as 2/8: the second of eight. Default: all"),
    ] = None,
    on: On = "local",
    jobs: Annotated[int, typer.Option(min=1, help="number of jobs on the cluster, such as 8")] = 1,
    retry: Annotated[
        bool,
        typer.Option("--retry", help="on a cluster: run failed and cancelled parts again too"),
    ] = False,
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
    from pipelines.sampling.store import STRIPS
    from pipelines.stages.context import local_context
    from var_scaling.experiment.sample_set import CHUNK

    if constant_guidance and guidance and "," in guidance:
        raise ValueError(
            f"--guidance {guidance} has a value for each scale: leave out --constant-guidance"
        )
    sampling = read_sampling(
        guidance, top_k, top_p, temperature, smooth, precision, not constant_guidance,
        settings_of_family,
    )  # fmt: skip
    this_part = read_part(part) if part else None
    _refuse_combination(part, processes, on, jobs, detach or retry or take_over)
    if npz is not None and detach:
        raise ValueError(
            "--npz is written when the set is done, and --detach does not wait for that: leave "
            "out --npz, and run the command again when the jobs have ended"
        )
    workspace, settings = Home(home), load_settings()
    context = local_context(workspace, settings)
    sample_options = SampleOptions(
        classes, count, seed, name, sampling, reject, classifier, class_map, raw_weights,
        None if on == "local" else settings.cluster(on).device,
    )  # fmt: skip
    plan = plan_set(context, address, sample_options)
    from pipelines.sampling.draw import DrawOptions
    from pipelines.sampling.jobs import other_job
    from pipelines.sampling.run import (
        ClusterOptions,
        conflicting_part,
        sample_locally,
        sample_on_cluster,
    )

    draw_options = DrawOptions(batch, strips, this_part)
    done, strips_file = plan.folder / DONE, plan.folder / STRIPS
    before = _modified_at(done), _modified_at(strips_file)
    if processes > plan.config.chunks:
        screen.warn(
            f"processes share the set in chunks of {CHUNK} images, and it has "
            f"{plan.config.chunks}: only {plan.config.chunks} of {processes} processes are used"
        )
    with image_progress(screen.console) as report_progress:
        if on == "local":
            conflict = conflicting_part(plan.folder, this_part) if this_part else ""
            for warning in filter(None, (other_job(plan, [], on), conflict)):
                screen.warn(warning)
            outcome = sample_locally(context, plan, draw_options, processes, report_progress)
        else:
            cluster_options = ClusterOptions(on, jobs, retry, detach, dirty, take_over)
            outcome = sample_on_cluster(
                context, plan, draw_options, cluster_options, report_progress
            )
    _exit_unless_done(outcome, detach, on != "local" and not retry)
    if outcome.missing:
        screen.print_line(outcome.missing)
        if npz is not None or strips:
            screen.warn(
                "--npz and --strips are written only when the set is done: run the command again "
                "then"
            )
        return
    if strips or _modified_at(done) != before[0]:
        from pipelines.tracking.sync import mirror_model

        mirror_model(workspace, settings, address, screen.warn)
    if strips and _modified_at(strips_file) == before[1]:
        screen.warn(
            f"no job drew strips; the same command without --on {on} draws them on this machine"
        )
    if npz is not None:  # last, so that everything else is done if it cannot be written
        from pipelines.sampling.export import export_npz

        export_npz(plan.folder, npz)
        screen.print_line(str(npz))
    images = plan.config.images
    screen.print_line(f"{images:,} image{'s' * (images > 1)} in {plan.folder / 'images'}")
    screen.print_line(str(plan.folder / "grid.png"))
    if strips and strips_file.exists():
        screen.print_line(str(strips_file))


def _exit_unless_done(outcome: "Outcome", detach: bool, may_retry: bool) -> None:
    """If sampling stopped or failed, print why and how to resume, and raise typer.Exit."""
    command = "var-scaling " + shlex.join(sys.argv[1:])
    for task, error in outcome.failures.items():
        screen.print_error(f"failed {task}: {error}")
    if outcome.stopped is not None:
        screen.print_line(f"{outcome.stopped}. To resume: {command}")
        raise typer.Exit(0 if detach else 130)
    if outcome.failures:
        command += " --retry" if may_retry else ""
        screen.print_error(f"The finished work is kept. Fix the error, then resume with: {command}")
        raise typer.Exit(1)


def _modified_at(path: Path) -> int:
    """The modification time in nanoseconds; 0 if the file does not exist."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _refuse_combination(
    part: str | None, processes: int, on: str, jobs: int, cluster_options: bool
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
    if on == "local" and (jobs > 1 or cluster_options):
        raise ValueError("--jobs, --retry, --detach and --take-over need --on CLUSTER")
