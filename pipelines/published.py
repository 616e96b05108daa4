"""After the training: fit, draw, report, bring to MLflow, and show."""

import json
from typing import Any

from pipelines import screen, screen_laws
from pipelines.rows import write_results
from pipelines.screen import console, warn
from pipelines.settings import load_settings
from pipelines.stages.graph import refuse_mismatch, sweep_stages
from pipelines.store import Home
from var_scaling.experiment import Sweep


def publish_and_show(
    at: Home,
    sweep: Sweep,
    name: str,
    again: bool,
    as_json: bool = False,
    objective: str = "squares",
) -> None:
    """The laws of what has finished; fitted anew only for new results, or `again`."""
    from pipelines import publish

    with screen.steps("laws") as progress:
        laws = publish.publish(at, sweep, results(at, sweep), again, objective, progress)
    for stage, what in laws.get("damaged", {}).items():
        warn(f"{stage}: {what}")
    for failure in laws.get("failures", []):
        warn(failure)
    if not publish.mirrored(at, sweep, laws) or again:
        from pipelines import mirror

        uri = load_settings().mlflow.uri
        if mirror.attempt(lambda: _mirror_all(at, sweep, laws, uri), warn):
            publish.note_mirrored(at, sweep, laws)
    if as_json:
        print(json.dumps(laws))
        return
    show(laws)
    screen_laws.say_paths(console, publish.paths(at, sweep), name)


def show(laws: dict[str, Any]) -> None:
    """Tables, verdicts and what was not fitted, as laws.json has them."""
    console.print(screen_laws.law_tables(laws))
    for verdict in screen_laws.verdicts(laws):
        console.print(verdict, soft_wrap=True, highlight=False)
    for why in screen_laws.gathered(laws["refused"]):
        console.print(f"not fitted: {why}", soft_wrap=True, highlight=False)


def results(at: Home, sweep: Sweep) -> str:
    """Collect the sweep into results.parquet; the fingerprint of what stands there."""
    refuse_mismatch(sweep_stages(at, sweep))  # else old losses would stand beside new sizes
    fingerprint = write_results(at, sweep)
    if fingerprint is None:
        raise ValueError(f"{sweep.name}: no trial has been evaluated yet; `var-scaling run` does")
    return fingerprint


def _mirror_all(at: Home, sweep: Sweep, laws: dict[str, Any], uri: str | None) -> None:
    from pipelines import publish, tracking

    mirror = tracking.Mirror(at, sweep, uri)
    mirror.catch_up()
    folder = at.sweep(sweep.name)
    files = [*sorted((folder / "report").iterdir()), folder / "results.parquet"]
    mirror.publish_law(publish.law_scalars(laws), publish.law_columns(laws), files)
