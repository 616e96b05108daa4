"""Score a finished model on held-out images: one we trained, or one that was imported."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.checkpoints.load import load_generator
from pipelines.stages.stages import RunContext, description, run_tokens
from pipelines.workspace.provenance import code_version
from var_scaling.class_names import order_doubt
from var_scaling.config import CacheKind, Tokenizer
from var_scaling.datasets import DataRecord, ImageFiles
from var_scaling.disk import read_json
from var_scaling.experiment import ImportedModel, Trial
from var_scaling.metrics import Line, MetricsLog

ReportProgress = Callable[[str, int, int], None]
_ENLARGE = 1.125  # as VAR's recipe cuts images (arXiv 2404.02905)


@dataclass(frozen=True)
class Images:
    """Which image files to score on, and how they are cut (see ImageFiles)."""

    name: str | None
    enlarge: float | None = None  # None: as the model's own images, or _ENLARGE for others
    validation_share: float | None = None  # None: as the model's own images, or 0


def evaluate_model(
    context: RunContext,
    address: str,
    images: Images,
    report_progress: ReportProgress,
    raw: bool = False,
) -> Line:
    """Loss and error of the model at `address`, told the true label and, if it learnt to, none.

    `raw`: of the last weights, where the model's own are an average.

    A trial of our own is scored on its own data unless `images` has a name. For an imported model
    the result is kept, for its sweep's results table. `class_order` says, where it is there, why
    the order of the classes is not known to be the model's. Raises ValueError, Drift, DataError.
    """
    loaded = load_generator(context, address, raw)
    generator, t = loaded.record, loaded.record.tokenizer
    data = _data_of(generator, images, address)
    kind = generator.family.reads(generator.model)
    tokens = _tokens_of(context, t, data, kind)
    run_tokens(context, t, data, "validation", output_dir=tokens, cache=kind)

    from var_scaling.evaluation.likelihood import LABELS, evaluate, evaluation_flops
    from var_scaling.tokenizer.cache import open_cache
    from var_scaling.training.optim import precision_context

    cache = open_cache(tokens, description(context.home, t, data, "validation", kind))
    ours = generator if isinstance(generator, Trial) else None
    doubt = None
    if ours is None or data.name != ours.data.name:
        doubt = order_doubt(loaded.names, cache.manifest.get("classes"))
    labels = LABELS[:1] if ours and ours.class_dropout_prob == 0 else LABELS
    with precision_context(ours.precision if ours else "fp32", context.device()):
        scores = evaluate(
            generator.spec,
            loaded.model,
            loaded.tokenizer.quantize,
            cache,
            labels,
            lambda done, of: report_progress(f"scoring {address}", done, of),
        )
    spent = evaluation_flops(generator.spec, cache.images, labels)
    line = {**scores, "data": data.name, "evaluation_flops": spent}
    if cut := data.cut():
        line["cut"] = cut
    if doubt is not None:
        line["class_order"] = doubt
    if ours is None:
        log = MetricsLog(loaded.folder / "metrics.jsonl")
        log("validation", 0, {**line, "commit": code_version()})
        log.close()
    return line


def _data_of(generator: Trial | ImportedModel, images: Images, address: str) -> DataRecord:
    """The record of the images that are asked for: the trial's own, or files of another name."""
    said = {"enlarge": images.enlarge, "validation_share": images.validation_share}
    asked = {name: value for name, value in said.items() if value is not None}
    if isinstance(generator, Trial) and images.name in (None, generator.data.name):
        if asked and not generator.data.cut():
            options = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
            raise ValueError(f"{options}: {generator.data.name} are made images, which no file has")
        return generator.data.model_copy(update=asked)
    if images.name is None:
        raise ValueError(f"{address} was trained elsewhere: say on which images, with --data NAME")
    usual = ImageFiles(
        name=images.name, side=generator.tokenizer.side, classes=generator.classes, enlarge=_ENLARGE
    )
    return usual.model_copy(update=asked)


def _tokens_of(context: RunContext, t: Tokenizer, data: DataRecord, kind: CacheKind) -> Path:
    """Where the tokens of exactly these images are, or will be.

    Those of sweeps lie at a place by name; where other images of that name lie there, or nothing
    yet, the place has the record's hash in its name.
    """
    usual = context.home.tokens(t.name, data.name, "validation", kind)
    wanted = data.as_seen("validation")
    manifest = usual / "manifest.json"
    if manifest.exists() and read_json(manifest).get("data") == wanted.model_dump(mode="json"):
        return usual
    return usual.with_name(f"{usual.name}-{wanted.fingerprint()[:8]}")
