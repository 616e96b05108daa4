"""metrics.jsonl: one JSON line per log entry of a training."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class MetricsLog:
    """Append-only `metrics.jsonl`. `kind` and `step` identify a line."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - open as long as the training

    def __call__(self, kind: str, step: int, values: Line) -> None:
        line = {"kind": kind, "step": step, "time_ms": time.time_ns() // 1_000_000, **values}
        self._file.write(json.dumps(line) + "\n")
        os.fsync(self._file.fileno())  # a later checkpoint must not be on disk without this line

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Line]:
    """The lines sorted by step. Of a step written twice, after a resume, only the later line."""
    if not path.exists():
        return []
    text = path.read_bytes()
    complete = text[: text.rfind(b"\n") + 1]  # a last line without "\n" is still being written
    lines: dict[tuple[str, int], Line] = {}
    for encoded in complete.splitlines():
        # ValueError: not JSON. KeyError: no kind or step. TypeError: JSON, but not an object, such
        # as a bare number (LOG.md).
        with suppress(ValueError, KeyError, TypeError):  # two processes wrote at the same time
            line = json.loads(encoded)
            lines[line["kind"], line["step"]] = line
    return sorted(lines.values(), key=lambda line: (line["step"], line["kind"]))


def _cut_torn_line(path: Path) -> None:
    """Remove the incomplete last line of a killed process, so that nothing is appended to it."""
    if path.exists():
        with open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
            os.fsync(file.fileno())
