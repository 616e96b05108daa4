"""What a sweep's scorings ask for, as stages: draw a set of samples and compare it with images held
out; compare a tokenizer's reconstructions with the same images; train a network that looks.
"""

from time import monotonic
from typing import Any

from pipelines.sampling.request import SampleOptions, plan_set
from pipelines.stages.attempt import Attempt, Stopped, at_work
from pipelines.stages.context import RunContext
from pipelines.stages.registry import FLOOR, NETWORK, SPLITS
from pipelines.workspace.damage import WEIGHTS, ended
from pipelines.workspace.store import file_lock, init_run_dir
from var_scaling.disk import file_sha256, write_json
from var_scaling.experiment.scoring import FeatureNetwork, ReconstructionFloor, ScoredSet

_WAIT = 24 * 3600.0  # seconds, while another process draws the same set


def run(context: RunContext, payload: dict[str, Any]) -> str:
    """What a stage does that is given as JSON. Returns "done"; raises Stopped, ValueError."""
    if payload["kind"] == FLOOR.name:
        return _run_floor(context, ReconstructionFloor.model_validate_json(payload["config"]))
    if payload["kind"] == NETWORK.name:
        return _run_network(context, FeatureNetwork.model_validate_json(payload["config"]))
    return _run_score(context, payload["sweep"], ScoredSet.model_validate_json(payload["config"]))


def _run_score(context: RunContext, sweep: str, config: ScoredSet) -> str:
    trial, scoring = config.trial, config.scoring
    folder = context.home.trial(sweep, trial.name) / "scores" / f"{scoring.name}-{config.extractor}"
    with at_work(folder, context.process, context.requested_signal) as attempt:
        init_run_dir(folder, "score.json", config)
        if ended(folder):
            return "done"
        attempt.begin({})
        address = f"{sweep}/{trial.name}"
        given = config.sampling.model_dump(exclude={"family"}, exclude_unset=False)
        guided = config.sampling.guided
        if not guided:  # said or not, there is none: a model without null labels is sampled so
            given["guidance"] = 0.0
        plan = plan_set(
            context,
            address,
            SampleOptions(
                classes="all",
                count=scoring.count,
                seed=scoring.seed,
                name=scoring.name,
                sampling=given,
                raw=scoring.raw,
            ),
        )
        from pipelines.sampling.draw import How, sample_set

        report_progress = _Progress(attempt, context)
        with file_lock(plan.folder, wait=_WAIT):
            left = sample_set(context, plan, How(), attempt.stop, report_progress)
        if left:
            raise RuntimeError(f"{plan.folder} does not keep what is written")
        found = _compared(context, address, scoring.name, config, report_progress)
        attempt.finish({"status": "done", **found}, ("score.json",))
    return "done"


def _run_floor(context: RunContext, floor: ReconstructionFloor) -> str:
    t = floor.tokenizer
    folder = context.home.tokenizer(t.name) / "floors" / floor.of_tokenizer
    with at_work(folder, context.process, context.requested_signal) as attempt:
        init_run_dir(folder, "floor.json", floor)
        if ended(folder):
            return "done"
        attempt.begin({})
        from pipelines.evaluation.fid import compared, extractor_named
        from pipelines.evaluation.image_sets import ImageSet, image_set
        from pipelines.evaluation.reference_stats import (
            MOST,
            Cut,
            batches_of,
            real_data,
            real_images,
            reference_of,
        )
        from var_scaling.data.order import spread_rows

        report_progress, address = _Progress(attempt, context), f"tokenizers/{t.name}"
        against = f"{floor.data.name}-train"
        rebuilt = image_set(context, address, None, against, floor.images, Cut(), floor.cache)
        extractor = extractor_named(context, floor.extractor, floor.data)
        data = real_data(context, floor.data.name, "validation", t.side, floor.data, Cut())
        reference = reference_of(context, data, "validation", extractor, MOST, report_progress)
        found = compared(context, address, rebuilt, reference, extractor, report_progress).fidelity
        source = real_images(context, data, "train")
        rows = spread_rows(source.rows, floor.images)
        real = ImageSet(
            called=f"images of {against}",
            folder=None,
            set=None,
            rebuilt=False,
            count=len(rows),
            side=t.side,
            data=floor.data,
            real=None,
            batches=lambda: batches_of(context, source, data, rows),
        )
        itself = compared(context, against, real, reference, extractor, report_progress).fidelity
        distances = {**_distance(found), "distance_of_images": _distance(itself)["distance"]}
        kept = {"reference": reference.name, "extractor_sha256": extractor.sha256}
        attempt.finish({"status": "done", **distances, **kept}, ("floor.json",))
    return "done"


def _run_network(context: RunContext, config: FeatureNetwork) -> str:
    folder = context.home.network(config.data.name)
    with at_work(folder, context.process, context.requested_signal) as attempt:
        init_run_dir(folder, "network.json", config)
        if ended(folder):
            return "done"
        attempt.begin({})
        import torch

        from pipelines.evaluation.reference_stats import real_images
        from var_scaling.evaluation.classifier import train_classifier
        from var_scaling.weights import save_weights

        torch.set_num_threads(context.process.threads)
        training, held_out = (real_images(context, config.data, split) for split in SPLITS)
        report_progress = _Progress(attempt, context)
        network, right = train_classifier(
            config, training, held_out, context.device(), report_progress
        )
        save_weights(network, folder / WEIGHTS)
        found = {"accuracy": right, "weights_sha256": file_sha256(folder / WEIGHTS)}
        attempt.finish({"status": "done", **found}, ("network.json", WEIGHTS))
    return "done"


def _compared(
    context: RunContext, address: str, name: str, config: ScoredSet, report_progress: "_Progress"
) -> dict[str, Any]:
    from pipelines.evaluation.fid import FidelityOptions, measure_fidelity

    against = f"{config.trial.data.name}-validation"
    asked = FidelityOptions(set=name, extractor=config.extractor, against=against)
    found = measure_fidelity(context, address, asked, report_progress).fidelity
    return {
        **_distance(found),
        "samples": found.samples,
        "reference": found.reference,
        "extractor_sha256": found.extractor_sha256,
    }


def _distance(found: Any) -> dict[str, float | None]:
    """The Fréchet distance, whichever network looked, and its standard error if it has one."""
    from var_scaling.evaluation.extractors import metric_name

    name = metric_name("fid", found.extractor)
    return {
        "distance": found.scores[name],
        "distance_stderr": found.scores.get(f"{name}_stderr"),
    }


class _Progress:
    """Leaves how far a stage has come, at most twice a second, and asks whether to stop."""

    def __init__(self, attempt: Attempt, context: RunContext):
        self.attempt, self.context, self.written = attempt, context, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if monotonic() - self.written > 0.5 or done >= total:
            self.written = monotonic()
            progress = {"what": what, "done": done, "total": total}
            write_json(self.attempt.folder / "progress.json", progress)
            if self.context.report_progress is not None:
                self.context.report_progress(what, done, total)
        if self.attempt.stop(done) and done < total:
            raise Stopped(f"{what} stopped; run again to go on")
