"""The report's samples, edits, fidelity and speed of a sweep's models."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.evaluation.scores import Fidelity, fidelities
from pipelines.evaluation.throughput import machine_name, read_benchmarks
from pipelines.results.artifacts import EDITS, SAMPLES, Artifact, artifacts_in
from pipelines.stages.graph import Stages, of_kind
from pipelines.stages.registry import TOKENIZER
from var_scaling.class_names import class_label, load_names
from var_scaling.evaluation.rates import Memory, Timing
from var_scaling.experiment import ImportedModel, Trial
from var_scaling.experiment.ledger import model_ledger
from var_scaling.models.registry import sampling_from

if TYPE_CHECKING:
    from analysis.report.html import ModelImages

_MODELS, _SETS, _EDITS = 4, 2, 3  # most shown as images; the rest is listed by name
_HEADINGS = {"fid": "FID", "inception_score": "inception score", "kid": "KID"}
_NONE = "–"


class ReportImages(NamedTuple):
    """The fields of `Facts` with the same names."""

    made: "tuple[ModelImages, ...]"
    unshown: str
    fidelity: list[dict[str, str]]
    speed: list[dict[str, str]]


class _Model(NamedTuple):
    address: str
    record: Trial | ImportedModel
    folder: Path


def report_images(stages: Stages) -> ReportImages:
    """Images, fidelity and speed of all models, the largest model first."""
    models = _models(stages)
    with_pictures = [
        model for model in models if any(made.pictures for made in artifacts_in(model.folder))
    ]
    rest = [model.address for model in with_pictures[_MODELS:]]
    return ReportImages(
        tuple(_model_images(model) for model in with_pictures[:_MODELS]),
        f"Images of {', '.join(rest)} are on disk." if rest else "",
        _same_columns([*_sample_rows(models), *_tokenizer_rows(stages)]),
        _same_columns([row for model in models for row in _speed_rows(model)]),
    )


def artifact_folders(stages: Stages) -> list[Path]:
    """The folders whose artifacts the report shows."""
    tokenizers = [stage.directory for stage in of_kind(stages, TOKENIZER)]
    return [*(model.folder for model in _models(stages)), *tokenizers]


def _models(stages: Stages) -> list[_Model]:
    """The sweep's models, the largest first."""
    models = [
        _Model(stage.address, stage.config, stage.directory)
        for stage in stages
        if isinstance(stage.config, Trial | ImportedModel)
    ]
    return sorted(models, key=lambda model: -model_ledger(model.record)["params_blocks"])


def _model_images(model: _Model) -> "ModelImages":
    from analysis.report.html import ModelImages

    artifacts = [artifact for artifact in artifacts_in(model.folder) if artifact.pictures]
    sets = sorted((artifact for artifact in artifacts if artifact.kind == SAMPLES), key=_set_order)
    edits = [artifact for artifact in artifacts if artifact.kind == EDITS]
    pictures = [
        (f"{model.address}, {_caption(artifact, picture, model)}", picture)
        for artifact in (*sets[:_SETS], *edits[:_EDITS])
        for picture in artifact.pictures
    ]
    rest = [artifact.path for artifact in (*sets[_SETS:], *edits[_EDITS:])]
    return ModelImages(
        model.address, tuple(pictures), f"Also on disk: {', '.join(rest)}." * bool(rest)
    )


def _set_order(artifact: Artifact) -> tuple[bool, str]:
    """Sort key: the set `default` first, then by name."""
    return artifact.name != "default", artifact.name


def _caption(artifact: Artifact, picture: Path, model: _Model) -> str:
    options = artifact.record()
    if not options:
        return artifact.path
    classes = model.record.classes
    names = load_names(model.folder, classes)
    settings = _describe_sampling(options)
    if artifact.kind == EDITS:
        label = (
            "without a class"
            if options["label"] == classes
            else f"class {class_label(options['label'], names)}"
        )
        return f"edit {artifact.name}: {options['kind']}, {label}, {settings}"
    title = f"samples {artifact.name}: "
    if picture.stem == "strips":
        title += "intermediate steps of some samples, from left to right; "
    class_count = len(options["classes"])
    label = "without a class"
    if class_count > 1:
        label = f"of each of {class_count} classes"
    elif options["classes"] != [classes]:
        label = f"of class {class_label(options['classes'][0], names)}"
    return title + f"{options['count']:,} {label}, {settings}"


def _describe_sampling(options: dict[str, Any]) -> str:
    """The sampling settings, the seed and the rejection rate as text."""
    text = f"{sampling_from(options['sampling']).describe()}, seed {options['seed']}"
    if rejection := options.get("rejection"):
        text += f", the best {rejection['rate']:.3g} by {rejection['classifier']}"
    return text


def _sample_rows(models: Iterable[_Model]) -> Iterator[dict[str, str]]:
    for model in models:
        for artifact in artifacts_in(model.folder):
            if artifact.kind == SAMPLES:
                options = artifact.record()
                settings = {"drawn": _describe_sampling(options)} if options else {}
                for fidelity in fidelities(artifact.folder):
                    yield _fidelity_row(model.address, artifact.name, settings, fidelity)


def _tokenizer_rows(stages: Stages) -> Iterator[dict[str, str]]:
    for stage in of_kind(stages, TOKENIZER):
        for fidelity in fidelities(stage.directory):
            yield _fidelity_row(stage.address, fidelity.images, {}, fidelity)


def _fidelity_row(
    address: str, images: str, settings: dict[str, str], fidelity: Fidelity
) -> dict[str, str]:
    references = "" if fidelity.references is None else f", {fidelity.references:,} images"
    scores = {
        _HEADINGS.get(name, name): f"{value:.4g}" + ("" if spread is None else f" ± {spread:.2g}")
        for name, (value, spread) in fidelity.with_spreads.items()
    }
    return {
        "model": address,
        "images": images,
        **settings,
        "count": f"{fidelity.samples:,}",
        "reference": fidelity.reference + references,
        "extractor": fidelity.extractor,
        **scores,
    }


def _speed_rows(model: _Model) -> Iterator[dict[str, str]]:
    for result in read_benchmarks(model.folder):
        common = {"model": model.address, "machine": machine_name(result, ", ")}
        for row in result.sampling:
            yield {
                **common,
                "work": "sampling",
                "precision": row.precision,
                "guidance": ", ".join(filter(None, (f"{row.guidance:g}", row.settings))),
                "batch": str(row.batch),
                **_timed(row.whole, row.images_per_second, row.missing),
                "MFU": _share(row.transformer_mfu),
                "memory": _memory(row.memory),
            }
        for step in result.training:
            yield {
                **common,
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
    """Peak memory of a GPU; on a CPU, by how much the process grew, marked with +."""
    if memory.gpu_peak_bytes is not None:
        return f"{memory.gpu_peak_bytes / 1e6:,.0f} MB"
    if memory.process_growth_bytes is not None:
        return f"+{memory.process_growth_bytes / 1e6:,.0f} MB"
    return _NONE


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _same_columns(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows with the columns of all rows; a dash where a row has no value."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, _NONE) for name in names} for row in rows]
