"""The classifier of rejection sampling: a ResNet file, or an extractor with class logits."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.stages.context import RunContext
from var_scaling.class_names import Names, class_label, class_number
from var_scaling.experiment.sample_set import Rejection

if TYPE_CHECKING:
    from torch import Tensor

# "extractor": Inception if var-scaling.toml names its weights, else the seeded network.
EXTRACTORS = ("extractor", "inception", "seeded")


@dataclass(frozen=True)
class RejectionClassifier:
    """A classifier. `probabilities` maps uint8 images (B, W, W, 3) to (B, outputs)."""

    name: str
    sha256: str
    outputs: int
    probabilities: "Callable[[Tensor], Tensor]"


def load_rejection_classifier(context: RunContext, which: str | None) -> RejectionClassifier:
    """Load the classifier `which`: a file, or one of EXTRACTORS. None: that of var-scaling.toml.

    Raises ValueError (WeightsError for a file that cannot be used).
    """
    which = which or (str(context.settings.weights.classifier or "") or None)
    if which is None:
        raise ValueError(
            "--reject needs a classifier, and none is named. Give --classifier FILE.pth, a ResNet "
            "in torchvision's format, or write in var-scaling.toml:\n"
            '  [weights]\n  classifier = "FILE.pth"'
        )
    if which in EXTRACTORS:
        return _extractor(context, which)
    from var_scaling.evaluation.resnet import load_classifier

    classifier = load_classifier(Path(which)).to(context.device())
    return RejectionClassifier(
        classifier.name, classifier.sha256, classifier.classes, classifier.probabilities
    )


def rejection_record(
    classifier: RejectionClassifier,
    rate: float,
    model_classes: int,
    outputs: tuple[int, ...] | None,
) -> Rejection:
    """The record of rejection sampling with `classifier`, which keeps the share `rate`.

    Raises ValueError if it is not known which output belongs to which class.
    """
    # If the numbers are equal, output k is taken to be class k.
    if outputs is None and classifier.outputs != model_classes:
        note = (
            " Inception's 1,008 outputs have another order." if classifier.outputs == 1008 else ""
        )
        raise ValueError(
            f"{classifier.name} has {classifier.outputs:,} outputs, the model {model_classes:,} "
            f"classes.{note} Give the output of each class with --class-map FILE, a JSON list"
        )
    if outputs is not None:
        invalid = sorted({output for output in outputs if not 0 <= output < classifier.outputs})
        if len(outputs) != model_classes or invalid:
            raise ValueError(
                f"--class-map: expected {model_classes:,} outputs, one for each class, from 0 to "
                f"{classifier.outputs - 1:,}; it has {len(outputs):,}"
                + (f", among them {invalid[0]}" if invalid else "")
            )
    return Rejection(
        rate=rate, classifier=classifier.name, classifier_sha256=classifier.sha256, outputs=outputs
    )


def read_class_map(path: Path, classes: int, names: Names | None) -> tuple[int, ...]:
    """Read the index of the classifier's output for each class. Raises ValueError, OSError.

    The file is a JSON list in class order, or an object with class names or numbers as keys, such
    as {"cat": 281, ...}.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if isinstance(content, dict):
        content = _by_class(path, content, classes, names)
    # `type`, not isinstance: True is an instance of int.
    if not (isinstance(content, list) and all(type(output) is int for output in content)):
        raise ValueError(f"{path}: expected a JSON list of whole numbers, one for each class")
    return tuple(content)


def _by_class(path: Path, content: dict[str, Any], classes: int, names: Names | None) -> list[Any]:
    """The values of an object in class order. Raises ValueError unless it has each class once."""
    outputs: dict[int, Any] = {}
    for key, output in content.items():
        try:
            number = class_number(key, names, classes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        # Two keys can be one class: its name and its number.
        if number in outputs:
            raise ValueError(
                f"{path}: {key!r} is class {class_label(number, names)}, which the file has twice"
            )
        outputs[number] = output
    missing = [class_label(number, names) for number in range(classes) if number not in outputs]
    if missing:
        raise ValueError(f"{path}: {len(missing)} classes are missing, the first is {missing[0]}")
    return [outputs[number] for number in range(classes)]


def _extractor(context: RunContext, which: str) -> RejectionClassifier:
    from var_scaling.evaluation.extractors import inception_extractor, seeded_extractor

    file = context.settings.weights.inception
    # `inception` without a weights file raises an error; `extractor` uses the seeded network then.
    use_inception = which == "inception" or (which == "extractor" and file is not None)
    extractor = inception_extractor(file) if use_inception else seeded_extractor()
    extractor.to(context.device())

    def probabilities(images_BWW3: "Tensor") -> "Tensor":
        return extractor(images_BWW3).logits_BK.double().softmax(-1)

    return RejectionClassifier(extractor.name, extractor.sha256, extractor.outputs, probabilities)
