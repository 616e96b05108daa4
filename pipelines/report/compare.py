"""Compare the laws of two sweeps on an HTML page."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.report.publish import LAWS_FORMAT, report_path
from pipelines.workspace.store import Home
from pipelines.workspace.sweeps import find_sweep
from var_scaling.disk import read_json
from var_scaling.experiment import Sweep

if TYPE_CHECKING:
    from analysis.report.compare import Difference


def laws_at(home: Home, other: str) -> dict[str, Any]:
    """The content of a laws.json, found by sweep name, folder or path. Raises ValueError."""
    path = Path(other)
    if path.suffix != ".json":
        # A sweep of the user that was fitted in this home may be given by its name alone.
        inside = (path / "laws.json", home.root / other / "laws.json")
        known = next((each for each in inside if each.exists()), None)
        path = known or home.sweep(find_sweep(other).name) / "laws.json"
    if not path.exists():
        raise ValueError(f"{path}: the file does not exist; `var-scaling fit {other}` writes it")
    laws: dict[str, Any] = read_json(path)
    if laws.get("format") != LAWS_FORMAT:
        raise ValueError(f"{path}: written by an older version; `var-scaling fit` updates it")
    return laws


def compare(home: Home, sweep: Sweep, other: dict[str, Any]) -> tuple[Path, "Difference"]:
    """Write the page beside the sweep's report; returns its path and the differences."""
    from analysis.report.compare import difference, write_difference

    differences = difference(laws_at(home, str(home.sweep(sweep.name) / "laws.json")), other)
    path = report_path(home, sweep).with_name(f"against-{other['sweep']}.html")
    write_difference(path, differences)
    return path, differences
