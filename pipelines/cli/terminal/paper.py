"""The options of `fit --paper`, and what it prints."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.cli.terminal.console import console
from pipelines.report.paper import LIST, PaperOptions
from var_scaling.disk import read_json

PaperFolder = Annotated[
    Path | None,
    typer.Option(
        "--paper",
        metavar="FOLDER",
        help="also write one-panel figures at column width, a LaTeX table laws.tex, and "
        "example.tex, which includes them, into this folder",
    ),
]
PaperRows = Annotated[
    str | None,
    typer.Option(
        "--rows",
        help="with --paper: the laws of the table, such as 'L(N), L(C), L_mean(N) floor'. "
        "Default: those that the report announces",
        show_default=False,
    ),
]
PaperColumns = Annotated[
    Literal["one", "two"] | None,
    typer.Option(
        "--columns",
        help="with --paper: the width of the table in columns of a two-column article. Default: "
        "one, and two for more than 12 rows",
        show_default=False,
    ),
]


def print_paper(options: PaperOptions | None) -> None:
    """Print where the files are and how many figures there are."""
    if options is None:
        return
    names = read_json(options.folder / LIST)["files"]
    figures = sum(name.endswith(".pdf") for name in names)
    text = f"paper    {options.folder}: {figures} figure{'s' * (figures != 1)} (PDF and PNG), "
    others = sorted({Path(name).name for name in names if name.endswith(".tex")}, reverse=True)
    if not any(name.endswith("laws.tex") for name in names):
        others.append("without a table: the report announces no law. --rows chooses laws")
    console.print(text + ", ".join(others), soft_wrap=True, highlight=False)
