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
