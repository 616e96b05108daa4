"""The end of metrics.jsonl: where a stage is now, without reading all that it was."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from var_scaling.metrics import Line

_BLOCK = 4_096  # bytes that are read at a time


def latest_lines(path: Path, kinds: Sequence[str]) -> dict[str, Line]:
    """The line of each of `kinds` that was written last: of a long log only the end is read.

    After a resume that is where the stage is now; lines of the attempt before may say more.
    """
    found: dict[str, Line] = {}
    if not path.exists():
        return found
    with open(path, "rb") as file:
        end, kept = file.seek(0, os.SEEK_END), b""
        whole = False  # whether what follows `kept` begins a line: the last may be half written
        while end > 0 and len(found) < len(kinds):
            start = max(0, end - _BLOCK)
            file.seek(start)
            text = file.read(end - start) + kept
            lines = text.split(b"\n")
            if not whole:
                lines.pop()
                whole = True
            kept = lines.pop(0) if start > 0 and lines else b""
            for written in reversed(lines):
                if len(found) == len(kinds):
                    break
                with suppress(ValueError, KeyError, TypeError):
                    line = json.loads(written)
                    if line["kind"] in kinds:
                        found.setdefault(line["kind"], line)
            end = start
    return found


def latest_line(path: Path, kind: str) -> Line | None:
    return latest_lines(path, (kind,)).get(kind)
