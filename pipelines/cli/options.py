"""Options that several commands share, and the parsing of sampling settings."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

RUNS = Path("runs")

SweepName = Annotated[
    str,
    typer.Argument(
        help="name of a sweep, or path of a Python file with a variable `sweep`, such as ./mine.py"
    ),
]
HomeFolder = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="VAR_SCALING_HOME",
        help="run directory with tokenizers, trials and reports, such as /scratch/runs",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="name of a trial, such as d4; may be repeated")
]
Detach = Annotated[
    bool, typer.Option("--detach", help="submit the jobs that can start now, and exit")
]
Dirty = Annotated[
    bool,
    typer.Option(
        "--dirty",
        help="allow uncommitted changes of the code; they are saved as a patch with the run",
    ),
]
On = Annotated[
    str,
    typer.Option(
        "--on", help="where to run: local, or a cluster of var-scaling.toml, such as h100"
    ),
]
TakeOver = Annotated[
    bool,
    typer.Option("--take-over", help="take over the lock of another driver; its jobs keep running"),
]
# None: not given, so the default depends on the model. A value that is given is always used.
Enlarge = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="shorter side after resizing, before the centre crop, as a multiple of the image "
        "side, such as 1.125. Default: as for the model's own images; for other images 1.125 in "
        "evaluate, 1 in fidelity",
        show_default=False,
    ),
]
ValidationShare = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.99,
        help="share of images to hold out if the folder has no splits, 0 to 0.99, such as 0.1. "
        "Default: as for the model's own images; 0 for other images",
        show_default=False,
    ),
]

# Fits of laws to a sweep or to a table.
SweepOrTable = Annotated[
    str,
    typer.Argument(help="sweep, or a table of runs: .csv, .tsv, .parquet, mlflow:EXPERIMENT"),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        help="fit only the rows with this condition on their columns, such as "
        "\"family == 'var' and depth > 4\"",
    ),
]
OnlyLaws = Annotated[
    list[str] | None,
    typer.Option(
        "--law",
        help="fit only this law: pure, floor, logit or surface; tied, interaction, varying or "
        "repeated (other laws in N and D); may be repeated",
    ),
]
Fixed = Annotated[
    list[str] | None,
    typer.Option("--fixed", metavar="NAME=VALUE", help="fix the irreducible loss, such as E=1.8"),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="column with the weight of each run in the laws in N and in N and D; points of "
        "a compute frontier without a surface have equal weights",
    ),
]
Predict = Annotated[
    str | None,
    typer.Option(
        "--predict",
        help="predict the loss of a new run, such as N=1e10,D=2e11: by each law that has only "
        "these of N, N_total, D, C",
    ),
]
BudgetColumn = Annotated[
    str | None,
    typer.Option(
        "--budget-column",
        help="column with the nominal budget of each run in FLOPs, which groups the runs for "
        "isoFLOP parabolas. Default: groups of nearly equal FLOPs",
        show_default=False,
    ),
]

UniqueColumn = Annotated[
    str | None,
    typer.Option(
        "--unique-column",
        help="column with the number of different training tokens of each run, for --law repeated",
    ),
]
ParabolaIn = Annotated[
    Literal["logL", "L"] | None,
    typer.Option(
        "--parabola-in",
        help="fit the parabola of each isoFLOP to logL or to L, over the log of N. Default: logL",
        show_default=False,
    ),
]
Spline = Annotated[
    bool,
    typer.Option(
        "--spline",
        help="take the minimum of each isoFLOP from an Akima spline through its runs instead of a "
        "parabola: free of a shape, but less precise",
    ),
]

Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="rename a column of the table, such as 'Model Size=params_total'; may be repeated",
    ),
]
Complete = Annotated[
    str | None,
    typer.Option(
        "--complete",
        help="column to compute by C = 6 N D from the other two, such as train_flops",
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", help="folder for the report of a table, such as ./report"),
]


def _objective_name(name: str | None) -> str | None:
    """The canonical name of an objective. Typer shows the error with the name of the option."""
    from analysis.fitting.objectives import OBJECTIVES, objective_of

    try:
        return None if name is None else objective_of(name).name
    except ValueError as error:
        raise typer.BadParameter(
            f"{str(error).removeprefix('objective ')}. NAME is one of {', '.join(OBJECTIVES)}; "
            "allowed are NAME, NAME:L, NAME:above=F and NAME:L:above=F, such as huber:L:above=0.5"
        ) from error


_OBJECTIVE_HELP = (
    "loss function of the residuals of log L: squares, huber or absolute. NAME:L: of the residuals "
    "of L; NAME:above=F: runs above the law count F times; such as huber:L:above=0.5"
)
ObjectiveName = Annotated[
    str, typer.Option("--objective", callback=_objective_name, metavar="NAME", help=_OBJECTIVE_HELP)
]
ObjectiveOfReport = Annotated[
    str | None,
    typer.Option(
        "--objective",
        callback=_objective_name,
        metavar="NAME",
        help=_OBJECTIVE_HELP + ". Default: that of the latest fit of the sweep",
        show_default=False,
    ),
]

# Sampling settings: one value, or one for each step of the sampler, separated by commas.
Guidance = Annotated[
    str | None,
    typer.Option(
        help="classifier-free guidance g in c + g (c - u), with conditional c and "
        "unconditional u, such as 1.5; 0: none. VAR: the value at the last scale, rising from 0; "
        "or one for each scale: 0,0.5,1,... Default: VAR 1.5, AR 1, DiT 0.5"
    ),
]
TopK = Annotated[
    str | None,
    typer.Option(
        help="sample from the k most likely codes, such as 900; 0: from all. Default: VAR 900, AR 0"
    ),
]
TopP = Annotated[
    str | None,
    typer.Option(
        help="sample from the most likely codes with this total probability, such as 0.96; "
        "0: from all. Default: VAR 0.96, AR 0"
    ),
]
Temperature = Annotated[
    str | None,
    typer.Option(
        help="softmax temperature, such as 0.9: below 1 less varied, above 1 more varied. "
        "Default: 1"
    ),
]
Smooth = Annotated[
    bool, typer.Option("--smooth", help="mix codes by Gumbel-softmax: smoother images; not for FID")
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="arithmetic: fp32, tf32, bf16 or fp16. Default: on a GPU that of the trial's "
        "training, else fp32"
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="any sampling setting of the model's family, such as steps=25 or sampler=sde for DiT; "
        "may be repeated",
        metavar="NAME=VALUE",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="random seed, such as 1")]
RawWeights = Annotated[
    bool,
    typer.Option(
        "--raw-weights",
        help="use the last weights of a model that averages its weights (EMA), not the average",
    ),
]


def read_sampling(
    guidance: str | None,
    top_k: str | None,
    top_p: str | None,
    temperature: str | None,
    smooth: bool,
    precision: str | None,
    rising: bool = True,
    named: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The given settings by their names in the sampling record. Raises ValueError."""
    if not rising and guidance and "," in guidance:
        raise ValueError(
            f"--guidance {guidance} has a value for each scale: leave out --constant-guidance"
        )
    given: dict[str, Any] = {
        "guidance": _parse_numbers("--guidance", guidance, float),
        "top_k": _parse_numbers("--top-k", top_k, int),
        "top_p": _parse_numbers("--top-p", top_p, float),
        "temperature": _parse_numbers("--temperature", temperature, float),
        "precision": precision,
        "smooth": True if smooth else None,
        "rising": None if rising else False,
    }
    given = {name: value for name, value in given.items() if value is not None}
    others = named_settings(named)
    if duplicates := sorted(given.keys() & others.keys()):
        raise ValueError(f"--set {duplicates[0]}: is given twice, once by its own option")
    return given | others


def named_settings(named: Sequence[str] | None) -> dict[str, Any]:
    """The settings given by --set NAME=VALUE. Raises ValueError."""
    settings: dict[str, Any] = {}
    for text in named or ():
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"--set {text}: must be NAME=VALUE, such as steps=25")
        if name in settings:
            raise ValueError(f"--set {text}: {name} is given twice")
        settings[name] = _parse_value(value)
    return settings


def _parse_value(text: str) -> Any:
    """A number, true or false, a tuple of values separated by commas, or the text itself."""
    parts = []
    for part in text.split(","):
        try:
            parts.append(json.loads(part))
        except ValueError:
            parts.append(part)
    return parts[0] if len(parts) == 1 else tuple(parts)


def _parse_numbers(option: str, text: str | None, parse: Callable[[str], float]) -> Any:
    if text is None:
        return None
    try:
        values = tuple(parse(part) for part in text.split(","))
    except ValueError as error:
        kind = "a whole number" if parse is int else "a number"
        raise ValueError(
            f"{option} {text}: must be {kind}, or one for each scale separated by commas"
        ) from error
    return values[0] if len(values) == 1 else values
