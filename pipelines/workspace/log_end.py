"""The progress of a stage, from the end of its metrics.jsonl, without reading the whole log."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from var_scaling.metrics import Line, parse_lines

_BLOCK = 4_096  # bytes per read


class GrowingLog:
    """A metrics.jsonl that may still grow: only what was written since the last call is read."""

    def __init__(self, path: Path):
        self.path = path
        self.latest: dict[str, Line] = {}  # the last line that was read, by kind
        self._inode, self._offset = 0, 0

    def new_lines(self) -> list[Line]:
        """The complete lines that were written since the last call; all of a replaced file."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return []
        if stat.st_ino != self._inode or stat.st_size < self._offset:
            self._inode, self._offset, self.latest = stat.st_ino, 0, {}
        if stat.st_size == self._offset:
            return []
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]  # the last line may be half-written
        self._offset += len(complete)
        lines = parse_lines(complete.splitlines())
        self.latest |= {line["kind"]: line for line in lines}
        return lines


class LatestLines:
    """`latest_lines` for repeated calls: of a log that has grown, only the new part is read."""

    def __init__(self, kinds: Sequence[str]):
        self.kinds = kinds
        self._logs: dict[Path, GrowingLog] = {}

    def __call__(self, path: Path) -> dict[str, Line]:
        if path not in self._logs:
            # Most stages are looked at once: reading the end of the log is enough for them.
            self._logs[path] = GrowingLog(path)
            return latest_lines(path, self.kinds)
        log = self._logs[path]
        log.new_lines()
        return {kind: log.latest[kind] for kind in self.kinds if kind in log.latest}


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
