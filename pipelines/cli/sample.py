"""The verb that draws samples of a model: here, by several processes, in parts, on a cluster."""

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
    Precision,
    RawWeights,
    Set,
    Smooth,
    Temperature,
    TopK,
    TopP,
    read_sampling,
)
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.images import counting
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
            help="classes: 0,1,5-8, names, all, or none (unconditional); name:10 is the "
            "class named 10. Default: all of "
            "at most 16"
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="number of images of each class")] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    name: Annotated[str, typer.Option(help="name of the sample set")] = "default",
    guidance: Guidance = None,
    constant_guidance: Annotated[
        bool, typer.Option("--constant-guidance", help="VAR: the same guidance at all scales")
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
            help="rejection sampling: keep this share of the candidates, by a "
            "classifier's confidence, such as 0.5"
        ),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="file of a ResNet's weights, or `extractor`. Default: the one in var-scaling.toml"
        ),
    ] = None,
    class_map: Annotated[
        Path | None,
        typer.Option(
            help="JSON file: the classifier's output for each class, as a list or by "
            "number or name",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    strips: Annotated[
        int, typer.Option(min=0, help="draw the intermediate steps of this many images")
    ] = 0,
    npz: Annotated[
        Path | None,
        typer.Option(
            help="also write all images to this .npz file, for OpenAI's evaluator", dir_okay=False
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="images per forward pass; affects speed only")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="number of processes on this machine")] = 1,
    part: Annotated[
        str | None, typer.Option(help="draw only one part, such as 2/8: the second of eight")
    ] = None,
    on: Annotated[
        str, typer.Option("--on", help="where to run: local, or a cluster of var-scaling.toml")
    ] = ("local"),
    jobs: Annotated[int, typer.Option(min=1, help="number of jobs on the cluster")] = 1,
    retry: Annotated[
        bool,
        typer.Option("--retry", help="on a cluster: also run failed and cancelled parts again"),
    ] = False,
    detach: Detach = False,
    dirty: Dirty = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="take over the lock of another driver")
    ] = False,
    home: HomeFolder = RUNS,
) -> None:
    """Draw images: a folder of PNGs with a grid and a manifest. Run it again to go on.

    An image depends on model, settings, seed, class and index alone: a larger --count goes on with
    the same images (with --reject: the same candidates, of which others may be kept), and any
    number of processes, parts or jobs makes the same files.
    """
    from pipelines.sampling.request import SampleOptions, plan_set, read_part
    from pipelines.sampling.store import STRIPS
    from pipelines.stages.context import RunContext, StopFile, local_process
    from var_scaling.experiment.sample_set import CHUNK

    if constant_guidance and guidance and "," in guidance:
        raise ValueError(f"--guidance {guidance} says it for each scale: no --constant-guidance")
    sampling = read_sampling(
        guidance, top_k, top_p, temperature, smooth, precision, not constant_guidance,
        settings_of_family,
    )  # fmt: skip
    this_part = read_part(part) if part else None
    _refuse_mixture(part, processes, on, jobs, detach or retry or take_over)
    if npz is not None and detach:
        raise ValueError("--npz is written at the end, for which --detach does not wait")
    at, settings = Home(home), load_settings()
    context = RunContext(at, settings, StopFile(at.root / "stop"), local_process(settings.local))
    asked = SampleOptions(
        classes, count, seed, name, sampling, reject, classifier, class_map, raw_weights
    )
    plan = plan_set(context, address, asked)
    from pipelines.sampling.draw import How
    from pipelines.sampling.jobs import others_at_it
    from pipelines.sampling.run import Launch, here, on_cluster, other_split

    how, done, strips_file = How(batch, strips, this_part), plan.folder / DONE, plan.folder / STRIPS
    before = _written(done), _written(strips_file)
    if processes > plan.wanted.chunks:
        screen.warn(
            f"chunks of {CHUNK} images are shared out, and this set has {plan.wanted.chunks}: so "
            f"many processes draw it, not {processes}"
        )
    with counting(screen.console) as report_progress:
        if on == "local":
            split = other_split(plan.folder, this_part) if this_part else ""
            for warning in filter(None, (others_at_it(plan, [], on), split)):
                screen.warn(warning)
            outcome = here(context, plan, how, processes, report_progress)
        else:
            launched = Launch(on, jobs, retry, detach, dirty, take_over)
            outcome = on_cluster(context, plan, how, launched, report_progress)
    _leave_unless_done(outcome, detach, on != "local" and not retry)
    if outcome.missing:
        screen.say(outcome.missing)
        if npz is not None or strips:
            screen.warn("--npz and --strips: nothing is written before then. Ask again at the end")
        return
    if strips or _written(done) != before[0]:
        from pipelines.tracking.sync import mirror_model

        mirror_model(at, settings, address, screen.warn)
    if strips and _written(strips_file) == before[1]:
        screen.warn(f"no job drew strips; the same words without --on {on} draw them here")
    if npz is not None:  # the last: where it cannot be written, all else is done
        from pipelines.sampling.export import export_npz

        export_npz(plan.folder, npz)
        screen.say(str(npz))
    images = plan.wanted.images
    screen.say(f"{images:,} image{'s' * (images > 1)} in {plan.folder / 'images'}")
    screen.say(str(plan.folder / "grid.png"))
    if strips and strips_file.exists():
        screen.say(str(strips_file))


def _leave_unless_done(outcome: "Outcome", detach: bool, may_retry: bool) -> None:
    """Say what stopped or failed and how to go on, and leave; return if nothing did."""
    again = "var-scaling " + shlex.join(sys.argv[1:])
    for unit, why in outcome.failures.items():
        screen.say_error(f"failed {unit}: {why}")
    if outcome.stopped is not None:
        screen.say(f"{outcome.stopped}. To go on: {again}")
        raise typer.Exit(0 if detach else 130)
    if outcome.failures:
        again += " --retry" if may_retry else ""
        screen.say_error(f"The rest is kept. Once mended, go on with: {again}")
        raise typer.Exit(1)


def _written(path: Path) -> int:
    """When it was; 0: it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _refuse_mixture(part: str | None, processes: int, on: str, jobs: int, theirs: bool) -> None:
    """Raise ValueError for options that do not go together."""
    if part and processes > 1:
        raise ValueError("--part is one process's share: start as many as there are parts")
    if on != "local" and (part or processes > 1):
        raise ValueError("--on CLUSTER --jobs N makes parts of its own; no --part, no --processes")
    if on == "local" and (jobs > 1 or theirs):
        raise ValueError("--jobs, --retry, --detach and --take-over are about --on CLUSTER")
