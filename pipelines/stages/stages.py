"""The code of the stages: functions that each write one folder and do not depend on Ray or Slurm.

A stage may be called again at any time: if it is done it returns at once, if it was interrupted it
resumes, and if its folder belongs to another config it raises ConfigMismatchError.
"""

import json
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any

from pydantic import TypeAdapter

from pipelines.stages.attempt import WAIT, Attempt, Stopped, at_work
from pipelines.stages.context import RunContext
from pipelines.stages.graph import Stage
from pipelines.stages.registry import SPLITS, TOKENIZER, TOKENS, TRIAL, how_to_import
from pipelines.stages.repair import evaluate_tokenizer_again, evaluate_trial_again
from pipelines.workspace.damage import LOG, RAW_WEIGHTS, WEIGHTS, is_complete, mark_done, status_of
from pipelines.workspace.store import Home, file_lock, init_run_dir, part_folders, weights_of
from var_scaling.class_names import CLASSES, save_names
from var_scaling.config import (
    AnyTokenizer,
    CacheKind,
    ImportedTokenizer,
    SomeTokenizer,
    TrainedTokenizer,
)
from var_scaling.datasets import Data, DataRecord, ReadOptions
from var_scaling.disk import DONE, file_sha256, is_done, read_json, write_json
from var_scaling.experiment import Trial
from var_scaling.experiment.trial import Start
from var_scaling.metrics import read_metrics

KEPT = "kept"  # subfolder with the checkpoints that other trials start from


def run(context: RunContext, payload: dict[str, Any]) -> str:
    """Run the stage that `payload` (execution.tasks.payload_of, plus "part") describes.

    Returns how it ended. Raises what the stage raises.
    """
    # Records are strict: only when they are validated as JSON does a list count as a tuple.
    if payload["kind"] == TRIAL.name:
        trial = Trial.model_validate_json(json.dumps(payload["trial"]))
        return run_trial(context, payload["sweep"], trial)
    t: Any = TypeAdapter(AnyTokenizer).validate_json(json.dumps(payload["tokenizer"]))
    if payload["kind"] == TOKENIZER.name:
        return run_tokenizer(context, t)
    data: Any = TypeAdapter(Data).validate_json(json.dumps(payload["data"]))
    part = tuple(payload["part"]) if payload["part"] else None
    return run_tokens(context, t, data, payload["split"], part, cache=payload["cache"])


def run_stage(stage: Stage, context: RunContext) -> str:
    """Run `stage`; returns how it ended. Raises what the stage raises."""
    config = stage.config
    if stage.kind == TOKENIZER:
        return run_tokenizer(context, config)
    if stage.kind == TOKENS:
        return run_tokens(context, config.tokenizer, config.data, config.split, cache=config.cache)
    if stage.kind == TRIAL:
        return run_trial(context, stage.sweep, config)
    payload = {"kind": stage.kind.name, "sweep": stage.sweep, "config": config.model_dump_json()}
    return str(import_module(stage.kind.module).run(context, payload))


def run_tokenizer(context: RunContext, t: SomeTokenizer) -> str:
    """Train `t` in its folder, or check that an imported tokenizer is there. Returns "done".

    Raises Stopped, Diverged, WeightsError, or ValueError if `t` must be imported first.
    """
    folder = context.home.tokenizer(t.name)
    with at_work(folder, context.process, context.requested_signal) as attempt:
        if isinstance(t, ImportedTokenizer) and not is_done(folder):
            raise ValueError(how_to_import(t))
        if context.process.first:
            init_run_dir(folder, "tokenizer.json", t)
        # The lock may have been held by another sweep that trained the same tokenizer.
        if is_complete(folder):
            return "done"
        assert isinstance(t, TrainedTokenizer)
        # All imports of torch are inside functions: `plan` and `status` must not load it.
        from var_scaling.training.tokenizer import train_tokenizer

        perceptual = _load_perceptual(context, t)
        facts = {} if perceptual is None else {"perceptual_sha256": perceptual.sha256}
        # Done but not complete: the log was damaged, and the weights are intact.
        if is_done(folder):
            held_out = _open_images(context, t.data, "validation", folder)
            evaluate_tokenizer_again(context, t, held_out, perceptual, attempt)
            return "done"
        attempt.begin(facts)
        training, held_out = (_open_images(context, t.data, split, folder) for split in SPLITS)
        if context.process.first:
            save_names(folder, training.classes, t.data.name)
        with context.world() as world:
            model = train_tokenizer(
                t,
                training,
                held_out,
                perceptual,
                folder / "checkpoint",
                attempt.log(),
                context.process.save_every,
                attempt.poll_signal,
                _reader_count(context, t.data),
                folder / "reconstructions.png",
                world,
                context.process.cpus,
            )
        _save_result(model, attempt, "tokenizer.json", facts)
        return "done"


def run_tokens(
    context: RunContext,
    t: SomeTokenizer,
    data: DataRecord,
    split: str,
    part: tuple[int, int] | None = None,
    output_dir: Path | None = None,
    cache: CacheKind = "tokens",
) -> str:
    """Encode `split` of `data`, or one `part` (index, number of parts) of it, with the trained `t`.

    `output_dir`: the folder to write; default: the one that all sweeps share. The process that
    finishes the last part joins the parts. Raises Stopped, DataError or CacheError.
    """
    output_dir = output_dir or context.home.tokens(t.name, data.name, split, cache)
    parts = [] if part is None else part_folders(output_dir, part[1])
    folder = output_dir if part is None else parts[part[0]]
    with at_work(folder, context.process, context.requested_signal) as attempt:
        from var_scaling.tokenizer.cache_files import array_file
        from var_scaling.tokenizer.encode import join_parts, record_latent_statistics, write_cache
        from var_scaling.tokenizer.model import load_tokenizer
        from var_scaling.training.optim import precision_context

        # For a part too: once the parts are joined, none of them is needed.
        if is_done(output_dir):
            return "done"
        # Opened even if this part is done, because joining the parts needs the images' labels.
        source = _open_images(context, data, split, folder)
        content = cache_description(context.home, t, data, split, cache)
        files = ("manifest.json", array_file(content), "labels.npy")
        model = load_tokenizer(t, *weights_of(context.home.tokenizer(t.name))).to(context.device())
        if not is_done(folder):
            attempt.begin({})
            # Set the precision here: tokens must not depend on settings left by earlier code.
            with precision_context(t.encode_precision, context.device()):
                complete = write_cache(
                    folder,
                    model,
                    source,
                    content,
                    _reader_count(context, data),
                    _Progress(folder, context),
                    attempt.stop,
                    part,
                    context.process.cpus,
                )
            if not complete:
                raise Stopped(f"encoding of {folder.name} stopped; finished shards are on disk")
            # The statistics of a part are not needed: they are computed for the joined cache.
            if part is None:
                record_latent_statistics(output_dir, model.quantize)
            attempt.finish({"status": "done"}, files)
        # Two jobs that finish at the same time may both join: `join_parts` is safe to repeat.
        if parts and all(is_done(part_folder) for part_folder in parts):
            join_parts(output_dir, parts, source, content)
            record_latent_statistics(output_dir, model.quantize)
            mark_done(output_dir, {"status": "done"}, files)
        return "done"


def run_trial(context: RunContext, sweep: str, trial: Trial) -> str:
    """Train `trial` in its folder. Returns "done" or "diverged"; raises Stopped or CacheError."""
    folder = context.home.trial(sweep, trial.name)
    with at_work(folder, context.process, context.requested_signal) as attempt:
        # Every process runs this function; only rank 0 writes to the folder.
        if context.process.first:
            init_run_dir(folder, "trial.json", trial)
        if is_complete(folder):
            return status_of(folder)
        from var_scaling.tokenizer.model import load_tokenizer
        from var_scaling.training.loop import Diverged
        from var_scaling.training.trial import train

        repair = is_done(folder)  # done but not `is_complete`: a damaged log that can be recomputed
        if not repair:
            attempt.begin({})
        t = trial.tokenizer
        tokenizer = load_tokenizer(t, *weights_of(context.home.tokenizer(t.name)))
        held_out = _open_tokens(context, trial, "validation")
        if repair:
            evaluate_trial_again(context, trial, tokenizer.quantize, held_out, attempt)
            return "done"
        training = _open_tokens(context, trial, "train")
        if context.process.first:
            save_names(folder, training.manifest.get("classes"), trial.data.name)
        try:
            with context.world() as world:
                trained = train(
                    trial,
                    tokenizer.quantize,
                    training,
                    held_out,
                    folder / "checkpoint",
                    attempt.log(),
                    context.process.save_every,
                    attempt.poll_signal,
                    world,
                    folder / KEPT,
                    None if trial.start is None else _start_checkpoint(context, sweep, trial.start),
                    context.process.compile,
                    attempt.note_compilation,
                )
        except Diverged as error:
            # A result, not a failure: the trial is not run again.
            if context.process.first:
                attempt.finish({"status": "diverged", "reason": str(error)}, ("trial.json", LOG))
            return "diverged"
        _save_result(trained.model, attempt, "trial.json", {}, trained.raw)
        return "done"


def _start_checkpoint(context: RunContext, sweep: str, start: Start) -> Path:
    """The checkpoint file that `start` names. Raises ValueError if it does not exist."""
    from var_scaling.training.checkpoint import checkpoint_name

    path = context.home.trial(sweep, start.trial.name) / KEPT / checkpoint_name(start.step)
    if not path.exists():
        raise ValueError(
            f"{path} does not exist: trial {start.trial.name} kept no checkpoint of step "
            f"{start.step}"
        )
    return path


def _save_result(
    model: Any, attempt: Attempt, record: str, facts: dict[str, Any], raw: Any = None
) -> None:
    """Save the weights, then write the `done` marker, then delete the checkpoints."""
    from var_scaling.training.checkpoint import clear
    from var_scaling.weights import save_weights

    if not attempt.process.first:
        return
    # An older attempt must not overwrite the weights of a newer one.
    attempt.check()
    weights, files = attempt.folder / WEIGHTS, [WEIGHTS]
    save_weights(model, weights)
    last = read_metrics(attempt.folder / LOG)[-1]
    marker = {"status": "done", "weights_sha256": file_sha256(weights), **facts}
    if raw is not None:
        save_weights(raw, attempt.folder / RAW_WEIGHTS)
        marker["raw_weights_sha256"] = file_sha256(attempt.folder / RAW_WEIGHTS)
        files.append(RAW_WEIGHTS)
    marker["seconds"] = last["seconds"]
    if (attempt.folder / CLASSES).exists():
        files.append(CLASSES)
    attempt.finish(marker, (*files, record, LOG))
    clear(attempt.folder / "checkpoint")


def _open_tokens(context: RunContext, trial: Trial, split: str) -> Any:
    """Open the cached tokens of `split`. Only rank 0 verifies the checksums, to read them once."""
    from var_scaling.tokenizer.cache_files import open_cache

    t, home = trial.tokenizer, context.home
    kind = trial.family.cache_kind(trial.model)
    folder = home.tokens(t.name, trial.data.name, split, kind)
    expected = cache_description(home, t, trial.data, split, kind)
    return open_cache(folder, expected, check=context.process.first)


def _load_perceptual(context: RunContext, t: TrainedTokenizer) -> Any:
    if t.losses.perceptual == 0:
        return None
    from var_scaling.tokenizer.perceptual import load_perceptual

    return load_perceptual(context.settings.weights.lpips, t.losses.perceptual_sha256)


def _open_images(context: RunContext, data: DataRecord, split: str, folder: Path) -> Any:
    """Open the images of `split`; on first use this surveys the files. Raises DataError."""
    from var_scaling.data.dataset import open_images

    survey, root = (
        context.home.image_listing(data.name, split),
        context.settings.data_root(data.name),
    )
    # Stages that run at the same time must not survey the same files twice.
    lock = file_lock(survey, wait=WAIT) if root else nullcontext()
    with lock:
        reading = ReadOptions(
            root, survey, _reader_count(context, data), _Progress(folder, context)
        )
        return open_images(data, split, reading)


def cache_description(
    home: Home, t: SomeTokenizer, data: DataRecord, split: str, kind: CacheKind = "tokens"
) -> dict[str, Any]:
    """What the token cache of `split` was made from, as its manifest records it."""
    from var_scaling.tokenizer.cache_files import describe

    # The hash of the weights, so that tokens of a tokenizer that was trained again are refused.
    weights = read_json(home.tokenizer(t.name) / DONE)["weights_sha256"]
    return describe(t, weights, data, split, kind)


def _reader_count(context: RunContext, data: DataRecord) -> int:
    """Number of processes that read images; 0 for synthetic images, which are cheaper to compute
    than to send between processes.
    """
    return context.process.workers if data.reads_files else 0


class _Progress:
    """Writes the progress of a stage without a metrics log to `folder`, at most twice a second."""

    def __init__(self, folder: Path, context: RunContext):
        self.path, self.context = folder / "progress.json", context
        self.written = 0.0

    def __call__(self, task: str, done: int, total: int) -> None:
        if not self.context.process.first:
            return
        if monotonic() - self.written > 0.5 or done >= total:
            self.written = monotonic()
            write_json(self.path, {"what": task, "done": done, "total": total})
            if self.context.report_progress is not None:
                self.context.report_progress(task, done, total)
