"""The stages of a sweep's scorings.

They draw a set of samples and compare it with held-out images, compare a tokenizer's
reconstructions with the same images, and train a classifier whose features are compared.
"""

from time import monotonic
from typing import Any

from pipelines.sampling.request import SampleOptions, plan_set
from pipelines.stages.attempt import Attempt, Stopped, at_work
from pipelines.stages.context import RunContext
from pipelines.stages.registry import FLOOR, NETWORK, SPLITS
from pipelines.workspace.damage import WEIGHTS, is_complete
from pipelines.workspace.store import file_lock, init_run_dir
from var_scaling.disk import file_sha256, write_json
from var_scaling.experiment.scoring import FeatureNetwork, ReconstructionFloor, ScoredSet

_WAIT = 24 * 3600.0  # seconds to wait while another process draws the same set


def run(context: RunContext, payload: dict[str, Any]) -> str:
    """Run the stage that is given as JSON. Returns "done"; raises Stopped, ValueError."""
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
        if is_complete(folder):
            return "done"
        attempt.begin({})
        address = f"{sweep}/{trial.name}"
        given = config.sampling.model_dump(exclude={"family"}, exclude_unset=False)
        guided = config.sampling.guided
        if not guided:  # a model that was trained without a null class has no guidance
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
        from pipelines.sampling.draw import DrawOptions, sample_set

        report_progress = _Progress(attempt, context)
        # The stages of several networks score one set: the first draws it, the others wait and then
        # find it done.
        with file_lock(plan.folder, wait=_WAIT):
            remaining = sample_set(context, plan, DrawOptions(), attempt.stop, report_progress)
        if remaining:
            raise RuntimeError(
                f"{plan.folder}: files that were written are missing; check the disk"
            )
        scores = _score_samples(context, address, scoring.name, config, report_progress)
        attempt.finish({"status": "done", **scores}, ("score.json",))
    return "done"


def _run_floor(context: RunContext, floor: ReconstructionFloor) -> str:
    t = floor.tokenizer
    folder = context.home.tokenizer(t.name) / "floors" / floor.of_tokenizer
    with at_work(folder, context.process, context.requested_signal) as attempt:
        init_run_dir(folder, "floor.json", floor)
        if is_complete(folder):
            return "done"
        attempt.begin({})
        from pipelines.evaluation.fid import extractor_named, score_image_set
        from pipelines.evaluation.image_sets import ImageSet, image_set
        from pipelines.evaluation.reference_stats import (
            MAX_REFERENCE_IMAGES,
            CropOptions,
            batches_of,
            real_data,
            real_images,
            reference_of,
        )
        from var_scaling.data.order import spread_rows

        report_progress, address = _Progress(attempt, context), f"tokenizers/{t.name}"
        # Training images are reconstructed and compared with held-out ones, so no image is on both
        # sides. There are as many as samples, because the bias of a Fréchet distance depends on the
        # number of images (arXiv 1911.07023).
        against = f"{floor.data.name}-train"
        reconstructions = image_set(
            context, address, None, against, floor.images, CropOptions(), floor.cache
        )
        extractor = extractor_named(context, floor.extractor, floor.data)
        data = real_data(context, floor.data.name, "validation", t.side, floor.data, CropOptions())
        reference = reference_of(
            context, data, "validation", extractor, MAX_REFERENCE_IMAGES, report_progress
        )
        reconstructed = score_image_set(
            context, address, reconstructions, reference, extractor, report_progress
        ).fidelity
        source = real_images(context, data, "train")
        rows = spread_rows(source.rows, floor.images)
        training_images = ImageSet(
            description=f"images of {against}",
            folder=None,
            set=None,
            reconstructed=False,
            count=len(rows),
            side=t.side,
            data=floor.data,
            default_reference=None,
            batches=lambda: batches_of(context, source, data, rows),
        )
        # The distance of the training images themselves, without any reconstruction.
        original = score_image_set(
            context, against, training_images, reference, extractor, report_progress
        ).fidelity
        distances = {
            **_distance(reconstructed),
            "distance_of_images": _distance(original)["distance"],
        }
        measured_with = {"reference": reference.name, "extractor_sha256": extractor.sha256}
        attempt.finish({"status": "done", **distances, **measured_with}, ("floor.json",))
    return "done"


def _run_network(context: RunContext, config: FeatureNetwork) -> str:
    folder = context.home.network(config.data.name)
    with at_work(folder, context.process, context.requested_signal) as attempt:
        init_run_dir(folder, "network.json", config)
        if is_complete(folder):
            return "done"
        attempt.begin({})

        from pipelines.evaluation.reference_stats import real_images
        from var_scaling.evaluation.classifier import train_classifier
        from var_scaling.process import prepare_process
        from var_scaling.weights import save_weights

        prepare_process(context.process.threads)
        training, held_out = (real_images(context, config.data, split) for split in SPLITS)
        report_progress = _Progress(attempt, context)
        network, accuracy = train_classifier(
            config, training, held_out, context.device(), report_progress
        )
        save_weights(network, folder / WEIGHTS)
        result = {"accuracy": accuracy, "weights_sha256": file_sha256(folder / WEIGHTS)}
        attempt.finish({"status": "done", **result}, ("network.json", WEIGHTS))
    return "done"


def _score_samples(
    context: RunContext, address: str, name: str, config: ScoredSet, report_progress: "_Progress"
) -> dict[str, Any]:
    from pipelines.evaluation.fid import FidelityOptions, measure_fidelity

    against = f"{config.trial.data.name}-validation"
    options = FidelityOptions(set=name, extractor=config.extractor, against=against)
    fidelity = measure_fidelity(context, address, options, report_progress).fidelity
    return {
        **_distance(fidelity),
        "samples": fidelity.samples,
        "reference": fidelity.reference,
        "extractor_sha256": fidelity.extractor_sha256,
    }


def _distance(fidelity: Any) -> dict[str, float | None]:
    """The Fréchet distance with any feature network, and its standard error if it has one."""
    from var_scaling.evaluation.extractors import metric_name

    name = metric_name("fid", fidelity.extractor)
    return {
        "distance": fidelity.scores[name],
        "distance_stderr": fidelity.scores.get(f"{name}_stderr"),
    }


class _Progress:
    """Writes a stage's progress at most twice a second, and raises Stopped if it must stop."""

    def __init__(self, attempt: Attempt, context: RunContext):
        self.attempt, self.context, self.written = attempt, context, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if monotonic() - self.written > 0.5 or done >= total:
            self.written = monotonic()
            progress = {"what": what, "done": done, "total": total}
            write_json(self.attempt.folder / "progress.json", progress)
            if self.context.report_progress is not None:
                self.context.report_progress(what, done, total)
        # At the end only the result is left to save, so a stop is ignored there.
        if self.attempt.stop(done) and done < total:
            raise Stopped(f"{what}: stopped; run again to continue")
