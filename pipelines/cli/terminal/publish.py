"""After training: fit the laws, write figures and report, update MLflow, print the laws."""

import json
from collections.abc import Sequence
from typing import Any

from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal import laws as screen_laws
from pipelines.cli.terminal.console import console, warn
from pipelines.cli.terminal.paper import print_paper
from pipelines.report.fit_options import NO_OPTIONS, FitOptions
from pipelines.report.paper import PaperOptions
from pipelines.results.table import collect_results
from pipelines.workspace.settings import Settings, load_settings
from pipelines.workspace.store import Home
from var_scaling.experiment import Sweep


def publish_and_show(
    home: Home,
    sweep: Sweep,
    name: str,
    again: bool,
    as_json: bool = False,
    objective: str = "squares",
    formats: Sequence[str] = (),
    options: FitOptions = NO_OPTIONS,
    paper: PaperOptions | None = None,
) -> None:
    """Fit the laws to the finished trials and print them.

    Fits only if there are new results, or with `again`. `formats` of the figures besides PNG.
    """
    from pipelines.report import publish

    with screen.progress_bar("laws") as progress:
        laws = publish.publish(
            home, sweep, collect_results(home, sweep), again, objective, progress, formats, options,
            paper,
        )  # fmt: skip
    for stage, damage in laws.get("damaged", {}).items():
        warn(f"{stage}: {damage}")
    for failure in laws.get("failures", []):
        warn(failure)
    if not publish.mirrored(home, sweep, laws) or again:
        from pipelines.tracking import sync as mirror

        settings = load_settings()
        if mirror.try_mirror(lambda: _mirror_all(home, sweep, laws, settings), warn):
            publish.save_mirrored(home, sweep, laws)
    if as_json:
        print(json.dumps(laws))
        return
    show(laws)
    print_paper(paper)
    screen_laws.print_paths(console, publish.paths(home, sweep), name, home.root)


def show(laws: dict[str, Any]) -> None:
    """Print a laws.json: contradictions, the main result, the laws, then all other warnings."""
    from pipelines.report.publish import groups_of

    for order in laws.get("families_order", []):
        console.print(order, style="bold", soft_wrap=True, highlight=False)
    for group, group_laws in groups_of(laws).items():
        title = f"{laws['sweep']}, {group}" if group else laws["sweep"]
        if not group_laws["sizes"]:
            console.print(f"{title}: no trial has finished, so there is no law yet")
            continue
        whose = f"{group}: " if group else ""
        for line in screen_laws.contradictions(group_laws):
            console.print(
                f"NO LAW   {whose}{line}", style="bold red", soft_wrap=True, highlight=False
            )
        main = group_laws["main"]["sentence"]
        if not main.startswith("No law is announced"):
            console.print(f"{whose}{main}", style="bold", soft_wrap=True, highlight=False)
        console.print(screen_laws.law_tables({**group_laws, "sweep": title}))
        if group_laws.get("predictions"):
            console.print(screen_laws.prediction_table(group_laws["predictions"]))
        lines = [*screen_laws.surface_lines(group_laws), *screen_laws.verdicts(group_laws)]
        for verdict in lines:
            console.print(verdict, soft_wrap=True, highlight=False)
        for line in screen_laws.best_learning_rates(group_laws):
            console.print(line, soft_wrap=True, highlight=False)
        for reason in screen_laws.group_by_reason(group_laws.get("unpredicted", [])):
            console.print(f"not predicted: {reason}", soft_wrap=True, highlight=False)
        for refusal in screen_laws.group_by_reason(group_laws["refused"]):
            console.print(f"not fitted: {refusal}", soft_wrap=True, highlight=False)
        for line in screen_laws.limitations(group_laws):
            console.print(line, soft_wrap=True, highlight=False)


def _mirror_all(home: Home, sweep: Sweep, laws: dict[str, Any], settings: Settings) -> None:
    from pipelines.report import publish
    from pipelines.tracking.mirror import Mirror
    from pipelines.tracking.sync import tracking

    folder = home.sweep(sweep.name)
    report = sorted(path for path in (folder / "report").iterdir() if path.is_file())
    files = [*report, folder / "results.parquet"]
    with tracking(home, settings) as tracker:
        mirror = Mirror(home, sweep, tracker, settings.tracking.points)
        mirror.catch_up()
        mirror.publish_law(publish.law_scalars(laws), publish.law_columns(laws), files)
