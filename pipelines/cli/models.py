"""The commands for one model: import, export, evaluate."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import (
    RUNS,
    AsJson,
    Enlarge,
    HomeFolder,
    RawWeights,
    ValidationShare,
)
from pipelines.cli.terminal import console as screen
from pipelines.stages.context import local_context
from pipelines.workspace.address import read_generator
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Home
from var_scaling.class_names import CLASSES
from var_scaling.config import ImportedTokenizer

app = typer.Typer()

Model = Annotated[str, typer.Argument(help="SWEEP/TRIAL or imported/NAME")]
Address = Annotated[str, typer.Argument(help="SWEEP/TRIAL, imported/NAME or tokenizers/NAME")]


@app.command("import")
def import_weights(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="released checkpoints: VQVAE.pth, or VQVAE.pth VAR.pth", show_default=False
        ),
    ],
    name: Annotated[str, typer.Option("--as", help="name of the imported model, such as d16")],
    sides: Annotated[
        str | None,
        typer.Option(help="sides of the scales in tokens if no file contains them: 1,2,3,..."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="file with the class names in class order: a JSON list, or one name a line. "
            "Default: no names",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    home: HomeFolder = RUNS,
) -> None:
    """Import released weights: a VQVAE, or a VQVAE and its VAR.

    No code in a file is executed.
    """
    from pipelines.checkpoints.convert import import_released

    result = import_released(Home(home), files, name, _numbers(sides), screen.print_line, classes)
    t = result.tokenizer
    note = " (already imported from the same file)" if result.reused else ""
    shape = f"{t.codebook_size:,} codes of {t.code_channels} channels, ch {t.channels}"
    pyramid = ", ".join(map(str, t.pyramid.patch_nums))
    screen.print_line(f"tokenizer {t.name}{note}: {shape}, {t.side} px, sides {pyramid}")
    fields = t.model_dump(exclude_defaults=True, exclude={"pyramid"})
    if t.pyramid != ImportedTokenizer.model_fields["pyramid"].default:
        fields["pyramid"] = t.pyramid
    arguments = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    screen.print_line(f"in a sweep: ImportedTokenizer({arguments})")
    if result.model:
        m = result.model.model
        settings = m.model_dump(exclude={"family", "depth"}, exclude_defaults=True)
        other = "".join(f", {field}={value!r}" for field, value in settings.items())
        screen.print_line(
            f"imported/{name}: {result.model.family.name}, depth {m.depth}, width {m.width}, "
            f"{m.heads} heads{other}, {result.model.classes:,} classes"
        )
        if not (Home(home).imported(name) / CLASSES).exists():
            screen.warn(
                "weights do not contain class names, so the classes are numbered. To name them, "
                "run the same command with --classes FILE"
            )
        screen.print_line(f"next: var-scaling evaluate imported/{name} --data DATA")


@app.command()
def export(
    address: Address,
    out: Annotated[Path, typer.Argument(help="path of the .pth file to write, such as d16.pth")],
    home: HomeFolder = RUNS,
) -> None:
    """Write weights as a .pth file for the released code.

    That code loads it with strict=True.
    """
    from pipelines.checkpoints.convert import class_names_path, export_released

    code = export_released(Home(home), address, out)
    screen.print_line(f"{out}\nload it with: {code}")
    if class_names_path(out).exists():
        screen.print_line(f"{class_names_path(out)}: its class names, for import --classes")


@app.command()
def evaluate(
    address: Model,
    data: Annotated[
        str | None,
        typer.Option(
            help="images of var-scaling.toml, such as imagenet. Default: the model's own held-out "
            "images"
        ),
    ] = None,
    enlarge: Enlarge = None,
    validation_share: ValidationShare = None,
    raw_weights: RawWeights = False,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Measure the held-out loss and error of one model.

    Both conditional on the class and unconditional.
    """
    from pipelines.evaluation.likelihood import Images, evaluate_model

    workspace, settings = Home(home), load_settings()
    with screen.progress_bar(f"evaluating {address}") as report_progress:
        images = Images(data, enlarge, validation_share)
        # Same settings as in training, so that the numbers agree.
        context = local_context(workspace, settings, report_progress)
        scores = evaluate_model(context, address, images, report_progress, raw_weights)
    if "class_order" in scores:
        screen.warn(scores["class_order"])
    if as_json:
        print(json.dumps(scores))
    else:
        record = read_generator(workspace.root / address)
        validation = record.family.validation(record.spec)
        screen.console.print(screen.evaluation_table(address, scores, validation))


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"--sides {text}: must be whole numbers separated by commas, such as 1,2,3"
        ) from error
