"""The settings of a sample as a person writes them: one value, or one for each scale."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

Guidance = Annotated[
    str | None,
    typer.Option(help="pull towards the class at the last scale, rising from 0; or 0,0.5,1,..."),
]
TopK = Annotated[str | None, typer.Option(help="draw from the k likeliest codes; 0: from all")]
TopP = Annotated[str | None, typer.Option(help="draw from this share of probability; 0: all")]
Temperature = Annotated[str | None, typer.Option(help="below 1 bolder, above 1 more varied")]
Smooth = Annotated[bool, typer.Option("--smooth", help="mix codes: rounder shapes, for pictures")]
Precision = Annotated[str | None, typer.Option(help="fp32, tf32, bf16 or fp16")]


def read_sampling(
    guidance: str | None,
    top_k: str | None,
    top_p: str | None,
    temperature: str | None,
    smooth: bool,
    precision: str | None,
    rising: bool = True,
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
    return {name: value for name, value in given.items() if value is not None}


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
