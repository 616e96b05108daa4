"""One page over all sweeps of a home: their state, laws and main figure, with links to reports."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.report.embed import InlineImage, inline_image
from analysis.report.html import environment

_FIGURES = ("main_law.png", "surface.png", "laws_in_parameters.png")  # the first that exists
COMPUTE = "train_flops"


@dataclass(frozen=True)
class SweepCard:
    """What the page says about one sweep."""

    name: str
    finished: int  # trials
    trials: int
    laws: Mapping[str, Any] | None  # the content of laws.json; None if there is none yet
    report: Path | None  # the folder of its report
    outdated: bool = False  # its laws.json is of an older version, and is not read

    @property
    def groups(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The laws of each group with its name; one group without a name in most sweeps."""
        if self.laws is None:
            return []
        return list(self.laws["groups"].items()) if "groups" in self.laws else [("", self.laws)]

    @staticmethod
    def main_laws(laws: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The laws of the loss and the error in the size, and of the loss in compute."""
        pairs = {("val_loss", laws["size"]), ("val_error", laws["size"]), ("val_loss", COMPUTE)}
        return [law for law in laws["laws"] if (law["metric"], law["variable"]) in pairs]

    @staticmethod
    def ends(interval: Mapping[str, float | None]) -> tuple[float, float]:
        """The ends of an interval of laws.json, where an infinite end is null."""
        low, high = interval["low"], interval["high"]
        return -math.inf if low is None else low, math.inf if high is None else high

    @property
    def figure(self) -> InlineImage | None:
        folder = self.report
        paths = [folder / name for name in _FIGURES] if folder is not None else []
        return next((inline_image(path) for path in paths if path.exists()), None)


def write_site(path: Path, cards: Sequence[SweepCard]) -> None:
    """Write the page to `path`, a file of the home. It needs no other file; links are relative."""
    links = {
        card.name: (card.report / "index.html").relative_to(path.parent).as_posix()
        for card in cards
        if card.report is not None
    }
    page = environment().get_template("site.html.j2").render(cards=cards, links=links)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
