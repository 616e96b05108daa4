"""Draw the figures of results from the tables, and check those that cannot be drawn again.

Every docs/*.png is in one of two lists. Those of DRAWN are plots: `make docs` draws them, and each
file has the SHA-256 of the tables that it was drawn from. Those of docs/tables/figures.toml are
pictures by trained models, or plots of runs whose rows were not kept: the list has the command, the
run and the SHA-256 of the file.
"""

import hashlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from comparison_values import CIFAR10, FAMILIES, comparison_figure
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from published_laws import POINTS, REFITS, chinchilla_approaches, points
from quickstart_values import quickstart_rows
from results import DOCS, TABLES

from analysis.plots.all_figures import allocation_figure, conventions, laws_in_parameters
from analysis.plots.style import save
from analysis.study import Study, study
from analysis.table.table import check

_KEY = "Drawn from"  # a field of text in the PNG
_WIDTH = 1400  # pixels; a report's figures have 2100


@cache
def quickstart_study() -> Study:
    """The laws of the sweep `quickstart`, from its committed rows."""
    rows = quickstart_rows()
    return study(check(rows[rows.sweep == "quickstart"].reset_index(drop=True), "quickstart.csv"))


@dataclass(frozen=True)
class Drawn:
    """A figure that is drawn from tables."""

    draw: Callable[[], Figure | None]
    tables: tuple[Path, ...]
    needs: Path | None = None  # points that are not in the repository

    @property
    def fingerprint(self) -> str:
        """Of the tables: a file that has another one is stale."""
        return hashlib.sha256(b"".join(path.read_bytes() for path in self.tables)).hexdigest()


_QUICKSTART = (TABLES / "quickstart.csv",)
DRAWN = {
    "laws_in_parameters": Drawn(lambda: laws_in_parameters(quickstart_study()), _QUICKSTART),
    "exponents_by_convention": Drawn(lambda: conventions(quickstart_study()), _QUICKSTART),
    **{
        f"families_{network}": Drawn(
            partial(comparison_figure, FAMILIES, network), (TABLES / "families.csv",)
        )
        for network in ("classifier", "seeded")
    },
    "families_cifar10_classifier": Drawn(
        lambda: comparison_figure(CIFAR10, "classifier"), (TABLES / "families_cifar10.csv",)
    ),
    "published_allocation": Drawn(
        lambda: allocation_figure(chinchilla_approaches(points().finals)), (REFITS,), POINTS
    ),
}


def recorded_figures() -> dict[str, dict[str, str]]:
    """The other files, by name: their SHA-256, command and run."""
    return tomllib.loads((TABLES / "figures.toml").read_text())


def redraw(name: str, folder: Path) -> Path:
    """Draw a figure, and write into the file what it was drawn from."""
    figure = DRAWN[name].draw()
    assert figure is not None, f"{name}: the table has no such law"
    path = save(figure, folder, name)
    note = PngInfo()
    note.add_text(_KEY, DRAWN[name].fingerprint)
    with Image.open(path) as image:
        size = (_WIDTH, round(image.height * _WIDTH / image.width))
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    # Few colours: a third of the bytes.
    few = small.quantize(64, method=Image.Quantize.MAXCOVERAGE)
    few.save(path, pnginfo=note, optimize=True)
    return path


def drawn_from(path: Path) -> str | None:
    """The fingerprint of the tables that a file was drawn from; None if there is none."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        return image.info.get(_KEY)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stale() -> list[str]:
    """Figures that differ from their tables or from their record, in words."""
    found = [
        f"docs/{name}.png was drawn from other tables: run `make docs`"
        for name, figure in DRAWN.items()
        if drawn_from(DOCS / f"{name}.png") != figure.fingerprint
    ]
    return found + [
        f"docs/{name} is another file than docs/tables/figures.toml says"
        for name, known in recorded_figures().items()
        if sha256(DOCS / name) != known["sha256"]
    ]


def renew() -> list[str]:
    """Draw the stale figures; returns those whose points are not here."""
    impossible = []
    for name, figure in DRAWN.items():
        if drawn_from(DOCS / f"{name}.png") == figure.fingerprint:
            continue
        if figure.needs is not None and not figure.needs.exists():
            impossible.append(f"docs/{name}.png is stale, and {figure.needs} is missing")
            continue
        with TemporaryDirectory() as folder:
            drawn = redraw(name, Path(folder))
            (DOCS / drawn.name).write_bytes(drawn.read_bytes())
        print(f"drew docs/{name}.png")
    return impossible
