"""Score a finished model on held-out images: one we trained, or one that was imported."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.loaded import load_generator
from pipelines.provenance import code_version
from pipelines.stages import Place, description, run_tokens
from var_scaling.class_names import order_doubt
from var_scaling.config import ImportedModel, Trial
from var_scaling.datasets import DeadLeaves, ImageFiles
from var_scaling.disk import read_json
from var_scaling.metrics import Line, MetricsLog

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Images:
    """Which image files to score on, and how they are cut (see ImageFiles)."""

    name: str | None
    enlarge: float
    validation_share: float


def evaluate_model(place: Place, address: str, images: Images, tell: Tell) -> Line:
    """Loss and error of the model at `address`, told the true label and, if it learnt to, none.

    A trial of our own is scored on its own data unless `images` has a name. For an imported model
    the result is kept, for its sweep's results table. `class_order` says, where it is there, why
    the order of the classes is not known to be the model's. Raises ValueError, Drift, DataError.
    """
    loaded = load_generator(place, address)
    generator, t = loaded.record, loaded.record.tokenizer
    data = _data_of(place, generator, images, address)
    run_tokens(place, t, data, "validation")

    from var_scaling.evaluation.likelihood import LABELS, evaluate, evaluation_flops
    from var_scaling.tokenizer.cache import open_cache
    from var_scaling.training.optim import arithmetic

    cache = open_cache(
        place.home.tokens(t.name, data.name, "validation"),
        description(place.home, t, data, "validation"),
    )
    ours = generator if isinstance(generator, Trial) else None
    doubt = None
    if ours is None or data.name != ours.data.name:
        doubt = order_doubt(loaded.names, cache.manifest.get("classes"))
    labels = LABELS[:1] if ours and ours.label_drop == 0 else LABELS
    with arithmetic(ours.precision if ours else "fp32", place.device()):
        scores = evaluate(
            loaded.model,
            loaded.tokenizer.quantize,
            cache,
            labels,
            lambda done, of: tell(f"scoring {address}", done, of),
        )
    spent = evaluation_flops(generator.model, t, cache.images, labels)
    line = {**scores, "data": data.name, "evaluation_flops": spent}
    if doubt is not None:
        line["class_order"] = doubt
    if ours is None:
        log = MetricsLog(loaded.folder / "metrics.jsonl")
        log("validation", 0, {**line, "commit": code_version()})
        log.close()
    return line


def _data_of(
    place: Place, generator: Trial | ImportedModel, images: Images, address: str
) -> DeadLeaves | ImageFiles:
    """The record of the images: the trial's own, that of the tokens that are here, or a new one."""
    if isinstance(generator, Trial) and images.name in (None, generator.data.name):
        return generator.data
    if images.name is None:
        raise ValueError(f"{address} was trained elsewhere: say on which images, with --data NAME")
    wanted = ImageFiles(
        name=images.name,
        side=generator.tokenizer.side,
        classes=generator.classes,
        enlarge=images.enlarge,
        validation_share=images.validation_share,
    )
    manifest = place.home.tokens(generator.tokenizer.name, wanted.name, "validation")
    if not (manifest / "manifest.json").exists():
        return wanted
    recorded = read_json(manifest / "manifest.json")["data"]
    return ImageFiles.model_validate_json(json.dumps(recorded))
