"""The verbs about one model: bring it in, take it out, score it."""

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
        str | None, typer.Option(help="sides of the scales if no file contains them: 1,2,3,...")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="file with the class names in order: a JSON list, or one name a line",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    home: HomeFolder = RUNS,
) -> None:
    """Read released weights: a VQVAE, or one and the VAR over it. Nothing in a file is ever run."""
    from pipelines.checkpoints.convert import import_released

    found = import_released(Home(home), files, name, _numbers(sides), screen.say, classes)
    t = found.tokenizer
    again = " (here already, from the same file)" if found.reused else ""
    shape = f"{t.codebook_size:,} codes of {t.code_channels} channels, ch {t.channels}"
    pyramid = ", ".join(map(str, t.pyramid.patch_nums))
    screen.say(f"tokenizer {t.name}{again}: {shape}, {t.side} px, sides {pyramid}")
    fields = t.model_dump(exclude_defaults=True, exclude={"pyramid"})
    if t.pyramid != ImportedTokenizer.model_fields["pyramid"].default:
        fields["pyramid"] = t.pyramid
    said = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    screen.say(f"in a sweep: ImportedTokenizer({said})")
    if found.model:
        m = found.model.model
        settings = m.model_dump(exclude={"family", "depth"}, exclude_defaults=True)
        other = "".join(f", {field}={value!r}" for field, value in settings.items())
        screen.say(
            f"imported/{name}: {found.model.family.name}, depth {m.depth}, width {m.width}, "
            f"{m.heads} heads{other}, {found.model.classes:,} classes"
        )
        if not (Home(home).imported(name) / CLASSES).exists():
            screen.warn(
                "no file of weights has the names or the order of the classes: they go by numbers "
                "until the same command is given --classes FILE"
            )
        screen.say(f"next: var-scaling evaluate imported/{name} --data DATA")


@app.command()
def export(
    address: Address,
    out: Annotated[Path, typer.Argument(help="path of the .pth file to write")],
    home: HomeFolder = RUNS,
) -> None:
    """Write weights as a .pth that the released code loads strictly."""
    from pipelines.checkpoints.convert import export_released, names_beside

    how = export_released(Home(home), address, out)
    screen.say(f"{out}\nload it with: {how}")
    if names_beside(out).exists():
        screen.say(f"{names_beside(out)}: the names of its classes, for import --classes")


@app.command()
def evaluate(
    address: Model,
    data: Annotated[
        str | None,
        typer.Option(
            help="name of the images in var-scaling.toml. Default: the model's own held-out images"
        ),
    ] = None,
    enlarge: Enlarge = None,
    validation_share: ValidationShare = None,
    raw_weights: RawWeights = False,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Held-out loss and error of one model, told each image's class and told none."""
    from pipelines.evaluation.likelihood import Images, evaluate_model
    from pipelines.stages.context import RunContext, StopFile, local_process

    at, settings = Home(home), load_settings()
    with screen.steps(f"evaluating {address}") as report_progress:
        images = Images(data, enlarge, validation_share)
        process = local_process(settings.local)  # as in training: then the numbers agree
        context = RunContext(at, settings, StopFile(at.root / "stop"), process, report_progress)
        scores = evaluate_model(context, address, images, report_progress, raw_weights)
    if "class_order" in scores:
        screen.warn(scores["class_order"])
    if as_json:
        print(json.dumps(scores))
    else:
        record = read_generator(at.root / address)
        what = record.family.validation(record.spec)
        screen.console.print(screen.evaluation_table(address, scores, what))


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--sides {text}: whole numbers with commas, 1,2,3") from error
