"""What several commands take, and the settings of a sample as a person writes them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

RUNS = Path("runs")

SweepName = Annotated[
    str, typer.Argument(help="a sweep's name, or the path of a file with `sweep`")
]
HomeFolder = Annotated[
    Path, typer.Option("--home", envvar="VAR_SCALING_HOME", help="where everything is kept")
]
AsJson = Annotated[bool, typer.Option("--json", help="for a script to read")]
Only = Annotated[list[str] | None, typer.Option("--only", help="a trial's name; may be repeated")]
Detach = Annotated[bool, typer.Option("--detach", help="submit what can go, and leave")]
Dirty = Annotated[bool, typer.Option("--dirty", help="run changed code; keep a patch")]
# None where it is not said: a value that is said is answered exactly.
Enlarge = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="shorter side of images before the centre is cut, in image sides; else as the model's "
        "own images are cut; for others: evaluate 1.125, fidelity 1",
        show_default=False,
    ),
]
ValidationShare = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.99,
        help="of images held out where they have no split of their own; else that of the model's "
        "own images, 0 for others",
        show_default=False,
    ),
]

# Of a sample: one value, or one for each step of the sampler, with commas.
Guidance = Annotated[
    str | None,
    typer.Option(
        help="g of c + g (c - u), conditional c and unconditional u; of var at the last scale, "
        "rising from 0, or 0,0.5,1,... one for each"
    ),
]
TopK = Annotated[str | None, typer.Option(help="draw from the k likeliest codes; 0: from all")]
TopP = Annotated[str | None, typer.Option(help="draw from this share of probability; 0: all")]
Temperature = Annotated[str | None, typer.Option(help="below 1 bolder, above 1 more varied")]
Smooth = Annotated[bool, typer.Option("--smooth", help="mix codes: rounder shapes, for pictures")]
Precision = Annotated[str | None, typer.Option(help="fp32, tf32, bf16 or fp16")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="any setting of the model's family by its name, such as steps=25 or sampler=sde for "
        "dit; may be repeated",
        metavar="NAME=VALUE",
    ),
]
RawWeights = Annotated[
    bool,
    typer.Option("--raw-weights", help="the last weights of a model whose own are an average"),
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
    """The settings that were given, by the names of the sampling record. Raises ValueError."""
    given: dict[str, Any] = {
        "guidance": _values("--guidance", guidance, float),
        "top_k": _values("--top-k", top_k, int),
        "top_p": _values("--top-p", top_p, float),
        "temperature": _values("--temperature", temperature, float),
        "precision": precision,
        "smooth": True if smooth else None,
        "rising": None if rising else False,
    }
    given = {name: value for name, value in given.items() if value is not None}
    others = named_settings(named)
    if twice := sorted(given.keys() & others.keys()):
        raise ValueError(f"--set {twice[0]}: is given twice, once by its own option")
    return given | others


def named_settings(named: Sequence[str] | None) -> dict[str, Any]:
    """What --set says, each NAME=VALUE. Raises ValueError."""
    found: dict[str, Any] = {}
    for text in named or ():
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"--set {text}: wanted NAME=VALUE, such as steps=25")
        if name in found:
            raise ValueError(f"--set {text}: {name} is given twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    """A number, true or false, several with commas between them, or the text itself."""
    parts = []
    for part in text.split(","):
        try:
            parts.append(json.loads(part))
        except ValueError:
            parts.append(part)
    return parts[0] if len(parts) == 1 else tuple(parts)


def _values(option: str, text: str | None, read: Callable[[str], float]) -> Any:
    if text is None:
        return None
    try:
        values = tuple(read(part) for part in text.split(","))
    except ValueError as error:
        kind = "a whole number" if read is int else "a number"
        raise ValueError(
            f"{option} {text}: wanted {kind}, or one for each scale with commas between them"
        ) from error
    return values[0] if len(values) == 1 else values
