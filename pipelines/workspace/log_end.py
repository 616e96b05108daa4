"""The last lines of metrics.jsonl: the progress of a stage, without reading the whole log."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from var_scaling.metrics import Line

_BLOCK = 4_096  # bytes per read


def latest_lines(path: Path, kinds: Sequence[str]) -> dict[str, Line]:
    """The last written line of each of `kinds`. Of a long log, only the end is read.

    After a resume, that is the current step; lines of an earlier attempt may have a higher one.
    """
    latest: dict[str, Line] = {}
    if not path.exists():
        return latest
    with open(path, "rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        complete = False  # whether the last line, which may be incomplete, has been dropped
        while end > 0 and len(latest) < len(kinds):
            start = max(0, end - _BLOCK)
            file.seek(start)
            text = file.read(end - start) + rest
            lines = text.split(b"\n")
            if not complete:
                lines.pop()
                complete = True
            # The block begins within a line, whose first half is in the block before.
            rest = lines.pop(0) if start > 0 and lines else b""
            for written in reversed(lines):
                if len(latest) == len(kinds):
                    break
                # Two machines that write at the same time may mix their lines, and what remains may
                # be valid JSON, such as a bare number.
                with suppress(ValueError, KeyError, TypeError):
                    line = json.loads(written)
                    if line["kind"] in kinds:
                        latest.setdefault(line["kind"], line)
            end = start
    return latest


def latest_line(path: Path, kind: str) -> Line | None:
    return latest_lines(path, (kind,)).get(kind)
