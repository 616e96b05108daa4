"""The stages: functions of what they read and the one folder they write. They know no orchestrator.

Each may be called again at any time: done is not redone, half-done goes on, drift is refused.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.provenance import note_attempt
from pipelines.settings import Settings
from pipelines.store import Home, claim, held
from var_scaling.config import ImportedTokenizer, SomeTokenizer, Sweep, TrainedTokenizer, Trial
from var_scaling.datasets import DeadLeaves, ImageFiles
from var_scaling.disk import DONE, is_done, read_json, write_json
from var_scaling.results import MetricsLog

# Two sweeps may want the same tokenizer, or the remnant of a killed run may still be at it: the
# second waits for the first, and then finds the work done.
_WAIT = 24 * 3600.0


class Stopped(RuntimeError):
    """The stage was asked to stop, and did, with all progress on disk."""


@dataclass(frozen=True)
class Place:
    """Where and with how much of the machine a stage runs: never part of what it computes."""

    home: Home
    settings: Settings
    threads: int
    stop_file: Path  # its presence asks for a stop between two steps
    tell: Callable[[str, int, int], None] | None = None  # hears what is done, how far, of how much

    def world(self) -> Any:
        """The processes that train one stage here: so far this one alone."""
        import torch

        from var_scaling.training.distributed import World

        device = self.settings.local.device
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError('[local] device = "cuda", but torch sees no GPU here')
        return World(device=torch.device(device))


def run_tokenizer(place: Place, t: SomeTokenizer) -> str:
    """Train `t` in its folder; an imported one must be there. Returns "done".

    Raises Stopped, Diverged, WeightsError, or ValueError that says how to bring an imported one.
    """
    folder = place.home.tokenizer(t.name)
    with _at_work(folder, place):
        if isinstance(t, ImportedTokenizer) and not is_done(folder):
            raise ValueError(
                f"tokenizer {t.name} is to be imported, not trained, and is not here yet: "
                f"var-scaling import VQVAE.pth --as {t.name} (SHA-256 {t.sha256})"
            )
        claim(folder, "tokenizer.json", t)
        if is_done(folder):
            return "done"
        assert isinstance(t, TrainedTokenizer)
        from var_scaling.training.checkpoint import clear
        from var_scaling.training.tokenizer import train_tokenizer
        from var_scaling.weights import file_sha256, save_weights

        facts: dict[str, str] = {}
        perceptual = None
        if t.losses.perceptual > 0:
            from var_scaling.tokenizer.perceptual import load_perceptual

            perceptual = load_perceptual(place.settings.weights.lpips, t.losses.perceptual_sha256)
            facts["perceptual_sha256"] = perceptual.sha256
        note_attempt(folder, place.threads, facts)
        training, held_out = (_source(place, t.data, split, folder) for split in _SPLITS)
        model = train_tokenizer(
            t,
            training,
            held_out,
            perceptual,
            folder / "checkpoint",
            MetricsLog(folder / "metrics.jsonl"),
            place.settings.local.save_every_seconds,
            _asked(place.stop_file),
            _decoders(place, t.data),
            folder / "reconstructions.png",
            place.world(),
        )
        weights = folder / "weights.safetensors"
        save_weights(model, weights)
        write_json(
            folder / DONE, {"status": "done", "weights_sha256": file_sha256(weights), **facts}
        )
        clear(folder / "checkpoint")
        return "done"


def run_tokens(place: Place, t: SomeTokenizer, data: DeadLeaves | ImageFiles, split: str) -> str:
    """Encode `data`'s `split` with the trained `t`. Raises Stopped, DataError or CacheError."""
    folder = place.home.tokens(t.name, data.name, split)
    with _at_work(folder, place):
        from var_scaling.tokenizer.encode import write_cache
        from var_scaling.tokenizer.model import load_tokenizer
        from var_scaling.training.optim import arithmetic

        if is_done(folder):
            return "done"
        source = _source(place, data, split, folder)
        content = description(place.home, t, data, split)
        note_attempt(folder, place.threads)
        model = load_tokenizer(t, place.home.tokenizer(t.name) / "weights.safetensors")
        device = place.world().device
        with arithmetic("fp32", device):  # tokens must not hang on what ran here before
            complete = write_cache(
                folder,
                model.to(device),
                source,
                content,
                _decoders(place, data),
                _Progress(folder, place.tell),
                _asked(place.stop_file),
            )
        if not complete:
            raise Stopped(f"encoding {folder.name} stopped with its shards on disk")
        write_json(folder / DONE, {"status": "done"})
        return "done"


def run_trial(place: Place, sweep: Sweep, trial: Trial) -> str:
    """Train `trial` in its folder. Returns "done" or "diverged"; raises Stopped or CacheError."""
    folder = place.home.trial(sweep.name, trial.name)
    with _at_work(folder, place):
        claim(folder, "trial.json", trial)
        if is_done(folder):
            return str(read_json(folder / DONE)["status"])
        from var_scaling.tokenizer.cache import open_cache
        from var_scaling.tokenizer.model import load_tokenizer
        from var_scaling.training.checkpoint import clear
        from var_scaling.training.loop import Diverged
        from var_scaling.training.trial import train
        from var_scaling.weights import file_sha256, save_weights

        note_attempt(folder, place.threads)
        t = trial.tokenizer
        tokenizer = load_tokenizer(t, place.home.tokenizer(t.name) / "weights.safetensors")
        training, held_out = (
            open_cache(
                place.home.tokens(t.name, trial.data.name, split),
                description(place.home, t, trial.data, split),
            )
            for split in _SPLITS
        )
        try:
            model = train(
                trial,
                tokenizer.quantize,
                training,
                held_out,
                folder / "checkpoint",
                MetricsLog(folder / "metrics.jsonl"),
                place.settings.local.save_every_seconds,
                _asked(place.stop_file),
                place.world(),
            )
        except Diverged as error:
            write_json(folder / DONE, {"status": "diverged", "reason": str(error)})
            return "diverged"
        weights = folder / "weights.safetensors"
        save_weights(model, weights)
        write_json(folder / DONE, {"status": "done", "weights_sha256": file_sha256(weights)})
        clear(folder / "checkpoint")
        return "done"


_SPLITS = ("train", "validation")
FAILED = "failed.json"


@contextmanager
def _at_work(folder: Path, place: Place) -> Iterator[None]:
    """Alone in `folder`, on `place.threads` threads; an error is left there to be read."""
    import torch

    from var_scaling.training.loop import Interrupted

    torch.set_num_threads(place.threads)
    with held(folder, wait=_WAIT):
        (folder / FAILED).unlink(missing_ok=True)
        try:
            yield
        except Interrupted as error:
            raise Stopped(str(error)) from error
        except Stopped:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            write_json(folder / FAILED, {"error": what, "traceback": traceback.format_exc()})
            raise


def _source(place: Place, data: DeadLeaves | ImageFiles, split: str, folder: Path) -> Any:
    from var_scaling.data.sources import open_source

    survey, root = place.home.survey(data.name, split), place.settings.data_root(data.name)
    alone = held(survey, wait=_WAIT) if root else nullcontext()
    with alone:
        progress = _Progress(folder, place.tell)
        return open_source(data, split, root, survey, _decoders(place, data), progress)


def description(
    home: Home, t: SomeTokenizer, data: DeadLeaves | ImageFiles, split: str
) -> dict[str, Any]:
    from var_scaling.tokenizer.cache import describe

    weights = read_json(home.tokenizer(t.name) / DONE)["weights_sha256"]
    return describe(t, weights, data, split)


def _decoders(place: Place, data: DeadLeaves | ImageFiles) -> int:
    """Worker processes that decode files; made images cost less than passing them on."""
    return place.settings.local.cpus if isinstance(data, ImageFiles) else 0


def _asked(stop_file: Path) -> Callable[[], bool]:
    """Whether a stop was asked for; looks at the disk at most twice a second."""
    looked, found = 0.0, False

    def stop() -> bool:
        nonlocal looked, found
        if time.monotonic() - looked > 0.5:
            looked, found = time.monotonic(), stop_file.exists()
        return found

    return stop


class _Progress:
    """Leaves how far a stage without metrics has come in `folder`, at most twice a second."""

    def __init__(self, folder: Path, tell: Callable[[str, int, int], None] | None):
        self.path = folder / "progress.json"
        self.tell = tell
        self.written = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self.written > 0.5 or done >= total:
            self.written = time.monotonic()
            write_json(self.path, {"what": what, "done": done, "total": total})
            if self.tell is not None:
                self.tell(what, done, total)
