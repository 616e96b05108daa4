"""What differs between the laws of one sweep and those of another, as a page and a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pipelines.publish import report_path
from pipelines.screen import new_table
from pipelines.store import Home
from pipelines.sweeps import find_sweep
from var_scaling.disk import read_json
from var_scaling.experiment import Sweep

if TYPE_CHECKING:
    from analysis.against import Difference


def laws_at(home: Home, other: str) -> dict[str, Any]:
    """The laws.json of a sweep of this home, of a folder, or the file itself. Raises ValueError."""
    path = Path(other)
    if path.suffix != ".json":
        inside = path / "laws.json"
        path = inside if inside.exists() else home.sweep(find_sweep(other).name) / "laws.json"
    if not path.exists():
        raise ValueError(f"{path}: no laws there yet; `var-scaling fit {other}` makes them")
    laws: dict[str, Any] = read_json(path)
    if laws.get("format") != 2:
        raise ValueError(f"{path}: written by an older version; `var-scaling fit` writes it anew")
    return laws


def compare(home: Home, sweep: Sweep, other: dict[str, Any]) -> tuple[Path, "Difference"]:
    """Write the page beside the sweep's report; its path and what it says."""
    from analysis.against import difference, write_difference

    found = difference(laws_at(home, str(home.sweep(sweep.name) / "laws.json")), other)
    path = report_path(home, sweep).with_name(f"against-{other['sweep']}.html")
    write_difference(path, found)
    return path, found


def table_of(found: "Difference") -> Table:
    """The laws of both, side by side."""
    columns = found.rows()
    table = new_table(*columns, title=" against ".join(found.names))
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table
