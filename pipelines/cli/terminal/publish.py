"""After the training: fit, draw, report, bring to MLflow, and show."""

import json
from typing import Any

from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal import laws as screen_laws
from pipelines.cli.terminal.console import console, warn
from pipelines.results.table import collect_results
from pipelines.workspace.settings import Settings, load_settings
from pipelines.workspace.store import Home
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
    from pipelines.report import publish

    with screen.steps("laws") as progress:
        laws = publish.publish(at, sweep, collect_results(at, sweep), again, objective, progress)
    for stage, what in laws.get("damaged", {}).items():
        warn(f"{stage}: {what}")
    for failure in laws.get("failures", []):
        warn(failure)
    if not publish.mirrored(at, sweep, laws) or again:
        from pipelines.tracking import sync as mirror

        settings = load_settings()
        if mirror.attempt(lambda: _mirror_all(at, sweep, laws, settings), warn):
            publish.note_mirrored(at, sweep, laws)
    if as_json:
        print(json.dumps(laws))
        return
    show(laws)
    screen_laws.say_paths(console, publish.paths(at, sweep), name)


def show(laws: dict[str, Any]) -> None:
    """Tables, verdicts and what was not fitted, as laws.json has them."""
    from analysis.export import groups_of

    for group, found in groups_of(laws).items():
        title = f"{laws['sweep']}, {group}" if group else laws["sweep"]
        console.print(screen_laws.law_tables({**found, "sweep": title}))
        for verdict in screen_laws.verdicts(found):
            console.print(verdict, soft_wrap=True, highlight=False)
        for rate in screen_laws.best_rates(found):
            console.print(rate, soft_wrap=True, highlight=False)
        for why in screen_laws.gathered(found["refused"]):
            console.print(f"not fitted: {why}", soft_wrap=True, highlight=False)


def _mirror_all(at: Home, sweep: Sweep, laws: dict[str, Any], settings: Settings) -> None:
    from pipelines.report import publish
    from pipelines.tracking.mirror import Mirror
    from pipelines.tracking.sync import tracking

    folder = at.sweep(sweep.name)
    report = sorted(path for path in (folder / "report").iterdir() if path.is_file())
    files = [*report, folder / "results.parquet"]
    with tracking(at, settings) as tracker:
        mirror = Mirror(at, sweep, tracker)
        mirror.catch_up()
        mirror.publish_law(publish.law_scalars(laws), publish.law_columns(laws), files)
