"""Score a finished model on held-out images: one we trained, or one that was imported."""

from collections.abc import Callable

from pipelines.address import finished, read_generator
from pipelines.stages import Place, description, run_tokens
from var_scaling.config import ImportedModel, Trial
from var_scaling.datasets import DeadLeaves, ImageFiles
from var_scaling.results import Line, MetricsLog

Tell = Callable[[str, int, int], None]


def evaluate_model(place: Place, address: str, data_name: str | None, tell: Tell) -> Line:
    """Loss and error of the model at `address`, told the true label and told none.

    `data_name` names image files; a trial of our own is scored on its own data without it. For an
    imported model the result is kept, for its sweep's results table. Raises ValueError.
    """
    folder = finished(place.home, address)
    generator = read_generator(folder)
    data = _data_of(generator, data_name, address)
    run_tokens(place, generator.tokenizer, data, "validation")

    from var_scaling.evaluation.likelihood import LABELS, evaluate, evaluation_flops
    from var_scaling.models.var import VAR
    from var_scaling.tokenizer.cache import open_cache
    from var_scaling.tokenizer.model import load_tokenizer
    from var_scaling.training.optim import arithmetic
    from var_scaling.weights import load_weights

    t, device = generator.tokenizer, place.world().device
    cache = open_cache(
        place.home.tokens(t.name, data.name, "validation"),
        description(place.home, t, data, "validation"),
    )
    tokenizer = load_tokenizer(t, place.home.tokenizer(t.name) / "weights.safetensors").to(device)
    model = VAR(generator.model, t, generator.classes, seed=0)
    load_weights(model, folder / "weights.safetensors")
    precision = generator.precision if isinstance(generator, Trial) else "fp32"
    with arithmetic(precision, device):
        scores = evaluate(
            model.to(device),
            tokenizer.quantize,
            cache,
            LABELS,
            lambda done, of: tell(f"scoring {address}", done, of),
        )
    spent = evaluation_flops(generator.model, t, cache.images, LABELS)
    line = {**scores, "data": data.name, "evaluation_flops": spent}
    if isinstance(generator, ImportedModel):
        log = MetricsLog(folder / "metrics.jsonl")
        log("validation", 0, line)
        log.close()
    return line


def _data_of(
    generator: Trial | ImportedModel, name: str | None, address: str
) -> DeadLeaves | ImageFiles:
    if isinstance(generator, Trial) and name in (None, generator.data.name):
        return generator.data
    if name is None:
        raise ValueError(f"{address} was trained elsewhere: say on which images, with --data NAME")
    return ImageFiles(
        name=name, side=generator.tokenizer.side, classes=generator.classes, enlarge=1.125
    )
