"""When MLflow is brought up to date: beside a driver or a sweep left alone, and after a verb."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipelines.execution.slurm import slurm
from pipelines.execution.status import View, overview
from pipelines.stages.graph import sweep_stages
from pipelines.tracking.mirror import ENDS, Mirror
from pipelines.tracking.tracker import Tracker, open_tracker
from pipelines.workspace.address import finished, read_generator
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import IMPORTED, Home
from var_scaling.experiment import ImportedModel, Sweep

_EVERY = 5.0  # seconds between two looks at the disk
_FOLLOWS = 15.0  # the same of a mirror that follows what it does not drive


@contextmanager
def mirroring(
    home: Home, sweep: Sweep, settings: Settings, warn: Callable[[str], None], every: float = _EVERY
) -> Iterator[None]:
    """Mirror every few seconds beside the block's work. What goes wrong costs only the view."""
    ended = threading.Event()
    said: set[str] = set()

    mirror = _Connected(home, sweep, settings)

    def once(text: str) -> None:
        if text not in said:
            said.add(text)
            warn(text)

    def follow() -> None:
        while not ended.wait(every):
            attempt(mirror.catch_up, once)

    thread = threading.Thread(target=follow, name="mlflow mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        attempt(mirror.catch_up, once)
        mirror.close()


class _Connected:
    """One mirror for many looks, made anew after an error: what it had found may be gone."""

    def __init__(self, home: Home, sweep: Sweep, settings: Settings):
        self._home, self._sweep, self._settings = home, sweep, settings
        self._mirror: Mirror | None = None

    def catch_up(self) -> None:
        mirror, self._mirror = self._mirror, None
        if mirror is None:
            tracker = open_tracker(self._home, self._settings)
            mirror = Mirror(self._home, self._sweep, tracker)
        try:
            mirror.catch_up()
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
    """Bring MLflow to what the disk says; with `follow` again and again until all is at an end."""
    stages = sweep_stages(home, sweep)
    while True:
        views = overview(stages, slurm.look(20))
        where: list[str] = []

        def bring(views: list[View] = views, where: list[str] = where) -> None:
            with tracking(home, settings) as tracker:
                where.append(tracker.where)
                Mirror(home, sweep, tracker).catch_up(views)

        caught_up = attempt(bring, print_line)
        ended = sum(view.state in ENDS for view in views)
        if caught_up:
            at_an_end = f"{ended} of {len(views)} stages at an end"
            print_line(f"{sweep.name}: {at_an_end}, all mirrored in {where[0]}")
        if caught_up and (not follow or all(view.finished for view in views)):
            return
        if not follow:
            raise ValueError(
                f"{''.join(where) or 'the tracker'} could not be brought up to date; nothing is "
                "lost: try again"
            )
        time.sleep(_FOLLOWS)


def mirror_model(home: Home, settings: Settings, address: str, warn: Callable[[str], None]) -> None:
    """Bring the run of the one model at `address` up to date: for who made something with it.

    What goes wrong is warned of. A tokenizer that no model here rests on has no run.
    """

    def bring() -> None:
        if sweep := _around(home, address):
            with tracking(home, settings) as tracker:
                Mirror(home, sweep, tracker).catch_up()

    attempt(bring, warn)


def _around(home: Home, address: str) -> Sweep | None:
    """The model at `address`, or the first over that tokenizer, as a sweep of its own.

    It bears the name of the sweep that the model belongs to. Raises ValueError.
    """
    kind, _, name = address.partition("/")
    if kind == "tokenizers":
        folders = (path.parent for path in sorted(home.root.glob("*/*/trial.json")))
        over = (at for at in folders if read_generator(at).tokenizer.name == name)
        folder = next(over, None)
        if folder is None:
            return None
    else:
        folder = finished(home, address)
    record = read_generator(folder)
    if isinstance(record, ImportedModel):
        return Sweep(name=IMPORTED, question="", trials=(), imported=(record,))
    return Sweep(name=folder.parent.name, question="", trials=(record,))


@contextmanager
def tracking(home: Home, settings: Settings) -> Iterator[Tracker]:
    """The tracker that the settings name, for the time of the block."""
    tracker = open_tracker(home, settings)
    try:
        yield tracker
    finally:
        tracker.close()


def attempt(work: Callable[[], None], warn: Callable[[str], None]) -> bool:
    """Whether `work` at the tracking server succeeded; `warn` is told if not."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the disk has it all
        first = str(error).splitlines()[0] if str(error) else ""
        warn(f"MLflow mirror: {type(error).__name__}: {first}; the next run catches up")
        return False
    return True
