"""metrics.jsonl: one JSON line per log entry of a training."""

import json
import os
import time
from collections.abc import Iterable, Sequence
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
    return sorted_lines(parse_lines(complete.splitlines()))


def sorted_lines(parsed: Iterable[Line]) -> list[Line]:
    """`parsed` by step, and only the last one of each kind and step."""
    lines = {(line["kind"], line["step"]): line for line in parsed}
    return sorted(lines.values(), key=lambda line: (line["step"], line["kind"]))


def parse_lines(written: Sequence[bytes]) -> list[Line]:
    """The lines that can be read: when two processes write at the same time, some cannot."""
    try:
        # As one JSON document, which takes half as long as line by line.
        lines = json.loads(b"[" + b",".join(written) + b"]")
    except ValueError:
        lines = []
    if len(lines) != len(written):  # two broken lines can be a valid one together
        lines = []
        for each in written:
            with suppress(ValueError):
                lines.append(json.loads(each))
    # What remains of mixed lines may be valid JSON, such as a bare number (LOG.md).
    return [line for line in lines if isinstance(line, dict) and _is_identified(line)]


def _is_identified(line: Line) -> bool:
    return isinstance(line.get("kind"), str) and isinstance(line.get("step"), int)


def _cut_torn_line(path: Path) -> None:
    """Remove the incomplete last line of a killed process, so that nothing is appended to it."""
    if path.exists():
        with open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
            os.fsync(file.fileno())
