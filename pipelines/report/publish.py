"""Publish the results of a sweep: laws.json, plots, report, and the values for MLflow."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.execution.tasks import damaged_stages
from pipelines.report.fit_options import NO_OPTIONS, FitOptions
from pipelines.report.images import artifact_folders
from pipelines.report.paper import PaperOptions, write_paper
from pipelines.results.artifacts import combined_stamp
from pipelines.results.health import failed_checks
from pipelines.stages.graph import Stages, of_kind, sweep_stages
from pipelines.stages.registry import SCORE
from pipelines.workspace.damage import is_complete
from pipelines.workspace.store import Home
from var_scaling.disk import read_json, write_json
from var_scaling.experiment import Sweep

if TYPE_CHECKING:
    from analysis.report.html import Facts
    from analysis.report.pages import Scored
    from analysis.table.table import Table

LAWS_FORMAT = 4  # of laws.json, as analysis.export writes it


def publish(
    home: Home,
    sweep: Sweep,
    results_fingerprint: str,
    again: bool,
    objective: str = "squares",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    formats: Sequence[str] = (),
    options: FitOptions = NO_OPTIONS,
    paper: PaperOptions | None = None,
) -> dict[str, Any]:
    """Fit the laws of `sweep` and write laws.json, plots and report, if outdated or if `again`.

    They are outdated if the results, the damage, the artifacts of the models or the options have
    changed. The plots are PNGs, and in `formats`.
    Returns the content of laws.json. Raises TableError if there is nothing to fit.
    """
    folder, stages = home.sweep(sweep.name), sweep_stages(home, sweep)
    damaged = {stage: str(damage) for stage, damage in damaged_stages(stages).items()}
    failures = list(failed_checks(stages))
    inputs = {
        "format": LAWS_FORMAT, "results_fingerprint": results_fingerprint, "objective": objective,
        "made": _artifact_stamp(stages), "options": options.recorded,
    }  # fmt: skip
    warnings = {"damaged": damaged, "failures": failures}
    if not again and (folder / "laws.json").exists() and report_path(home, sweep).exists():
        laws: dict[str, Any] = read_json(folder / "laws.json")
        recorded = {"damaged": {}, "failures": [], "options": {}, **laws}
        if all(recorded.get(key) == value for key, value in (inputs | warnings).items()):
            return laws
    from analysis.export import laws_of_all
    from analysis.parallel import idle_cores
    from analysis.report.pages import write_pages
    from analysis.study import studies
    from pipelines.planning.forecasts import grade_forecasts
    from pipelines.report.facts import facts_of

    table, facts = _table_and_facts(folder, facts_of(sweep, stages), options, damaged)
    # `run` has threads of Ray, with which a process must not fork. It does not ask for `again`.
    processes = idle_cores() if again else 1
    forecasts = tuple(grade_forecasts(home, sweep))
    fitted = studies(table, objective, forecasts, progress, processes, options.parsed())
    report = report_path(home, sweep).parent
    write_paper(paper, fitted, report, processes)
    scored, families = _compared_families(home, folder / "images.parquet", stages, report)
    write_pages(report, fitted, facts, formats, scored, processes)
    laws = {
        **laws_of_all(fitted, facts.trials),
        **inputs,
        **warnings,
        "sweep": sweep.name,
        **families,
    }
    write_json(folder / "laws.json", laws)
    return laws


def _table_and_facts(
    folder: Path, facts: "Facts", options: FitOptions, damaged: Mapping[str, str]
) -> "tuple[Table, Facts]":
    """The rows to fit, with notes on damaged stages, and the facts of these trials."""
    from analysis.table.table import load_results, select

    table = load_results(folder / "results.parquet")
    facts = replace(facts, settings={**facts.settings, **options.settings})
    if options.where is not None:
        every, table = table, select(table, options.where)
        # A trial that was left out is not one without results.
        left_out = set(every.rows.trial) - set(table.rows.trial)
        facts = replace(facts, trials=tuple(t for t in facts.trials if t not in left_out))
    # The rows of a trial already say that it is damaged.
    notes = [
        f"{stage}: {text}" for stage, text in damaged.items() if not stage.startswith("trial ")
    ]
    return replace(table, notes=(*table.notes, *notes)), facts


def _compared_families(
    home: Home, scores: Path, stages: Stages, report: Path
) -> "tuple[Scored | None, dict[str, Any]]":
    """The scored samples in the table `scores`, and the entries of laws.json about them."""
    import pandas as pd

    from analysis.report.families import comparison_orders, comparison_scalars
    from analysis.report.pages import Scored
    from pipelines.report.side_by_side import side_by_side

    if not scores.exists():
        return None, {}
    images, samples, families = pd.read_parquet(scores), dict[str, Path](), dict[str, Any]()
    with suppress(ValueError):  # the report says why families cannot be compared
        families = {
            "families": comparison_scalars(images), "families_order": comparison_orders(images),
        }  # fmt: skip
        samples = side_by_side(home, images, report)
    return Scored(images, _unscored(stages), samples), families


def _unscored(stages: Stages) -> tuple[str, ...]:
    return tuple(stage.name for stage in of_kind(stages, SCORE) if not is_complete(stage.directory))


def _artifact_stamp(stages: Stages) -> dict[str, str] | None:
    """A stamp of the artifacts that the report shows.

    In a dict, so that the comparison of two laws.json files, which compares plain values, skips it.
    """
    stamp = combined_stamp(artifact_folders(stages))
    return None if stamp is None else {"stamp": stamp}


def report_path(home: Home, sweep: Sweep) -> Path:
    return home.sweep(sweep.name) / "report" / "index.html"


def paths(home: Home, sweep: Sweep) -> dict[str, Path]:
    """The existing output files for the user, by name."""
    report = report_path(home, sweep)
    files = {
        "report": report,
        "figure": report.with_name("laws_in_parameters.png"),
        "results": home.sweep(sweep.name) / "results.parquet",
    }
    return {name: path for name, path in files.items() if path.exists()}


def law_scalars(laws: dict[str, Any]) -> dict[str, float]:
    """The coefficients of the laws as MLflow metrics, without laws that the data contradict."""
    scalars: dict[str, float | None] = {}
    groups = groups_of(laws)
    for group, law in _all_laws(laws):
        mixed = law["variable"] != "train_flops" and law["metric"] in groups[group]["mixed_data"]
        if law["no_law"] or mixed:
            continue
        fit = law["fit"]
        prefix = f"law/{group}/" if group else "law/"
        base = f"{prefix}{law['symbol']}_of_{law['variable_symbol']}/{fit['law']}".replace(",", "")
        interval = law["intervals"].get("alpha", {})
        scalars |= {
            f"{base}/alpha": fit["values"]["alpha"],
            f"{base}/alpha_low": interval.get("low"),
            f"{base}/alpha_high": interval.get("high"),
            f"{base}/E": fit["values"].get("E", 0.0),
            f"{base}/r": fit["r"],
            f"{base}/r2": fit["r2"],
            f"{base}/beta": fit["paper_beta"],
        }
    for group, content in groups.items():
        for surface in (*content.get("surfaces", []), *content.get("forms", [])):
            if surface.get("no_law"):
                continue
            prefix = f"law/{group}/" if group else "law/"
            name_of_law = surface["fit"]["law"]
            base = f"{prefix}{surface['symbol']}_of_N_D/{name_of_law}".replace(",", "")
            for name, value in surface["fit"]["values"].items():
                interval = surface["intervals"].get(name, {})
                scalars[f"{base}/{name}"] = value
                scalars |= {f"{base}/{name}_{end}": interval.get(end) for end in ("low", "high")}
            scalars[f"{base}/r2"] = surface["fit"]["r2"]
    scalars |= laws.get("families", {})
    return {name: value for name, value in scalars.items() if value is not None}


def law_columns(laws: dict[str, Any]) -> dict[str, list[Any]]:
    """The laws in one variable, the surfaces and the other laws in N and D as a table: column name
    -> values.
    """
    rows = [
        ({"of": group} if group else {}) | _law_row(law)
        for group, content in groups_of(laws).items()
        for law in (*content["laws"], *content.get("surfaces", []), *content.get("forms", []))
    ]
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _law_row(law: dict[str, Any]) -> dict[str, Any]:
    """A row of the table. `exponent_of_D` is β of a surface; `beta` that of the paper's form of a
    law in one variable, L - E = (β x)^-α.
    """
    fit, values = law["fit"], law["fit"]["values"]
    alpha, of_D = (law["intervals"].get(name) or {} for name in ("alpha", "beta"))
    return {
        "law": law["label"], "form": fit["formula"],
        "alpha": values["alpha"], "alpha_low": alpha.get("low"), "alpha_high": alpha.get("high"),
        "exponent_of_D": values.get("beta"),
        "exponent_of_D_low": of_D.get("low"), "exponent_of_D_high": of_D.get("high"),
        "beta": fit["paper_beta"], "E": values.get("E", 0.0), "r": fit["r"], "r2": fit["r2"],
        "points": fit["points"], "no_law": law.get("no_law") or "",
    }  # fmt: skip


def groups_of(laws: Mapping[str, Any]) -> dict[str, Any]:
    """The laws of each group of a laws.json; the key of a single group is ""."""
    return dict(laws["groups"]) if "groups" in laws else {"": laws}


def _all_laws(laws: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(group of runs, law) for every law."""
    return [(group, law) for group, content in groups_of(laws).items() for law in content["laws"]]


def mirrored(home: Home, sweep: Sweep, laws: dict[str, Any]) -> bool:
    """Whether these results are already in MLflow."""
    path, database = home.sweep(sweep.name) / "mirrored.json", home.root / "mlflow.db"
    return path.exists() and database.exists() and read_json(path) == _mirrored_as(database, laws)


def save_mirrored(home: Home, sweep: Sweep, laws: dict[str, Any]) -> None:
    path = home.sweep(sweep.name) / "mirrored.json"
    write_json(path, _mirrored_as(home.root / "mlflow.db", laws))


def _mirrored_as(database: Path, laws: dict[str, Any]) -> dict[str, Any]:
    """Identifies the results and, by its inode, the database: a new database is empty."""
    return {
        "results": laws["results_fingerprint"], "made": laws.get("made"),
        "database": database.stat().st_ino,
    }  # fmt: skip
