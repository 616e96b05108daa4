"""metrics.jsonl: one line for each thing that was measured, whole or not at all."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class MetricsLog:
    """Append-only `metrics.jsonl`; each line whole, told apart by `kind` and `step`."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - lives as long as the training

    def __call__(self, kind: str, step: int, values: Line) -> None:
        line = {"kind": kind, "step": step, "time_ms": time.time_ns() // 1_000_000, **values}
        self._file.write(json.dumps(line) + "\n")
        os.fsync(self._file.fileno())  # as lasting as the checkpoint that comes after it

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Line]:
    """The lines by step. A step written twice, after a resume, counts once: the later."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]  # a last line without its end is still being written
    lines: dict[tuple[str, int], Line] = {}
    for written in whole.splitlines():
        with suppress(ValueError, KeyError, TypeError):  # two wrote into one another
            line = json.loads(written)
            lines[line["kind"], line["step"]] = line
    return sorted(lines.values(), key=lambda line: (line["step"], line["kind"]))


def _cut_torn_line(path: Path) -> None:
    """Remove what a killed writer left of its last line, so the next does not run into it."""
    if path.exists():
        with open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
            os.fsync(file.fileno())
