"""The final evaluation of a finished training, computed again where its log was damaged.

A function of weights and held-out data, so it is the number that was lost. The lines before it
cannot be computed again: those that can still be read are kept, and `done.json` says so.
"""

import time
from typing import Any

from pipelines.stages.attempt import Attempt
from pipelines.stages.context import RunContext
from pipelines.workspace.damage import LOG, WEIGHTS, damage_in, noted
from pipelines.workspace.provenance import code_version
from pipelines.workspace.store import weights_of
from var_scaling.config import TrainedTokenizer
from var_scaling.disk import DONE, read_json, write_json
from var_scaling.experiment import Trial
from var_scaling.metrics import Line, read_metrics


def evaluate_trial_again(
    context: RunContext, trial: Trial, quantizer: Any, held_out: Any, attempt: Attempt
) -> None:
    """Log what the weights of `trial` score on `held_out`. Raises WeightsError."""
    from var_scaling.training.trial import Trained, held_out_scores, progress_of
    from var_scaling.weights import load_weights

    with context.world() as world:

        def loaded(raw: bool) -> Any:
            model = trial.family.build(trial.spec, trial.seed)
            load_weights(model, *weights_of(attempt.folder, raw))
            return model.to(world.device)

        trained = Trained(loaded(False), loaded(True) if trial.weight_average > 0 else None)
        quantizer = quantizer.to(world.device)
        scores = held_out_scores(trial, trained, quantizer, held_out, trial.steps, world)
    seconds = _seconds_of(attempt, trial.steps)
    _note(attempt, trial.steps, {**scores, **progress_of(trial, trial.steps, seconds)})


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
    seconds = _seconds_of(attempt, t.steps)
    _note(attempt, t.steps, {**scores, **progress_of(t, t.steps, seconds)})


def _seconds_of(attempt: Attempt, steps: int) -> float:
    """How long the training took: as recorded, or by the rate of the last line that is left."""
    recorded = read_json(attempt.folder / DONE).get("seconds")
    if recorded is not None:
        return float(recorded)
    lines = [line for line in read_metrics(attempt.folder / LOG) if line.get("seconds")]
    return float(lines[-1]["seconds"]) * steps / lines[-1]["step"] if lines else 0.0


def _note(attempt: Attempt, steps: int, line: Line) -> None:
    if not attempt.process.first:
        return
    folder = attempt.folder
    found = damage_in(folder)
    marker = read_json(folder / DONE)
    attempt.log()("validation", steps, line)
    said = {
        "files": {} if found is None else found.files,
        "how": "the final evaluation was computed again; no other line could be checked",
        "commit": code_version(),
        "time": time.strftime("%F %T %z"),
    }
    if "files" not in marker:  # of a version that recorded none
        names = (WEIGHTS, "trial.json", "tokenizer.json")
        marker["files"] = {name: noted(folder / name) for name in names if (folder / name).exists()}
    marker["files"][LOG] = noted(folder / LOG)
    attempt.check()
    write_json(folder / DONE, {**marker, "repaired": [*marker.get("repaired", []), said]})
