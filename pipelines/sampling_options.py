"""The settings of a sample as a person writes them: one value, or one for each scale."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from var_scaling.generation.settings import Sampling

_OTHER_KIND = ("tuple_type", "float_type", "int_type")  # pydantic's names of faults

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
) -> Sampling:
    """The record; what was not said is not among its `model_fields_set`. Raises ValueError."""
    said: dict[str, Any] = {
        "guidance": _values("--guidance", guidance, float),
        "top_k": _values("--top-k", top_k, int),
        "top_p": _values("--top-p", top_p, float),
        "temperature": _values("--temperature", temperature, float),
        "precision": precision,
    }
    given = {name: value for name, value in said.items() if value is not None}
    try:
        return Sampling(**given, smooth=smooth, rising=rising)
    except ValidationError as error:
        # Of a field that may be one thing or another, pydantic complains for both.
        faults = [fault for fault in error.errors() if fault["type"] not in _OTHER_KIND]
        lines = [f"--{_option(fault)} {fault['input']}: {fault['msg']}" for fault in faults]
        raise ValueError("\n".join(lines)) from error


def _option(fault: ErrorDetails) -> str:
    return str(fault["loc"][0]).replace("_", "-")


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
