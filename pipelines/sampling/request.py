"""What set of samples is asked for: a person's words to one record. No torch but to reject."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.sampling.rejection import load_rejection_classifier, read_class_map, rejection_by
from pipelines.sampling.settings import fitting, never_without, sampling_of
from pipelines.sampling.store import SAMPLES
from pipelines.stages.context import RunContext
from pipelines.workspace.address import finished, read_generator
from pipelines.workspace.store import weights_of
from var_scaling.class_names import PREFIX, Names, alike, class_number, names_of
from var_scaling.disk import DONE, read_json
from var_scaling.experiment import ImportedModel, Trial
from var_scaling.experiment.sample_set import NONE, SampleSet

_FEW = 16  # classes: so many are all sampled where nothing is said
_MOST = 10_000_000  # images drawn for one set; its folder is listed and its marks are read as one


@dataclass(frozen=True)
class SampleOptions:
    """A set in a person's words."""

    classes: str | None = None  # "0,1,5-8", "cat,dog", "all", "none"
    count: int = 8
    seed: int = 0
    name: str = "default"
    sampling: Mapping[str, Any] = field(default_factory=dict)  # those settings that were given
    reject: float | None = None
    classifier: str | None = None
    class_map: Path | None = None
    raw: bool = False  # the last weights of a model whose own are an average


@dataclass(frozen=True)
class Plan:
    """A set that can be drawn, and where."""

    address: str
    folder: Path
    wanted: SampleSet
    classifier: str | None  # as named, for the process that samples

    @property
    def raw(self) -> bool:
        """Whether the set is of the last weights of a model whose own are an average."""
        marker = read_json(self.folder.parents[1] / DONE)
        return self.wanted.weights_sha256 == marker.get("raw_weights_sha256")


def plan_set(context: RunContext, address: str, asked: SampleOptions) -> Plan:
    """Check all that can be before the model is loaded. Raises ValueError, OSError."""
    folder = finished(context.home, address)
    record = read_generator(folder)
    tokenizer = finished(context.home, f"tokenizers/{record.tokenizer.name}")
    names = names_of(folder, record.classes)
    labels = read_classes(asked.classes, record.classes, names)
    _refuse_never_learnt(record, labels)
    if asked.count < 1:
        raise ValueError(f"--count {asked.count}: wanted 1 or more images of each class")
    sampling = sampling_of(record.family, asked.sampling)
    record.family.frames(record.spec, sampling)  # raises where a list has another length
    rejection, classifier = None, asked.classifier
    if asked.reject is None and (classifier or asked.class_map):
        raise ValueError("--classifier and --class-map say how to --reject: at which rate?")
    if asked.reject is not None:
        if not 0 < asked.reject <= 1:
            raise ValueError(f"--reject {asked.reject:g}: the share to keep, above 0, at most 1")
        if record.classes in labels:
            raise ValueError(
                "--reject keeps what a classifier is surest of being the class asked for: with "
                "--classes none there is none"
            )
        if classifier and Path(classifier).exists():
            classifier = str(Path(classifier).absolute())
        judge = load_rejection_classifier(context, classifier)
        outputs = None
        if asked.class_map:
            outputs = read_class_map(asked.class_map, record.classes, names)
        rejection = rejection_by(judge, asked.reject, record.classes, outputs)
    reason = f"it pulls towards a class, and with --classes {NONE} there is none"
    no_class = reason if labels == (record.classes,) else None
    wanted = SampleSet(
        name=asked.name,
        seed=asked.seed,
        classes=labels,
        model_classes=record.classes,
        count=asked.count,
        sampling=fitting(sampling, record, no_class),
        rejection=rejection,
        weights_sha256=weights_of(folder, asked.raw)[1],
        tokenizer_sha256=read_json(tokenizer / DONE)["weights_sha256"],
    )
    if wanted.drawn > _MOST:
        candidates = (
            "" if rejection is None else f", {wanted.candidates:,} candidates of each class"
        )
        raise ValueError(
            f"{wanted.drawn:,} images would have to be drawn{candidates}: one set is of at most "
            f"{_MOST:,}. Ask for fewer, or for several sets with --name and another --seed"
        )
    return Plan(address, folder / SAMPLES / wanted.name, wanted, classifier)


def read_classes(text: str | None, known: int, names: Names | None = None) -> tuple[int, ...]:
    """`0,1,5-8`, names, `all`, `none` (the label `known`), or a mixture; rising, each once.

    Not said, it is all where they are few. Raises ValueError.
    """
    if text is None:
        if known > _FEW:
            raise ValueError(
                f"the model knows {known:,} classes: say which, --classes 0,1,5-8 or --classes all"
            )
        text = "all"
    labels: set[int] = set()
    for word in _words(text, names):
        if word == "all":
            labels |= set(range(known))
        elif word == NONE:
            labels.add(known)
        else:
            labels |= set(_span(word, text, known, names))
    return tuple(sorted(labels))


def _words(text: str, names: Names | None) -> Iterator[str]:
    """What stands between commas; a name with commas in it, as ImageNet's have, is one word."""
    with_commas = {alike(name): name.count(",") for name in names or () if "," in name}
    most = 1 + max(with_commas.values(), default=0)
    parts = text.split(",")
    while parts:
        joined = [",".join(parts[:count]).strip() for count in range(min(most, len(parts)), 0, -1)]
        known = (word for word in joined if alike(word.removeprefix(PREFIX)) in with_commas)
        word = next(known, joined[-1])
        yield word
        del parts[: 1 + word.count(",")]


def _span(word: str, text: str, known: int, names: Names | None) -> range:
    found = re.fullmatch(r"([0-9]+)-([0-9]+)", word)
    try:
        if not found:
            number = class_number(word, names, known, f"0,1,5-8 or all or {NONE}")
            return range(number, number + 1)
        first, last = int(found[1]), class_number(found[2], names, known)
        if last < first:
            raise ValueError(f"{word} runs backwards")
    except ValueError as error:
        raise ValueError(f"--classes {text}: {error}") from error
    return range(first, last + 1)


def read_part(text: str) -> tuple[int, int]:
    """`2/8` as (1, 8): the second of eight. Raises ValueError."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--part {text}: wanted I/N, from 1/N to N/N: the second of eight is 2/8")
    return int(found[1]) - 1, int(found[2])


def _refuse_never_learnt(record: Trial | ImportedModel, labels: tuple[int, ...]) -> None:
    if record.classes in labels and never_without(record):
        raise ValueError(
            f"--classes {NONE}: {record.name} was trained with label_drop = 0 and never without "
            "a class"
        )
