"""What several verbs of the command line take."""

from pathlib import Path
from typing import Annotated

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
