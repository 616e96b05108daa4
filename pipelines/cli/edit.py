"""The verb that edits a picture: fill a hole in it, paint around it, give it detail."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.cli.models import Model
from pipelines.cli.options import (
    RUNS,
    AsJson,
    Guidance,
    HomeFolder,
    Precision,
    Smooth,
    Temperature,
    TopK,
    TopP,
    read_sampling,
)
from pipelines.cli.terminal import console as screen
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Home
from var_scaling.class_names import called

if TYPE_CHECKING:
    from pipelines.editing.edit import Outcome

app = typer.Typer()


@app.command()
def edit(
    address: Model,
    image: Annotated[
        Path, typer.Argument(help="image file of any size", exists=True, dir_okay=False)
    ],
    in_paint: Annotated[
        str | None,
        typer.Option(
            help="regenerate this box: left,top,right,bottom in pixels, or in per cent: "
            "25%,0%,75%,50%"
        ),
    ] = None,
    out_paint: Annotated[
        str | None,
        typer.Option(help="keep this box and regenerate everything around it; same format"),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="image file: regenerate where it is white, or transparent",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    super_resolve: Annotated[
        bool, typer.Option("--super-resolve", help="add detail to a small image")
    ] = False,
    label: Annotated[
        str | None,
        typer.Option(
            "--class", help="class of the new content, number or name. Default: unconditional"
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="number of results")] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    name: Annotated[
        str | None, typer.Option(help="name of the edit. Default: that of the image file")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="square that the model sees: left,top,size in pixels. Default: around the hole"
        ),
    ] = None,
    feather: Annotated[
        int | None, typer.Option(help="width of the blended border in pixels. Default: window / 32")
    ] = None,
    blank: Annotated[
        bool,
        typer.Option(
            "--blank",
            help="clear the hole before encoding; otherwise tokens at its border depend "
            "on its old content",
        ),
    ] = False,
    mask_by: Annotated[
        Literal["light", "alpha"] | None,
        typer.Option(
            help="what the mask means: white (light) or transparent (alpha). Default: "
            "alpha if it has any"
        ),
    ] = None,
    keep_scales: Annotated[
        int | None,
        typer.Option(
            help="number of coarse scales taken from the small image. Default: by its size"
        ),
    ] = None,
    guidance: Guidance = None,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = None,
    smooth: Smooth = False,
    precision: Precision = None,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Fill a hole in a picture, paint around a part of it, or give detail to a small one.

    Without --class it goes by the picture alone, with it the new is to show that class. Outside
    the hole each pixel of kept-*.png is the picture's own, in 8-bit RGB as it is displayed, also
    where the file has 16 bits or CMYK. To paint beyond a picture's edge, set it on a larger canvas
    first. A larger --count goes on with the same results.
    """
    sampling = read_sampling(guidance, top_k, top_p, temperature, smooth, precision)
    from pipelines.editing.edit import edit_picture
    from pipelines.editing.request import EditOptions
    from pipelines.stages.context import RunContext, StopFile, local_process

    at, settings = Home(home), load_settings()
    asked = EditOptions(
        image, in_paint, out_paint, mask, super_resolve, mask_by, window, keep_scales, feather,
        blank, label, count, seed, name, sampling,
    )  # fmt: skip
    with screen.steps(f"editing {image.name}") as report_progress:
        process = local_process(settings.local)
        context = RunContext(at, settings, StopFile(at.root / "stop"), process, report_progress)
        made = edit_picture(context, address, asked, report_progress)
    # A window that was asked for leaves out of a small picture what it was to leave out.
    if made.missed > 0 and not (super_resolve and window):
        left, top, size = made.edit.window
        what = "the picture lies outside, and is not in the result"
        if not super_resolve:
            what = "what was to be painted lies outside, and is as it was"
        screen.warn(
            f"the model sees {size} × {size} px from x {left}, y {top}: {made.missed:.0%} of {what}"
        )
    if as_json:
        manifest = json.loads((made.folder / "manifest.json").read_text())
        print(json.dumps({"folder": str(made.folder), **manifest}))
    else:
        _say(made, label is not None)
    if made.anew:
        from pipelines.tracking.sync import mirror_model

        mirror_model(at, settings, address, screen.warn)


def _say(made: "Outcome", by_class: bool) -> None:
    told = "by the picture alone"
    if by_class:
        weights = made.edit.sampling.guidance
        listed = weights if isinstance(weights, tuple) else (weights,)
        which = called(made.edit.label, made.names)
        told = f"class {which}, guidance {', '.join(f'{weight:g}' for weight in listed)}"
    again = "" if made.anew else "; made before, nothing was redone"
    tokens = f"{made.kept} tokens kept, {made.drawn} drawn"
    results = f"{made.edit.count} result{'s' * (made.edit.count > 1)}"
    screen.say(f"{made.edit.name}: {results}, {told}; {tokens}{again}")
    screen.say(str(made.folder / "sheet.png"))
