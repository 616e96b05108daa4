"""The classifier that rejects samples: a ResNet's file, or an extractor that has a head for it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.stages.context import RunContext
from var_scaling.class_names import Names, called, class_number
from var_scaling.experiment.sample_set import Rejection

if TYPE_CHECKING:
    from torch import Tensor

EXTRACTORS = ("extractor", "inception", "seeded")  # "extractor": Inception where it is named


@dataclass(frozen=True)
class RejectionClassifier:
    """What says how sure a class is: uint8 (B, W, W, 3) to probabilities (B, outputs)."""

    name: str
    sha256: str
    outputs: int
    probabilities: "Callable[[Tensor], Tensor]"


def load_rejection_classifier(context: RunContext, which: str | None) -> RejectionClassifier:
    """The classifier `which`: a file, one of EXTRACTORS, or None: [weights] classifier.

    Raises ValueError (WeightsError for a file that cannot be used).
    """
    which = which or (str(context.settings.weights.classifier or "") or None)
    if which is None:
        raise ValueError(
            "--reject wants a classifier, and none is named: --classifier FILE.pth, a ResNet in "
            'torchvision\'s format, or in var-scaling.toml:\n  [weights]\n  classifier = "FILE.pth"'
        )
    if which in EXTRACTORS:
        return _extractor(context, which)
    from var_scaling.evaluation.resnet import load_classifier

    classifier = load_classifier(Path(which)).to(context.device())
    return RejectionClassifier(
        classifier.name, classifier.sha256, classifier.classes, classifier.probabilities
    )


def rejection_by(
    judge: RejectionClassifier, rate: float, model_classes: int, outputs: tuple[int, ...] | None
) -> Rejection:
    """The record of it. Raises ValueError where it is not known which output is which class."""
    if outputs is None and judge.outputs != model_classes:
        own = " Inception's 1,008 have an order of their own." if judge.outputs == 1008 else ""
        raise ValueError(
            f"{judge.name} has {judge.outputs:,} outputs, the model {model_classes:,} classes."
            f"{own} Say which output is each class's with --class-map FILE, a JSON list"
        )
    if outputs is not None:
        beyond = sorted({context for context in outputs if not 0 <= context < judge.outputs})
        if len(outputs) != model_classes or beyond:
            raise ValueError(
                f"--class-map: wanted {model_classes:,} outputs, one for each class, from 0 to "
                f"{judge.outputs - 1:,}; it has {len(outputs):,}"
                + (f", among them {beyond[0]}" if beyond else "")
            )
    return Rejection(
        rate=rate, classifier=judge.name, classifier_sha256=judge.sha256, outputs=outputs
    )


def read_class_map(path: Path, classes: int, names: Names | None) -> tuple[int, ...]:
    """The classifier's output for each class. Raises ValueError, OSError.

    A JSON list in the order of the classes, or an object `{"cat": 281, ...}` by name or number.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from error
    if isinstance(found, dict):
        found = _by_class(path, found, classes, names)
    whole = isinstance(found, list) and all(type(one) is int for one in found)
    if not whole:
        raise ValueError(f"{path}: wanted a JSON list of whole numbers, one for each class")
    return tuple(found)


def _by_class(path: Path, found: dict[str, Any], classes: int, names: Names | None) -> list[Any]:
    """The values of an object that has each class once."""
    outputs: dict[int, Any] = {}
    for word, output in found.items():
        try:
            number = class_number(word, names, classes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if number in outputs:
            raise ValueError(f"{path}: {word!r} is class {called(number, names)}, given before")
        outputs[number] = output
    absent = [called(one, names) for one in range(classes) if one not in outputs]
    if absent:
        raise ValueError(f"{path}: {len(absent)} classes are not in it, the first {absent[0]}")
    return [outputs[number] for number in range(classes)]


def _extractor(context: RunContext, which: str) -> RejectionClassifier:
    from var_scaling.evaluation.extractors import inception_extractor, seeded_extractor

    file = context.settings.weights.inception
    known = which == "inception" or (which == "extractor" and file is not None)
    extractor = inception_extractor(file) if known else seeded_extractor()
    extractor.to(context.device())

    def probabilities(images_BWW3: "Tensor") -> "Tensor":
        return extractor(images_BWW3).logits_BK.double().softmax(-1)

    return RejectionClassifier(extractor.name, extractor.sha256, extractor.outputs, probabilities)
