"""Turn the options of `sample` into the record of a set. Imports torch only with --reject."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.sampling.rejection import load_rejection_classifier, read_class_map, rejection_record
from pipelines.sampling.settings import (
    only_conditional,
    parse_sampling,
    resolve_guidance,
    with_default_precision,
)
from pipelines.sampling.store import SAMPLES
from pipelines.stages.context import RunContext
from pipelines.workspace.address import finished_folder, read_generator
from pipelines.workspace.store import weights_of
from var_scaling.class_names import PREFIX, Names, class_number, load_names, normalize_name
from var_scaling.disk import DONE, read_json
from var_scaling.experiment import ImportedModel, Trial
from var_scaling.experiment.sample_set import NONE, Rejection, SampleSet

_MAX_DEFAULT_CLASSES = 16  # up to this number of classes, --classes may be left out: all
_MAX_IMAGES = 10_000_000  # drawn for one set: its folder and its marks are read as a whole


@dataclass(frozen=True)
class SampleOptions:
    """The options of `sample` that define a set, as the user gives them."""

    classes: str | None = None  # "0,1,5-8", "cat,dog", "all", "none"
    count: int = 8  # images of each class
    seed: int = 0
    name: str = "default"
    sampling: Mapping[str, Any] = field(default_factory=dict)  # only the settings given
    reject: float | None = None  # share of the candidates to keep
    classifier: str | None = None
    class_map: Path | None = None
    raw: bool = False  # use the last weights of a model that averages its weights (EMA)
    device: str | None = None  # that draws the images, cpu or cuda; None: that of the context


@dataclass(frozen=True)
class Plan:
    """A checked set and its folder."""

    address: str
    folder: Path
    config: SampleSet
    classifier: str | None  # as given, for the process that loads it

    @property
    def raw(self) -> bool:
        """Whether the set uses the last weights of a model that averages its weights (EMA)."""
        # The folder is MODEL/samples/NAME. The record of a set has the hash of its weights, not the
        # option; without an average, the marker has no raw hash.
        marker = read_json(self.folder.parents[1] / DONE)
        return self.config.weights_sha256 == marker.get("raw_weights_sha256")


def plan_set(context: RunContext, address: str, options: SampleOptions) -> Plan:
    """Check everything that does not need the loaded model. Raises ValueError, OSError."""
    folder = finished_folder(context.home, address)
    record = read_generator(folder)
    tokenizer = finished_folder(context.home, f"tokenizers/{record.tokenizer.name}")
    names = load_names(folder, record.classes)
    labels = read_classes(options.classes, record.classes, names)
    _refuse_unconditional(record, labels)
    if options.count < 1:
        raise ValueError(f"--count {options.count}: must be at least 1 image of each class")
    device = options.device or context.process.device
    given = with_default_precision(options.sampling, record, device)
    sampling = parse_sampling(record.family, given)
    record.family.frames(record.spec, sampling)  # raises for a list of the wrong length
    rejection, classifier = _plan_rejection(context, options, record, labels, names)
    # Only if no image has a class. In a mixture, guidance has no effect on images without one:
    # conditional and unconditional prediction are equal, so c + g (c - u) = c.
    reason = f"guidance needs a class, and --classes {NONE} has none"
    no_class = reason if labels == (record.classes,) else None
    config = SampleSet(
        name=options.name,
        seed=options.seed,
        classes=labels,
        model_classes=record.classes,
        count=options.count,
        sampling=resolve_guidance(sampling, record, no_class),
        rejection=rejection,
        # Hashes from the done markers: nothing is loaded here. `load_sampler` compares the files.
        weights_sha256=weights_of(folder, options.raw)[1],
        tokenizer_sha256=read_json(tokenizer / DONE)["weights_sha256"],
    )
    if config.drawn > _MAX_IMAGES:
        candidates = (
            "" if rejection is None else f", {config.candidates:,} candidates of each class"
        )
        raise ValueError(
            f"the set would draw {config.drawn:,} images{candidates}; at most {_MAX_IMAGES:,} are "
            "allowed. Lower --count, or draw several sets with different --name and --seed"
        )
    return Plan(address, folder / SAMPLES / config.name, config, classifier)


def _plan_rejection(
    context: RunContext,
    options: SampleOptions,
    record: Trial | ImportedModel,
    labels: tuple[int, ...],
    names: Names | None,
) -> tuple[Rejection | None, str | None]:
    """The record of rejection sampling, None without --reject, and the name of its classifier."""
    classifier = options.classifier
    if options.reject is None:
        if classifier or options.class_map:
            raise ValueError(
                "--classifier and --class-map are options of rejection sampling: give --reject "
                "RATE too"
            )
        return None, classifier
    if not 0 < options.reject <= 1:
        raise ValueError(
            f"--reject {options.reject:g}: the share to keep must be above 0 and at most 1"
        )
    if record.classes in labels:  # the label of the null class
        raise ValueError(
            "--reject keeps the images to whose class a classifier gives the highest "
            f"probability, and images of --classes {NONE} have no class"
        )
    if classifier and Path(classifier).exists():
        # A cluster job may run in another working directory.
        classifier = str(Path(classifier).absolute())
    # Loaded here because the record has its hash, and its number of outputs must fit.
    loaded = load_rejection_classifier(context, classifier)
    outputs = None
    if options.class_map:
        outputs = read_class_map(options.class_map, record.classes, names)
    return rejection_record(loaded, options.reject, record.classes, outputs), classifier


def read_classes(text: str | None, classes: int, names: Names | None = None) -> tuple[int, ...]:
    """Parse `0,1,5-8`, names, `all`, `none` (the label `classes`), or a mixture of these.

    The labels are in ascending order, each once. None: all classes if there are at most 16. Raises
    ValueError.
    """
    if text is None:
        if classes > _MAX_DEFAULT_CLASSES:
            raise ValueError(
                f"the model has {classes:,} classes: choose some with --classes 0,1,5-8, or "
                "--classes all"
            )
        text = "all"
    labels: set[int] = set()
    for word in _words(text, names):
        if word == "all":
            labels |= set(range(classes))
        elif word == NONE:
            labels.add(classes)
        else:
            labels |= set(_class_range(word, text, classes, names))
    return tuple(sorted(labels))


def _words(text: str, names: Names | None) -> Iterator[str]:
    """The words between commas; a class name that contains commas, as in ImageNet, is one word."""
    with_commas = {normalize_name(name): name.count(",") for name in names or () if "," in name}
    max_parts = 1 + max(with_commas.values(), default=0)  # of a name
    parts = text.split(",")
    while parts:
        # The longest sequence of parts that is a name with commas, else the first part alone.
        counts = range(min(max_parts, len(parts)), 0, -1)
        joined = [",".join(parts[:count]).strip() for count in counts]
        matches = (
            word for word in joined if normalize_name(word.removeprefix(PREFIX)) in with_commas
        )
        word = next(matches, joined[-1])
        yield word
        del parts[: 1 + word.count(",")]


def _class_range(word: str, text: str, classes: int, names: Names | None) -> range:
    match = re.fullmatch(r"([0-9]+)-([0-9]+)", word)
    try:
        if not match:
            number = class_number(word, names, classes, f"0,1,5-8 or all or {NONE}")
            return range(number, number + 1)
        # The last number is checked against the classes; then first <= last is enough.
        first, last = int(match[1]), class_number(match[2], names, classes)
        if last < first:
            raise ValueError(f"{word}: the first number is larger than the last")
    except ValueError as error:
        raise ValueError(f"--classes {text}: {error}") from error
    return range(first, last + 1)


def read_part(text: str) -> tuple[int, int]:
    """`2/8` as (1, 8): the second of eight. Raises ValueError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--part {text}: must be I/N, from 1/N to N/N: the second of eight is 2/8")
    return int(match[1]) - 1, int(match[2])


def _refuse_unconditional(record: Trial | ImportedModel, labels: tuple[int, ...]) -> None:
    if record.classes in labels and only_conditional(record):
        raise ValueError(
            f"--classes {NONE}: {record.name} was trained with class_dropout_prob = 0, so it "
            "cannot sample without a class"
        )
