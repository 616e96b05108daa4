"""What the report shows of what was made with a sweep's models: pictures, fidelity, speed."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.evaluation.scores import Fidelity, fidelities
from pipelines.evaluation.throughput import machine_of, measurements
from pipelines.results.artifacts import EDITS, SAMPLES, Artifact, made_in
from pipelines.stages.graph import Stages, of_kind
from pipelines.stages.registry import TOKENIZER
from var_scaling.class_names import called, names_of
from var_scaling.evaluation.rates import Memory, Timing
from var_scaling.experiment import ImportedModel, Trial
from var_scaling.experiment.ledger import model_ledger
from var_scaling.models.registry import sampling_from

if TYPE_CHECKING:
    from analysis.report.html import ModelImages

_MODELS, _SETS, _EDITS = 4, 2, 3  # with pictures in the page; the rest is named
_HEADINGS = {"fid": "FID", "inception_score": "inception score", "kid": "KID"}
_NONE = "–"


class ReportImages(NamedTuple):
    """The fields of the report's facts of these names."""

    made: "tuple[ModelImages, ...]"
    unshown: str
    fidelity: list[dict[str, str]]
    speed: list[dict[str, str]]


class _Model(NamedTuple):
    address: str
    record: Trial | ImportedModel
    folder: Path


def exhibits(stages: Stages) -> ReportImages:
    """All of it, the largest model first."""
    models = _models(stages)
    with_pictures = [one for one in models if any(made.pictures for made in made_in(one.folder))]
    rest = [one.address for one in with_pictures[_MODELS:]]
    return ReportImages(
        tuple(_shown(one) for one in with_pictures[:_MODELS]),
        f"Of {', '.join(rest)} there are pictures on disk." if rest else "",
        _filled([*_of_samples(models), *_of_tokenizers(stages)]),
        _filled([row for one in models for row in _speed_rows(one)]),
    )


def folders(stages: Stages) -> list[Path]:
    """Where something may lie that the report shows."""
    tokenizers = [stage.directory for stage in of_kind(stages, TOKENIZER)]
    return [*(one.folder for one in _models(stages)), *tokenizers]


def _models(stages: Stages) -> list[_Model]:
    """The sweep's models, the largest first."""
    models = [
        _Model(stage.address, stage.config, stage.directory)
        for stage in stages
        if isinstance(stage.config, Trial | ImportedModel)
    ]
    return sorted(models, key=lambda one: -model_ledger(one.record)["params_blocks"])


def _shown(model: _Model) -> "ModelImages":
    from analysis.report.html import ModelImages

    found = [one for one in made_in(model.folder) if one.pictures]
    sets = sorted((one for one in found if one.kind == SAMPLES), key=_first_default)
    edits = [one for one in found if one.kind == EDITS]
    pictures = [
        (f"{model.address}, {_caption(one, picture, model)}", picture)
        for one in (*sets[:_SETS], *edits[:_EDITS])
        for picture in one.pictures
    ]
    rest = [one.place for one in (*sets[_SETS:], *edits[_EDITS:])]
    return ModelImages(
        model.address, tuple(pictures), f"Also on disk: {', '.join(rest)}." * bool(rest)
    )


def _first_default(made: Artifact) -> tuple[bool, str]:
    return made.name != "default", made.name


def _caption(made: Artifact, picture: Path, model: _Model) -> str:
    asked = made.record()
    if not asked:
        return made.place
    classes = model.record.classes
    names = names_of(model.folder, classes)
    how = _how(asked)
    if made.kind == EDITS:
        told = (
            "without a class"
            if asked["label"] == classes
            else f"class {called(asked['label'], names)}"
        )
        return f"edit {made.name}: {asked['kind']}, {told}, {how}"
    what = f"samples {made.name}: "
    if picture.stem == "strips":
        what += "how some of them came about, from left to right; "
    many = len(asked["classes"])
    told = "without a class"
    if many > 1:
        told = f"of each of {many} classes"
    elif asked["classes"] != [classes]:
        told = f"of class {called(asked['classes'][0], names)}"
    return what + f"{asked['count']:,} {told}, {how}"


def _how(asked: dict[str, Any]) -> str:
    """How images were drawn, and by whom chosen."""
    how = f"{sampling_from(asked['sampling']).describe()}, seed {asked['seed']}"
    if rejection := asked.get("rejection"):
        how += f", the best {rejection['rate']:.3g} by {rejection['classifier']}"
    return how


def _of_samples(models: Iterable[_Model]) -> Iterator[dict[str, str]]:
    for model in models:
        for made in made_in(model.folder):
            if made.kind == SAMPLES:
                asked = made.record()
                drawn = {"drawn": _how(asked)} if asked else {}
                for one in fidelities(made.folder):
                    yield _fidelity_row(model.address, made.name, drawn, one)


def _of_tokenizers(stages: Stages) -> Iterator[dict[str, str]]:
    for stage in of_kind(stages, TOKENIZER):
        for one in fidelities(stage.directory):
            yield _fidelity_row(stage.address, one.images, {}, one)


def _fidelity_row(
    address: str, images: str, drawn: dict[str, str], found: Fidelity
) -> dict[str, str]:
    of = "" if found.references is None else f", {found.references:,} images"
    scores = {
        _HEADINGS.get(name, name): f"{value:.4g}" + ("" if spread is None else f" ± {spread:.2g}")
        for name, (value, spread) in found.with_spreads.items()
    }
    return {
        "model": address,
        "images": images,
        **drawn,
        "count": f"{found.samples:,}",
        "reference": found.reference + of,
        "extractor": found.extractor,
        **scores,
    }


def _speed_rows(model: _Model) -> Iterator[dict[str, str]]:
    for one in measurements(model.folder):
        known = {"model": model.address, "machine": machine_of(one, ", ")}
        for row in one.sampling:
            yield {
                **known,
                "work": "sampling",
                "precision": row.precision,
                "guidance": ", ".join(filter(None, (f"{row.guidance:g}", row.settings))),
                "batch": str(row.batch),
                **_timed(row.whole, row.images_per_second, row.missing),
                "MFU": _share(row.transformer_mfu),
                "memory": _memory(row.memory),
            }
        for step in one.training:
            yield {
                **known,
                "work": "training",
                "precision": step.precision,
                "batch": str(step.micro_batch),
                **_timed(step.step, step.images_per_second, step.missing),
                "MFU": _share(step.mfu),
                "memory": _memory(step.memory),
                "tokens/s": _number(step.tokens_per_second),
            }


def _timed(timing: Timing | None, rate: float | None, missing: str | None) -> dict[str, str]:
    if timing is None:
        return {"images/s": missing or _NONE}
    span = f"{timing.least_seconds:.3g} to {timing.most_seconds:.3g}"
    return {
        "images/s": _number(rate),
        "seconds a batch": f"{timing.median_seconds:.3g}",
        "least to most": span,
    }


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1%}"


def _memory(memory: Memory) -> str:
    """Of the GPU, all of it; of a processor what the process grew by, and that is another thing."""
    if memory.gpu_peak_bytes is not None:
        return f"{memory.gpu_peak_bytes / 1e6:,.0f} MB"
    if memory.process_growth_bytes is not None:
        return f"+{memory.process_growth_bytes / 1e6:,.0f} MB"
    return _NONE


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _filled(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Under one heading for all; a dash where a row has nothing."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, _NONE) for name in names} for row in rows]
