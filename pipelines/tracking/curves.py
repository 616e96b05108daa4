"""Which lines of a metrics.jsonl are copied to the tracker. The log itself keeps all of them."""

from collections.abc import Iterable
from typing import Literal

from var_scaling.metrics import Line

Points = int | Literal["all"]


class Curve:
    """Chooses the lines of one log, in the order in which they are written.

    Every evaluation is chosen. Of the training lines these are: the first, the last, the one before
    each evaluation, and one for each of `points` equal parts of the `steps`.

    `copied`: the last steps that were chosen before, by kind. Lines up to them are left out: after
    a resume, a training writes some steps again.
    """

    def __init__(self, steps: int, points: Points, copied: dict[str, int]):
        self.steps, self.points, self.copied = max(1, steps), points, dict(copied)
        self._skipped: Line | None = None  # the last training line, unless it was chosen

    def choose(self, lines: Iterable[Line], ended: bool) -> list[Line]:
        """The lines to copy of `lines`, which are sorted by step. `ended`: the log is complete."""
        chosen: list[Line] = []
        for line in lines:
            if line["step"] <= self.copied.get(line["kind"], 0):
                continue
            if line["kind"] == "train" and not self._begins_part(line["step"]):
                self._skipped = line
                continue
            if line["kind"] == "validation":
                self._choose_skipped(chosen)
            self._choose(line, chosen)
        if ended:
            self._choose_skipped(chosen)
        return chosen

    def _begins_part(self, step: int) -> bool:
        if self.points == "all" or "train" not in self.copied:
            return True
        last = self.copied["train"]
        return step * self.points // self.steps > last * self.points // self.steps

    def _choose_skipped(self, chosen: list[Line]) -> None:
        if self._skipped is not None:
            self._choose(self._skipped, chosen)

    def _choose(self, line: Line, chosen: list[Line]) -> None:
        chosen.append(line)
        self.copied[line["kind"]] = line["step"]
        if line["kind"] == "train":
            self._skipped = None
