"""What several commands take, and the settings of a sample as a person writes them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

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
        "--home", envvar="VAR_SCALING_HOME", help="run directory: tokenizers, trials, reports"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="name of a trial, such as d4; may be repeated")
]
Detach = Annotated[
    bool, typer.Option("--detach", help="submit the jobs that can start now, and exit")
]
Dirty = Annotated[
    bool,
    typer.Option(
        "--dirty", help="allow code that differs from its commit; a patch is kept with the run"
    ),
]
# None where it is not said: a value that is said is answered exactly.
Enlarge = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="shorter side after resizing, before the centre crop, in image sides, such as 1.125. "
        "Default: as for the model's own images; for other images 1.125 in evaluate, 1 in fidelity",
        show_default=False,
    ),
]
ValidationShare = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.99,
        help="share of images to hold out if the folder has no splits, such as 0.1. "
        "Default: as for "
        "the model's own images; 0 for other images",
        show_default=False,
    ),
]

# Of a sample: one value, or one for each step of the sampler, with commas.
Guidance = Annotated[
    str | None,
    typer.Option(
        help="classifier-free guidance g in c + g (c - u), with conditional c and "
        "unconditional u, such as "
        "1.5. VAR: the value at the last scale, rising from 0; or one for each scale: 0,0.5,1,..."
    ),
]
TopK = Annotated[
    str | None, typer.Option(help="sample from the k most likely codes, such as 900; 0: from all")
]
TopP = Annotated[
    str | None,
    typer.Option(
        help="sample from the most likely codes of this total probability, such as 0.96; "
        "0: from all"
    ),
]
Temperature = Annotated[
    str | None, typer.Option(help="softmax temperature: below 1 less varied, above 1 more varied")
]
Smooth = Annotated[
    bool, typer.Option("--smooth", help="mix codes by Gumbel-softmax: smoother shapes; not for FID")
]
Precision = Annotated[
    str | None,
    typer.Option(help="arithmetic: fp32, tf32, bf16 or fp16. Default: that of the model"),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="any sampling setting of the model's family, such as steps=25 or sampler=sde "
        "for DiT; may "
        "be repeated",
        metavar="NAME=VALUE",
    ),
]
RawWeights = Annotated[
    bool,
    typer.Option(
        "--raw-weights", help="use the last weights of a model that averages its weights (EMA)"
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
