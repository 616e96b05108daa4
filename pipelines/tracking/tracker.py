"""Where runs are shown: what the mirror asks of MLflow, or of a tracker of a user's own."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home


class Number(NamedTuple):
    """One value of a metric."""

    name: str  # such as val/loss
    value: float
    time_ms: int  # since 1970, UTC
    step: int


class Tracker(Protocol):
    """Runs by address. Every call may come twice: the mirror starts anew after any failure.

    A tracker of a user's own is an importable module with a function `open_tracker(home)`; it is
    named in var-scaling.toml, [tracking] module = "...".
    """

    where: str  # for messages

    def run(self, experiment: str, name: str, address: str, kind: str) -> str:
        """The id of the run of `address`, found or made."""
        ...

    def notes(self, run: str) -> dict[str, str]:
        """What `note` has kept of the run, by name."""
        ...

    def note(self, run: str, name: str, text: str) -> None:
        """Keep `text`, in place of an earlier note of that name."""
        ...

    def params(self, run: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None: ...

    def numbers(self, run: str, numbers: Sequence[Number]) -> None:
        """Add values of metrics. The same again changes nothing."""
        ...

    def shown(self, run: str) -> dict[str, float]:
        """The latest value of each metric."""
        ...

    def artifact(self, run: str, file: Path, place: str = "") -> None:
        """Copy `file` into the folder `place` of the run, over one of its name."""
        ...

    def table(self, run: str, name: str, columns: Mapping[str, Sequence[Any]]) -> None: ...

    def state(self, run: str, state: str) -> None:
        """RUNNING, FINISHED, FAILED or KILLED."""
        ...

    def close(self) -> None: ...


def open_tracker(home: Home, settings: Settings) -> Tracker:
    """The tracker that the settings name. Raises ValueError; what the tracker raises."""
    name = settings.tracking.module
    if name is None:
        from pipelines.tracking.mlflow import MLflowTracker

        return MLflowTracker(home, settings.mlflow.uri)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"[tracking] module = {name!r}: {error}") from error
    if not hasattr(module, "open_tracker"):
        raise ValueError(f"[tracking] module = {name!r}: it has no function open_tracker(home)")
    tracker: Tracker = module.open_tracker(home)
    return tracker
