"""The command `fidelity`: FID and related scores of images."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipelines.cli.options import RUNS, AsJson, Enlarge, HomeFolder, ValidationShare
from pipelines.cli.terminal import console as screen
from pipelines.stages.context import local_context
from pipelines.workspace.settings import Settings, load_settings
from pipelines.workspace.store import Home
from var_scaling.experiment.scoring import ExtractorName
from var_scaling.recipe import Precision

if TYPE_CHECKING:
    from pipelines.evaluation.fid import FidelityOptions, FidelityResult
    from pipelines.evaluation.scores import Fidelity

app = typer.Typer()

_TITLES = {
    "fid": "FID",
    "inception_score": "inception score",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "equal_tokens": "share of tokens as in fp32",
}


ImagesAddress = Annotated[
    str,
    typer.Argument(help="SWEEP/TRIAL, imported/NAME, tokenizers/NAME or a folder of images"),
]
SetName = Annotated[
    str | None,
    typer.Option(
        "--set",
        help="name of the sample set, such as guided. Default: default",
        show_default=False,
    ),
]
Extractor = Annotated[
    ExtractorName | None,
    typer.Option(
        help="feature network: inception, seeded or classifier. Default: inception if "
        "var-scaling.toml names its weights, else seeded"
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="reference images: NAME-train or NAME-validation, such as imagenet-validation. "
        "Default: the model's training images"
    ),
]
ReferenceFile = Annotated[
    Path | None,
    typer.Option(
        help="reference statistics of another program: .npz file with mu and sigma. "
        "Default: computed here",
        exists=True,
        dir_okay=False,
    ),
]
ReferenceCount = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="maximum number of reference images, evenly spaced, such as 10000. Default: 50,000",
        show_default=False,
    ),
]
EncodePrecision = Annotated[
    Precision | None,
    typer.Option(
        help="tokenizers: precision of the encoder, fp32, tf32, bf16 or fp16, such as bf16; "
        "other than in fp32 the share of equal tokens is shown. Default: the tokenizer's own"
    ),
]


@app.command()
def fidelity(
    address: ImagesAddress,
    name: SetName = None,
    extractor: Extractor = None,
    against: Against = None,
    reference: ReferenceFile = None,
    images: ReferenceCount = None,
    encode_precision: EncodePrecision = None,
    enlarge: Enlarge = None,
    validation_share: ValidationShare = None,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Compute FID and related scores of a set of images.

    For samples: FID, inception score, KID, precision and recall; for reconstructions: FID. These
    names are used only for features of the Inception network, whose weights file is named in
    var-scaling.toml. Without it a small seeded network extracts the features, and its numbers can
    be compared only with numbers of the same network. The result is written to the folder of the
    images and, if the model has been evaluated, to the results table of the next fit.
    """
    from pipelines.evaluation.fid import FidelityOptions
    from pipelines.evaluation.reference_stats import CropOptions

    workspace, settings = Home(home), load_settings()
    options = FidelityOptions(
        name, extractor, against, reference, images, encode_precision,
        CropOptions(enlarge, validation_share),
    )  # fmt: skip
    if extractor is None and settings.weights.inception is None:
        screen.warn(
            "no [weights] inception in var-scaling.toml: the small seeded network extracts the "
            "features. Its distance is no FID and can be compared only with that of the same "
            "network"
        )
    result = _measure(workspace, settings, address, options)
    if result.kept_in is not None:
        _mirror(workspace, settings, address, result.fidelity)
    if as_json:
        print(result.fidelity.model_dump_json())
    else:
        _print_scores(result)


def _measure(
    workspace: Home, settings: Settings, address: str, options: "FidelityOptions"
) -> "FidelityResult":
    from pipelines.evaluation.fid import measure_fidelity

    with screen.progress_bar(f"fidelity of {address}") as report_progress:
        context = local_context(workspace, settings, report_progress)
        # No other stage runs at the same time, so all CPUs may be used.
        context = replace(context, process=replace(context.process, threads=settings.local.cpus))
        return measure_fidelity(context, address, options, report_progress)


def _mirror(workspace: Home, settings: Settings, address: str, scores: "Fidelity") -> None:
    """Mirror the saved scores; warn if no results table can have them."""
    from pipelines.evaluation.scores import has_row
    from pipelines.tracking.sync import mirror_model

    mirror_model(workspace, settings, address, screen.warn)
    if scores.set is not None and not has_row(workspace.root / address):
        screen.warn(
            f"{address} was not evaluated: for these numbers to appear in a results table, run "
            f"var-scaling evaluate {address} --data DATA"
        )


def _print_scores(result: "FidelityResult") -> None:
    scores = result.fidelity
    count = "" if scores.references is None else f", {scores.references:,} images"
    screen.print_line(
        f"{result.title}: {scores.samples:,} images, by {scores.extractor}, "
        f"against {scores.reference}{count}"
    )
    screen.console.print(fidelity_table(scores))
    for caution in cautions(scores):
        screen.print_line(caution)


def fidelity_table(fidelity: "Fidelity") -> Table:
    """The scores, each with its standard error or its spread over splits or subsets."""
    table = screen.new_table("", "", "±")
    for name, (value, spread) in fidelity.with_spreads.items():
        spread_text = "" if spread is None else f"{spread:.2g}"
        title = name.replace("equal_tokens_", "… at scale ")
        table.add_row(_TITLES.get(name, title), f"{value:.5g}", spread_text)
    return table


def cautions(fidelity: "Fidelity") -> list[str]:
    """Sentences on the bias and comparability of the scores."""
    from pipelines.evaluation.fid import MIN_FID_SAMPLES, MIN_SPLIT_SAMPLES
    from var_scaling.evaluation.statistics import SPLITS

    sentences = []
    if fidelity.samples < MIN_FID_SAMPLES:
        sentences.append(
            f"with only {fidelity.samples:,} images the Fréchet distance is biased upwards, the "
            f"more the fewer images: compare it only with distances of {fidelity.samples:,} images"
        )
    split_size = fidelity.samples // SPLITS
    if split_size < MIN_SPLIT_SAMPLES:
        sentences.append(
            f"the score is a mean over {SPLITS} splits of about {split_size:,}, and with so few "
            f"images it is biased downwards: compare it only with scores of {fidelity.samples:,}"
        )
    if "fid" in fidelity.scores and fidelity.references is not None:
        sentences.append(
            f"{fidelity.reference} was computed by this project, from images as it crops them. It "
            "is not the reference batch that ADM published, so this is not the FID that papers "
            "report; for that, give --reference with ADM's .npz"
        )
    if fidelity.references is None:
        sentences.append(
            f"{fidelity.reference} has only moments: KID, precision and recall need features"
        )
    return sentences
