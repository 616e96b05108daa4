"""When the tracker is updated: during a run, on request (`mirror`), and after other commands."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from pipelines.execution.slurm import slurm
from pipelines.execution.status import SweepState, View
from pipelines.stages.graph import sweep_stages
from pipelines.tracking.mirror import ENDS, Mirror
from pipelines.tracking.tracker import Tracker, open_tracker
from pipelines.workspace.address import finished_folder, read_generator
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import IMPORTED, Home
from var_scaling.experiment import ImportedModel, Sweep

_EVERY = 5.0  # seconds between two updates during a run
_FOLLOW_EVERY = 15.0  # seconds between two updates of `mirror --follow`


@contextmanager
def mirroring(
    home: Home, sweep: Sweep, settings: Settings, warn: Callable[[str], None], every: float = _EVERY
) -> Iterator[None]:
    """Update the tracker every few seconds during the block. Errors become warnings."""
    ended = threading.Event()
    warned: set[str] = set()

    mirror = _ReconnectingMirror(home, sweep, settings)

    def warn_once(text: str) -> None:
        if text not in warned:
            warned.add(text)
            warn(text)

    def follow() -> None:
        while not ended.wait(every):
            try_mirror(mirror.catch_up, warn_once)

    thread = threading.Thread(target=follow, name="mlflow mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        try_mirror(mirror.catch_up, warn_once)
        mirror.close()


class _ReconnectingMirror:
    """A mirror for repeated updates, replaced after an error, as its runs may no longer exist."""

    def __init__(self, home: Home, sweep: Sweep, settings: Settings):
        self._home, self._sweep, self._settings = home, sweep, settings
        self._mirror: Mirror | None = None
        self.location = "the tracker"  # for messages

    def catch_up(self, views: list[View] | None = None) -> None:
        mirror, self._mirror = self._mirror, None
        if mirror is None:
            tracker = open_tracker(self._home, self._settings)
            self.location = tracker.location
            mirror = Mirror(self._home, self._sweep, tracker, self._settings.tracking.points)
        try:
            mirror.catch_up(views)
        except BaseException:
            mirror.tracker.close()
            raise
        self._mirror = mirror

    def close(self) -> None:
        if self._mirror is not None:
            self._mirror.tracker.close()


def mirror(
    home: Home, sweep: Sweep, settings: Settings, follow: bool, print_line: Callable[[str], None]
) -> None:
    """Update the tracker from the disk; with `follow`, repeat it until all stages have ended."""
    state = SweepState(sweep_stages(home, sweep))
    tracked = _ReconnectingMirror(home, sweep, settings)
    try:
        while True:
            views = state.poll(slurm.queue_or_none(20))
            caught_up = try_mirror(partial(tracked.catch_up, views), print_line)
            ended = sum(view.state in ENDS for view in views)
            if caught_up:
                progress = f"{ended} of {len(views)} stages have ended"
                print_line(f"{sweep.name}: {progress}, all mirrored in {tracked.location}")
            if caught_up and (not follow or all(view.finished for view in views)):
                return
            if not follow:
                raise ValueError(
                    f"{tracked.location} could not be updated; nothing is lost: try again"
                )
            time.sleep(_FOLLOW_EVERY)
    finally:
        tracked.close()


def mirror_model(home: Home, settings: Settings, address: str, warn: Callable[[str], None]) -> None:
    """Update the run of the model at `address`, after a command added an artifact to it.

    Errors become warnings. A tokenizer has a run only if a model in the home uses it.
    """

    def update() -> None:
        if sweep := _sweep_of_model(home, address):
            with tracking(home, settings) as tracker:
                Mirror(home, sweep, tracker, settings.tracking.points).catch_up()

    try_mirror(update, warn)


def _sweep_of_model(home: Home, address: str) -> Sweep | None:
    """A sweep with only the model at `address`, or with the first model that uses that tokenizer.

    It has the name of the model's sweep. None if no model uses the tokenizer. Raises ValueError.
    """
    kind, _, name = address.partition("/")
    if kind == "tokenizers":
        folders = (path.parent for path in sorted(home.root.glob("*/*/trial.json")))
        users = (path for path in folders if read_generator(path).tokenizer.name == name)
        folder = next(users, None)
        if folder is None:
            return None
    else:
        folder = finished_folder(home, address)
    record = read_generator(folder)
    if isinstance(record, ImportedModel):
        return Sweep(name=IMPORTED, question="", trials=(), imported=(record,))
    return Sweep(name=folder.parent.name, question="", trials=(record,))


@contextmanager
def tracking(home: Home, settings: Settings) -> Iterator[Tracker]:
    """The tracker that the settings name, closed after the block."""
    tracker = open_tracker(home, settings)
    try:
        yield tracker
    finally:
        tracker.close()


def try_mirror(work: Callable[[], None], warn: Callable[[str], None]) -> bool:
    """Call `work`, which uses the tracker. If it raises, call `warn` and return False."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - MLflow may raise anything
        first = str(error).splitlines()[0] if str(error) else ""
        warn(f"MLflow mirror: {type(error).__name__}: {first}; the next update repeats it")
        return False
    return True
