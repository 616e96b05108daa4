"""Loss and error of a finished model on held-out images, for trained and imported models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.checkpoints.load import load_generator
from pipelines.stages.stages import RunContext, cache_description, run_tokens
from pipelines.workspace.provenance import code_version
from var_scaling.class_names import class_order_warning
from var_scaling.config import CacheKind, SomeTokenizer, Tokenizer
from var_scaling.datasets import DataRecord, ImageFiles
from var_scaling.disk import read_json
from var_scaling.experiment import ImportedModel, Trial
from var_scaling.metrics import Line, MetricsLog

if TYPE_CHECKING:
    from var_scaling.tokenizer.cache import TokenCache

ReportProgress = Callable[[str, int, int], None]
_ENLARGE = 1.125  # the crop of VAR's recipe (arXiv 2404.02905)


@dataclass(frozen=True)
class Images:
    """The image files to evaluate on, and how they are cropped (see ImageFiles)."""

    name: str | None
    enlarge: float | None = None  # None: as the training images; _ENLARGE for other images
    validation_share: float | None = None  # None: as the training images; 0 for other images


def evaluate_model(
    context: RunContext,
    address: str,
    images: Images,
    report_progress: ReportProgress,
    raw: bool = False,
) -> Line:
    """Loss and error of the model at `address`, class-conditional and, if it was trained with class
    dropout, unconditional.

    `raw`: of the last weights, if the model's weights are an average.

    A trial is evaluated on its own data unless `images` has a name. For an imported model, the
    result is saved for the results table. The key `class_order`, if present, says why the order of
    the classes may not be the model's. Raises ValueError, ConfigMismatchError, DataError.
    """
    loaded = load_generator(context, address, raw)
    generator, t = loaded.record, loaded.record.tokenizer
    data = _data_of(generator, images, address)
    cache = _encoded(context, t, data, generator.family.cache_kind(generator.model))

    from var_scaling.evaluation.likelihood import LABELS, evaluate, evaluation_flops
    from var_scaling.training.optim import precision_context

    trial = generator if isinstance(generator, Trial) else None
    # A trial's own data has the class order of its training. For other data, and for an imported
    # file, class k of the model may be another class of the data.
    doubt = None
    if trial is None or data.name != trial.data.name:
        doubt = class_order_warning(loaded.names, cache.manifest.get("classes"))
    # Without class dropout the null class was never trained, so it has no meaningful loss.
    labels = LABELS[:1] if trial and trial.class_dropout_prob == 0 else LABELS
    # A trial in the precision of its training, so that the scores equal those in its log.
    with precision_context(trial.precision if trial else "fp32", context.device()):
        scores = evaluate(
            generator.spec,
            loaded.model,
            loaded.tokenizer.quantize,
            cache,
            labels,
            lambda done, total: report_progress(f"scoring {address}", done, total),
        )
    flops = evaluation_flops(generator.spec, cache.images, labels)
    line = {**scores, "data": data.name, "evaluation_flops": flops}
    # results/table.py refuses models that were evaluated on different crops.
    if cut := data.crop_settings():
        line["cut"] = cut
    if doubt is not None:
        line["class_order"] = doubt
    # The log of a trial has the evaluations of its training. An imported model has no log and no
    # steps; step 0 stands for its only state.
    if trial is None:
        log = MetricsLog(loaded.folder / "metrics.jsonl")
        log("validation", 0, {**line, "commit": code_version()})
        log.close()
    return line


def _data_of(generator: Trial | ImportedModel, images: Images, address: str) -> DataRecord:
    """The record of the requested images: the trial's own data, or image files of another name."""
    options = {"enlarge": images.enlarge, "validation_share": images.validation_share}
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(generator, Trial) and images.name in (None, generator.data.name):
        if given and not generator.data.crop_settings():
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(
                f"{names}: applies to image files only; {generator.data.name} are generated images"
            )
        return generator.data.model_copy(update=given)
    if images.name is None:
        raise ValueError(f"{address} is imported: give the images to evaluate on with --data NAME")
    defaults = ImageFiles(
        name=images.name, side=generator.tokenizer.side, classes=generator.classes, enlarge=_ENLARGE
    )
    return defaults.model_copy(update=given)


def _encoded(
    context: RunContext, t: SomeTokenizer, data: DataRecord, kind: CacheKind
) -> "TokenCache":
    """The validation images of `data`, encoded unless this has been done."""
    from var_scaling.tokenizer.cache_files import open_cache

    tokens = _tokens_of(context, t, data, kind)
    run_tokens(context, t, data, "validation", output_dir=tokens, cache=kind)
    return open_cache(tokens, cache_description(context.home, t, data, "validation", kind))


def _tokens_of(context: RunContext, t: Tokenizer, data: DataRecord, kind: CacheKind) -> Path:
    """The folder for the tokens of exactly these images.

    It is the folder that sweeps use, if that holds tokens of these images. Else, because the name
    may stand for other images there, it is a folder with the record's hash in its name.
    """
    sweep_folder = context.home.tokens(t.name, data.name, "validation", kind)
    record = data.for_split("validation")
    # Compared as validation images: crops and flips of training images do not matter.
    manifest = sweep_folder / "manifest.json"
    if manifest.exists() and read_json(manifest).get("data") == record.model_dump(mode="json"):
        return sweep_folder
    return sweep_folder.with_name(f"{sweep_folder.name}-{record.fingerprint()[:8]}")
