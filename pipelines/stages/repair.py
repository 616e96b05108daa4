"""Recompute the final evaluation of a finished training whose metrics log was damaged.

The evaluation depends only on the weights and the held-out data, so it gives the lost number. The
earlier lines cannot be recomputed: those that are readable are kept, and `done.json` records it.
"""

import time
from typing import Any

from pipelines.stages.attempt import Attempt
from pipelines.stages.context import RunContext
from pipelines.workspace.damage import LOG, WEIGHTS, damage_in, file_entry
from pipelines.workspace.provenance import code_version
from pipelines.workspace.store import weights_of
from var_scaling.config import TrainedTokenizer
from var_scaling.disk import DONE, read_json, write_json
from var_scaling.experiment import Trial
from var_scaling.metrics import Line, read_metrics


def evaluate_trial_again(
    context: RunContext, trial: Trial, quantizer: Any, held_out: Any, attempt: Attempt
) -> None:
    """Log the scores of the weights of `trial` on `held_out`. Raises WeightsError."""
    from var_scaling.training.trial import TrainedModel, held_out_scores, progress_of
    from var_scaling.weights import load_weights

    with context.world() as world:

        def load_model(raw: bool) -> Any:
            model = trial.family.build(trial.spec, trial.seed)
            load_weights(model, *weights_of(attempt.folder, raw))
            return model.to(world.device)

        # With weight averaging, the folder holds the averaged and the raw weights.
        trained = TrainedModel(
            load_model(False), load_model(True) if trial.weight_average > 0 else None
        )
        quantizer = quantizer.to(world.device)
        scores = held_out_scores(trial, trained, quantizer, held_out, trial.steps, world)
    seconds = _training_seconds(attempt, trial.steps)
    _record_repair(attempt, trial.steps, {**scores, **progress_of(trial, trial.steps, seconds)})


def evaluate_tokenizer_again(
    context: RunContext, t: TrainedTokenizer, held_out: Any, perceptual: Any, attempt: Attempt
) -> None:
    """Log how well the tokenizer `t` reconstructs `held_out`. Raises WeightsError."""
    from var_scaling.evaluation.reconstruction import reconstruct
    from var_scaling.tokenizer.model import load_tokenizer
    from var_scaling.training.tokenizer import progress_of

    if not context.process.first:
        return
    model = load_tokenizer(t, *weights_of(attempt.folder)).to(context.device())
    scores = reconstruct(t, model, held_out, context.device(), perceptual).scores
    seconds = _training_seconds(attempt, t.steps)
    _record_repair(attempt, t.steps, {**scores, **progress_of(t, t.steps, seconds)})


def _training_seconds(attempt: Attempt, steps: int) -> float:
    """Duration of the training in seconds: as recorded in `done.json`, else extrapolated from the
    last readable line of the log, else 0.
    """
    recorded = read_json(attempt.folder / DONE).get("seconds")
    if recorded is not None:
        return float(recorded)
    # Only a `done.json` of an older version lacks the duration.
    lines = [line for line in read_metrics(attempt.folder / LOG) if line.get("seconds")]
    return float(lines[-1]["seconds"]) * steps / lines[-1]["step"] if lines else 0.0


def _record_repair(attempt: Attempt, steps: int, line: Line) -> None:
    """Append `line` to the log; record the repair and the log's new checksum in `done.json`."""
    if not attempt.process.first:
        return
    folder = attempt.folder
    damage = damage_in(folder)  # before the log is written: what was damaged
    marker = read_json(folder / DONE)
    attempt.log()("validation", steps, line)
    repair = {
        "files": {} if damage is None else damage.files,
        "how": "the final evaluation was computed again; no other line could be checked",
        "commit": code_version(),
        "time": time.strftime("%F %T %z"),
    }
    if "files" not in marker:  # written by a version that recorded no checksums
        names = (WEIGHTS, "trial.json", "tokenizer.json")
        marker["files"] = {
            name: file_entry(folder / name) for name in names if (folder / name).exists()
        }
    marker["files"][LOG] = file_entry(folder / LOG)
    attempt.check()
    # Last: if this process is killed before, the log still counts as damaged, and `run` repeats the
    # repair.
    write_json(folder / DONE, {**marker, "repaired": [*marker.get("repaired", []), repair]})
