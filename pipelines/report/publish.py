"""From results to what people look at: laws.json, figures, report, the law run in MLflow."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.execution.tasks import damaged_stages
from pipelines.report.images import folders
from pipelines.report.side_by_side import side_by_side
from pipelines.results.artifacts import stamp_of
from pipelines.results.health import plain_failures
from pipelines.stages.graph import Stages, of_kind, sweep_stages
from pipelines.stages.registry import SCORE
from pipelines.workspace.damage import ended
from pipelines.workspace.store import Home
from var_scaling.disk import read_json, write_json
from var_scaling.experiment import Sweep

_FORMAT = 2  # of laws.json, as analysis.export writes it


def publish(
    home: Home,
    sweep: Sweep,
    results_fingerprint: str,
    again: bool,
    objective: str = "squares",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """The laws of `sweep`, fitted and drawn; what stands for these results is kept, unless `again`.

    What was made with its models since, pictures and their numbers, is new too: the page shows it.
    Returns what laws.json holds. Raises TableError where there is nothing to fit.
    """
    folder, stages = home.sweep(sweep.name), sweep_stages(home, sweep)
    damaged = {stage: str(found) for stage, found in damaged_stages(stages).items()}
    failures = list(plain_failures(stages))
    wanted = {
        "format": _FORMAT, "results_fingerprint": results_fingerprint, "objective": objective,
        "made": _made(stages),
    }  # fmt: skip
    warnings = {"damaged": damaged, "failures": failures}
    if not again and (folder / "laws.json").exists() and report_path(home, sweep).exists():
        laws: dict[str, Any] = read_json(folder / "laws.json")
        known = {"damaged": {}, "failures": [], **laws}
        if all(known.get(key) == value for key, value in (wanted | warnings).items()):
            return laws
    import pandas as pd

    from analysis.export import laws_of_all
    from analysis.report.families import comparison_scalars
    from analysis.report.pages import Scored, write_pages
    from analysis.study import studies
    from analysis.table.table import load_results
    from pipelines.planning.forecasts import graded
    from pipelines.report.facts import facts_of

    table = load_results(folder / "results.parquet")
    beneath = [f"{s}: {what}" for s, what in damaged.items() if not s.startswith("trial ")]
    table = replace(table, notes=(*table.notes, *beneath))  # of a trial its rows say it
    found = studies(table, objective, tuple(graded(home, sweep)), progress)
    # PDFs take as long as all the rest: who asks for laws or report gets them, a run does not.
    kinds = ("svg", "png", "pdf") if again else ("svg", "png")
    report, path = report_path(home, sweep).parent, folder / "images.parquet"
    scored, families = None, dict[str, Any]()
    if path.exists():
        images, beside = pd.read_parquet(path), {}
        with suppress(ValueError):  # the page says why families cannot be compared
            families = {"families": comparison_scalars(images)}
            beside = side_by_side(home, images, report)
        scored = Scored(images, _unscored(stages), beside)
    write_pages(report, found, facts_of(sweep, stages), kinds, scored)
    laws = {**laws_of_all(found), **wanted, **warnings, "sweep": sweep.name, **families}
    write_json(folder / "laws.json", laws)
    return laws


def _unscored(stages: Stages) -> tuple[str, ...]:
    return tuple(stage.name for stage in of_kind(stages, SCORE) if not ended(stage.directory))


def _made(stages: Stages) -> dict[str, str] | None:
    """What the page shows besides laws. No plain value: two reports do not differ in it."""
    stamp = stamp_of(folders(stages))
    return None if stamp is None else {"stamp": stamp}


def report_path(home: Home, sweep: Sweep) -> Path:
    return home.sweep(sweep.name) / "report" / "index.html"


def paths(home: Home, sweep: Sweep) -> dict[str, Path]:
    """What a person would open."""
    report = report_path(home, sweep)
    shown = {
        "report": report,
        "figure": report.with_name("laws_in_parameters.png"),
        "results": home.sweep(sweep.name) / "results.parquet",
    }
    return {what: path for what, path in shown.items() if path.exists()}


def law_scalars(laws: dict[str, Any]) -> dict[str, float]:
    """The numbers of the laws by name, as MLflow metrics."""
    scalars: dict[str, float | None] = {}
    for group, law in _all_laws(laws):
        fit = law["fit"]
        of = f"law/{group}/" if group else "law/"
        base = f"{of}{law['symbol']}_of_{law['variable_symbol']}/{fit['law']}".replace(",", "")
        interval = law["intervals"]["alpha"]
        scalars |= {
            f"{base}/alpha": fit["values"]["alpha"],
            f"{base}/alpha_low": interval["low"],
            f"{base}/alpha_high": interval["high"],
            f"{base}/E": fit["values"].get("E", 0.0),
            f"{base}/r": fit["r"],
            f"{base}/r2": fit["r2"],
            f"{base}/beta": fit["paper_beta"],
        }
    scalars |= laws.get("families", {})
    return {name: value for name, value in scalars.items() if value is not None}


def law_columns(laws: dict[str, Any]) -> dict[str, list[Any]]:
    """The laws as a table, one column a list."""
    found = _all_laws(laws)
    groups = {"of": [group for group, _ in found]} if "groups" in laws else {}
    return groups | {
        "law": [law["label"] for _, law in found],
        "form": [law["fit"]["formula"] for _, law in found],
        "alpha": [law["fit"]["values"]["alpha"] for _, law in found],
        "alpha_low": [law["intervals"]["alpha"]["low"] for _, law in found],
        "alpha_high": [law["intervals"]["alpha"]["high"] for _, law in found],
        "beta": [law["fit"]["paper_beta"] for _, law in found],
        "E": [law["fit"]["values"].get("E", 0.0) for _, law in found],
        "r": [law["fit"]["r"] for _, law in found],
        "r2": [law["fit"]["r2"] for _, law in found],
        "points": [law["fit"]["points"] for _, law in found],
    }


def _all_laws(laws: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every law with the group of runs that it is of."""
    from analysis.export import groups_of

    return [(group, law) for group, one in groups_of(laws).items() for law in one["laws"]]


def mirrored(home: Home, sweep: Sweep, laws: dict[str, Any]) -> bool:
    """Whether MLflow already shows these results."""
    path, database = home.sweep(sweep.name) / "mirrored.json", home.root / "mlflow.db"
    return path.exists() and database.exists() and read_json(path) == _mirrored_as(database, laws)


def note_mirrored(home: Home, sweep: Sweep, laws: dict[str, Any]) -> None:
    path = home.sweep(sweep.name) / "mirrored.json"
    write_json(path, _mirrored_as(home.root / "mlflow.db", laws))


def _mirrored_as(database: Path, laws: dict[str, Any]) -> dict[str, Any]:
    """These results in this very database: one made anew holds nothing yet."""
    return {
        "results": laws["results_fingerprint"], "made": laws.get("made"),
        "database": database.stat().st_ino,
    }  # fmt: skip
