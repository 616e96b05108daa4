"""The command `edit`: in-paint, out-paint or super-resolve an image."""

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
    Seed,
    Smooth,
    Temperature,
    TopK,
    TopP,
    read_sampling,
)
from pipelines.cli.terminal import console as screen
from pipelines.stages.context import local_context
from pipelines.workspace.settings import Settings, load_settings
from pipelines.workspace.store import Home
from var_scaling.class_names import class_label

if TYPE_CHECKING:
    from pipelines.editing.edit import Outcome
    from pipelines.editing.request import EditOptions

app = typer.Typer()

ImageFile = Annotated[
    Path, typer.Argument(help="image file of any size", exists=True, dir_okay=False)
]
InPaint = Annotated[
    str | None,
    typer.Option(
        help="regenerate this box: left,top,right,bottom in pixels, such as 8,0,24,16, or in "
        "per cent, such as 25%,0%,75%,50%"
    ),
]
OutPaint = Annotated[
    str | None,
    typer.Option(help="keep this box and regenerate everything around it; same format"),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        help="image file, such as mask.png: regenerate where it is white, or transparent",
        exists=True,
        dir_okay=False,
    ),
]
SuperResolve = Annotated[bool, typer.Option("--super-resolve", help="add detail to a small image")]
ClassOfContent = Annotated[
    str | None,
    typer.Option(
        "--class",
        help="class of the new content, a number or a name, such as 3 or cat. "
        "Default: unconditional",
    ),
]
Count = Annotated[int, typer.Option(min=1, help="number of results, such as 8")]
EditName = Annotated[
    str | None,
    typer.Option(help="name of the edit, such as cat-mask. Default: that of the image file"),
]
Window = Annotated[
    str | None,
    typer.Option(
        help="square that the model sees: left,top,size in pixels, such as 0,0,256. "
        "Default: around the hole"
    ),
]
Feather = Annotated[
    int | None,
    typer.Option(help="width of the blended border in pixels, such as 4. Default: window / 32"),
]
Blank = Annotated[
    bool,
    typer.Option(
        "--blank",
        help="clear the hole before encoding; otherwise tokens at its border depend on its old "
        "content",
    ),
]
MaskBy = Annotated[
    Literal["light", "alpha"] | None,
    typer.Option(
        help="what marks the hole in the mask: white (light) or transparency (alpha). "
        "Default: alpha if the mask has any"
    ),
]
KeepScales = Annotated[
    int | None,
    typer.Option(
        help="number of coarse scales taken from the small image, such as 4. Default: by its size"
    ),
]


@app.command()
def edit(
    address: Model,
    image: ImageFile,
    in_paint: InPaint = None,
    out_paint: OutPaint = None,
    mask: Mask = None,
    super_resolve: SuperResolve = False,
    label: ClassOfContent = None,
    count: Count = 4,
    seed: Seed = 0,
    name: EditName = None,
    window: Window = None,
    feather: Feather = None,
    blank: Blank = False,
    mask_by: MaskBy = None,
    keep_scales: KeepScales = None,
    guidance: Guidance = None,
    top_k: TopK = None,
    top_p: TopP = None,
    temperature: Temperature = None,
    smooth: Smooth = False,
    precision: Precision = None,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Fill a hole in an image, extend it, or add detail to it.

    The new content has the class --class; without it, it is unconditional. Outside the hole each
    pixel of kept-*.png equals the input as displayed in 8-bit RGB, also if the file has 16 bits or
    CMYK. To paint beyond the edge of an image, put it on a larger canvas first. A larger --count
    adds results to the same edit.
    """
    sampling = read_sampling(guidance, top_k, top_p, temperature, smooth, precision)
    from pipelines.editing.request import EditOptions

    workspace, settings = Home(home), load_settings()
    options = EditOptions(
        image, in_paint, out_paint, mask, super_resolve, mask_by, window, keep_scales, feather,
        blank, label, count, seed, name, sampling,
    )  # fmt: skip
    outcome = _edit(workspace, settings, address, options)
    _warn_of_unseen(outcome, options)
    if as_json:
        manifest = json.loads((outcome.folder / "manifest.json").read_text())
        print(json.dumps({"folder": str(outcome.folder), **manifest}))
    else:
        _print_outcome(outcome, label is not None)
    if outcome.newly_made:
        from pipelines.tracking.sync import mirror_model

        mirror_model(workspace, settings, address, screen.warn)


def _edit(workspace: Home, settings: Settings, address: str, options: "EditOptions") -> "Outcome":
    from pipelines.editing.edit import edit_image

    with screen.progress_bar(f"editing {options.image.name}") as report_progress:
        context = local_context(workspace, settings, report_progress)
        return edit_image(context, address, options, report_progress)


def _warn_of_unseen(outcome: "Outcome", options: "EditOptions") -> None:
    """Warn if the model does not see the whole image or hole."""
    # No warning for a window given with --super-resolve: the user chose what it leaves out.
    if outcome.unseen_share <= 0 or (options.super_resolve and options.window):
        return
    left, top, size = outcome.edit.window
    what = "the image is outside and is not in the result"
    if not options.super_resolve:
        what = "the hole is outside and is not changed"
    screen.warn(
        f"the model sees {size} × {size} px from x {left}, y {top}: "
        f"{outcome.unseen_share:.0%} of {what}"
    )


def _print_outcome(outcome: "Outcome", conditional: bool) -> None:
    condition = "unconditional"
    if conditional:
        weights = outcome.edit.sampling.guidance
        weights = weights if isinstance(weights, tuple) else (weights,)
        label = class_label(outcome.edit.label, outcome.names)
        condition = f"class {label}, guidance {', '.join(f'{weight:g}' for weight in weights)}"
    note = "" if outcome.newly_made else "; it was complete already, nothing was redone"
    tokens = f"{outcome.kept} tokens kept, {outcome.drawn} drawn"
    results = f"{outcome.edit.count} result{'s' * (outcome.edit.count > 1)}"
    screen.print_line(f"{outcome.edit.name}: {results}, {condition}; {tokens}{note}")
    screen.print_line(str(outcome.folder / "sheet.png"))
