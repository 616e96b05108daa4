"""The verb that says how good images are: FID and related scores."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipelines.cli.options import RUNS, AsJson, Enlarge, HomeFolder, ValidationShare
from pipelines.cli.terminal import console as screen
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Home
from var_scaling.experiment.scoring import ExtractorName

if TYPE_CHECKING:
    from pipelines.evaluation.scores import Fidelity

app = typer.Typer()

_CALLED = {
    "fid": "FID",
    "inception_score": "inception score",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
}


@app.command()
def fidelity(
    address: Annotated[
        str,
        typer.Argument(help="SWEEP/TRIAL, imported/NAME, tokenizers/NAME or a folder of images"),
    ],
    name: Annotated[
        str | None,
        typer.Option("--set", help="name of the sample set. Default: default", show_default=False),
    ] = None,
    extractor: Annotated[
        ExtractorName | None,
        typer.Option(
            help="feature network. Default: inception if var-scaling.toml names its "
            "weights, else seeded"
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="reference images: NAME-train or NAME-validation. Default: the model's "
            "training images"
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="reference statistics of another program: .npz with mu and sigma",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="maximum number of reference images, evenly spread. Default: 50,000",
            show_default=False,
        ),
    ] = None,
    enlarge: Enlarge = None,
    validation_share: ValidationShare = None,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """FID, inception score, KID, precision and recall of samples; FID of reconstructions.

    Only Inception's numbers bear these names. Its weights are a file of yours, named in
    var-scaling.toml; without it a small seeded network looks, whose numbers compare with their
    like alone. What is found stands beside the images, and in the results of the next fit if the
    model has been evaluated.
    """
    from pipelines.evaluation.fid import FidelityOptions, measure_fidelity
    from pipelines.evaluation.reference_stats import Cut
    from pipelines.evaluation.scores import has_row
    from pipelines.stages.context import RunContext, StopFile, local_process

    at, settings = Home(home), load_settings()
    asked = FidelityOptions(
        name, extractor, against, reference, images, Cut(enlarge, validation_share)
    )
    if extractor is None and settings.weights.inception is None:
        screen.warn(
            "no [weights] inception in var-scaling.toml: the small seeded network looks. What it "
            "finds is no FID and compares only with its like"
        )
    with screen.steps(f"fidelity of {address}") as report_progress:
        # Nothing else runs beside: all processors may look.
        process = replace(local_process(settings.local), threads=settings.local.cpus)
        context = RunContext(at, settings, StopFile(at.root / "stop"), process, report_progress)
        found = measure_fidelity(context, address, asked, report_progress)
    if found.kept_in is not None:
        from pipelines.tracking.sync import mirror_model

        mirror_model(at, settings, address, screen.warn)
        if found.fidelity.set is not None and not has_row(at.root / address):
            screen.warn(
                f"{address} was not evaluated: these numbers are in no results table until "
                f"var-scaling evaluate {address} --data DATA"
            )
    if as_json:
        print(found.fidelity.model_dump_json())
        return
    one = found.fidelity
    of = "" if one.references is None else f", {one.references:,} images"
    screen.say(
        f"{found.title}: {one.samples:,} images, by {one.extractor}, against {one.reference}{of}"
    )
    screen.console.print(fidelity_table(one))
    for caution in cautions(one):
        screen.say(caution)


def fidelity_table(found: "Fidelity") -> Table:
    """Each number under its right name; its standard error, or spread over splits or subsets."""
    table = screen.new_table("", "", "±")
    for name, (value, spread) in found.with_spreads.items():
        shown = "" if spread is None else f"{spread:.2g}"
        table.add_row(_CALLED.get(name, name), f"{value:.5g}", shown)
    return table


def cautions(found: "Fidelity") -> list[str]:
    """What a reader of the numbers ought to know."""
    from pipelines.evaluation.fid import ENOUGH, ENOUGH_A_SPLIT
    from var_scaling.evaluation.statistics import SPLITS

    said = []
    if found.samples < ENOUGH:
        said.append(
            f"{found.samples:,} images are few: the fewer, the more a Fréchet distance is biased "
            f"upwards; compare it only with others of {found.samples:,}"
        )
    a_split = found.samples // SPLITS
    if a_split < ENOUGH_A_SPLIT:
        said.append(
            f"the score is a mean over {SPLITS} splits of about {a_split:,}, and of so few it is "
            f"biased downwards: compare it only with others of {found.samples:,}"
        )
    if "fid" in found.scores and found.references is not None:
        said.append(
            f"{found.reference} was gathered here, of images as this project cuts them. It is not "
            "the batch that ADM published, so this is not the FID that papers report; for that "
            "one: --reference with ADM's .npz"
        )
    if found.references is None:
        said.append(
            f"{found.reference} has moments alone: neither KID nor precision and recall can be had"
        )
    return said
