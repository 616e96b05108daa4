"""Compare the laws of two sweeps on an HTML page."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.report.publish import LAWS_FORMAT, report_path
from pipelines.stages.graph import of_kind, sweep_stages
from pipelines.stages.registry import TRIAL
from pipelines.workspace.damage import is_complete
from pipelines.workspace.store import Home
from pipelines.workspace.sweeps import find_sweep
from var_scaling.disk import read_json
from var_scaling.experiment import Sweep
from var_scaling.text import counted

if TYPE_CHECKING:
    from analysis.report.compare import Difference


def laws_at(home: Home, other: str) -> dict[str, Any]:
    """The content of a laws.json, found by sweep name, folder or path. Raises ValueError, also for
    a sweep whose trials have not all finished.
    """
    path = Path(other)
    if path.suffix != ".json":
        # A sweep of the user that was fitted in this home may be given by its name alone.
        inside = (path / "laws.json", home.root / other / "laws.json")
        known = next((each for each in inside if each.exists()), None)
        if known is None:
            sweep = find_sweep(other)
            refuse_unfinished(home, sweep)
            known = home.sweep(sweep.name) / "laws.json"
        path = known
    if not path.exists():
        raise ValueError(f"{path}: the file does not exist; `var-scaling fit {other}` writes it")
    laws: dict[str, Any] = read_json(path)
    if laws.get("format") != LAWS_FORMAT:
        raise ValueError(f"{path}: written by an older version; `var-scaling fit` updates it")
    return laws


def refuse_unfinished(home: Home, sweep: Sweep) -> None:
    """Raise ValueError if a trial of `sweep` has not finished: its laws would be of other sizes."""
    trials = of_kind(sweep_stages(home, sweep), TRIAL)
    waiting = [trial.name for trial in trials if not is_complete(trial.directory)]
    if waiting:
        names = ", ".join(waiting[:4]) + (", ..." if len(waiting) > 4 else "")
        raise ValueError(
            f"{sweep.name}: {counted(len(waiting), 'trial')} of {len(trials)} not finished "
            f"({names}). "
            f"`var-scaling run {sweep.name}` finishes them; to compare what there is, give its "
            "laws.json instead of its name"
        )


def compare(home: Home, sweep: Sweep, other: dict[str, Any]) -> tuple[Path, "Difference"]:
    """Write the page beside the sweep's report; returns its path and the differences."""
    from analysis.report.compare import difference, write_difference

    differences = difference(laws_at(home, str(home.sweep(sweep.name) / "laws.json")), other)
    path = report_path(home, sweep).with_name(f"against-{other['sweep']}.html")
    write_difference(path, differences)
    return path, differences
