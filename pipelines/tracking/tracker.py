"""The interface of a tracker: MLflow, or a module of the user."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home


class MetricValue(NamedTuple):
    """One value of a metric."""

    name: str  # such as val/loss
    value: float
    time_ms: int  # since 1970, UTC
    step: int


class Tracker(Protocol):
    """Stores runs by address. A call may be repeated, because the mirror retries after failures.

    A user's tracker is an importable module with a function `open_tracker(home)`, named in
    var-scaling.toml under [tracking] module = "...".
    """

    location: str  # for messages

    def run(self, experiment: str, name: str, address: str, kind: str) -> str:
        """The id of the run of `address`, which is created if needed."""
        ...

    def notes(self, run: str) -> dict[str, str]:
        """The notes of the run, by name."""
        ...

    def note(self, run: str, name: str, text: str) -> None:
        """Store `text`, replacing an earlier note of that name."""
        ...

    def params(self, run: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None: ...

    def metrics(self, run: str, metrics: Sequence[MetricValue]) -> None:
        """Add metric values. Adding the same value again changes nothing."""
        ...

    def latest_metrics(self, run: str) -> dict[str, float]:
        """The latest value of each metric."""
        ...

    def artifact(self, run: str, file: Path, folder: str = "") -> None:
        """Copy `file` into `folder` of the run, replacing a file of that name."""
        ...

    def table(self, run: str, name: str, columns: Mapping[str, Sequence[Any]]) -> None: ...

    def state(self, run: str, state: str) -> None:
        """RUNNING, FINISHED, FAILED or KILLED."""
        ...

    def close(self) -> None: ...


def open_tracker(home: Home, settings: Settings) -> Tracker:
    """The tracker that the settings name. Raises ValueError and what the tracker raises."""
    name = settings.tracking.module
    if name is None:
        from pipelines.tracking.mlflow import MLflowTracker

        return MLflowTracker(home, settings.mlflow.uri)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"[tracking] module = {name!r}: {error}") from error
    if not hasattr(module, "open_tracker"):
        raise ValueError(
            f"[tracking] module = {name!r}: the module has no function open_tracker(home)"
        )
    tracker: Tracker = module.open_tracker(home)
    return tracker
