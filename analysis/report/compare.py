"""Comparison of two reports: laws that differ significantly, other runs, other settings."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.comparison.one_law import one_law_for_both
from analysis.export import FORMAT
from analysis.report.format import exponent, level, signed, significant, span
from analysis.report.html import environment

Laws = Mapping[str, Any]  # what laws.json holds
_SAME_SIZE = 1e-6  # relative
_NOISE = 1e-12  # relative: numbers that differ by less are equal up to rounding
_LISTS = ("warnings", "refused", "dropped", "notes")


@dataclass(frozen=True)
class ParameterPair:
    """One parameter in both reports, and its difference with a 95 % interval (if both have one).

    The interval of the difference is that of MOVER (Zou and Donner 2008, Statistics in Medicine
    27), which assumes that the two estimates are independent.
    """

    a: float
    b: float
    a_interval: tuple[float | None, float | None]  # None: no end
    b_interval: tuple[float | None, float | None]
    difference: float  # b - a
    low: float | None
    high: float | None


@dataclass(frozen=True)
class LawPair:
    """One law in both reports: its parameters, and a test for a common law.

    `p`: p-value of an F test by least squares, one law for all points against one for each report;
    None if there is no test, for the reason in `why`.
    """

    label: str
    law: str
    parameters: dict[str, ParameterPair]
    points: tuple[int, int]
    p: float | None
    why: str
    common: dict[str, float] | None  # parameters of the common law

    @property
    def differs(self) -> bool:
        """Whether any parameter of the two laws differs, significantly or not."""
        return any(not _same(pair.a, pair.b) for pair in self.parameters.values())


@dataclass(frozen=True)
class Level:
    """A metric at a size that both reports have: geometric means over runs."""

    label: str
    size: float
    a: float
    b: float

    @property
    def relative(self) -> float:
        return self.b / self.a - 1


@dataclass(frozen=True)
class Difference:
    """The differences between reports `a` and `b`. Runs are matched by their names, laws by metric,
    variable and form.
    """

    names: tuple[str, str]
    laws: tuple[LawPair, ...]
    only_a: tuple[str, ...]  # laws in a alone
    only_b: tuple[str, ...]
    levels: tuple[Level, ...]
    runs_a: tuple[str, ...]  # runs in a alone
    runs_b: tuple[str, ...]
    changed: tuple[str, ...]  # runs in both with other numbers, one sentence each
    settings: dict[str, tuple[Any, Any]]  # those that differ
    lines: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]  # notes in a alone, in b alone

    @property
    def nothing(self) -> bool:
        """Whether both reports have the same numbers of the same runs under the same settings."""
        lists = (self.only_a, self.only_b, self.runs_a, self.runs_b, self.changed, self.settings)
        return not (any(lists) or self.lines or any(law.differs for law in self.laws))

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        content = asdict(self)
        for level_dict, at_size in zip(content["levels"], self.levels, strict=True):
            level_dict["relative"] = at_size.relative
        return {**content, "nothing": self.nothing}

    @property
    def trial_settings(self) -> list[str]:
        """The settings in which the trials of the two sweeps differ, a line each."""
        return [
            f"{key.removeprefix('trials: ')}: {a} | {b}"
            for key, (a, b) in self.settings.items()
            if key.startswith("trials: ")
        ]

    def rows(self) -> dict[str, list[str]]:
        """The laws as a table for a terminal: column name to cells."""
        parts = [(law, name, pair) for law in self.laws for name, pair in law.parameters.items()]
        return {
            "law": [f"{law.label}, {law.law}" for law, _, _ in parts],
            "of": [name for _, name, _ in parts],
            self.names[0]: [_with(pair.a, pair.a_interval) for _, _, pair in parts],
            self.names[1]: [_with(pair.b, pair.b_interval) for _, _, pair in parts],
            "difference": [_with(pair.difference, (pair.low, pair.high)) for *_, pair in parts],
            "p, one law": [significant(law.p, 2) for law, _, _ in parts],
        }


def difference(laws_a: Laws, laws_b: Laws) -> Difference:
    """Compare the contents of two laws.json. Raises ValueError for another format, or
    if one has several groups.
    """
    for laws in (laws_a, laws_b):
        if laws.get("format") != FORMAT:
            raise ValueError(
                f"laws.json has format {laws.get('format')}, this version reads {FORMAT}: "
                "`var-scaling report` writes it again"
            )
        if "groups" in laws:
            raise ValueError(
                f"{_name(laws, 'a report')} has laws of several groups "
                f"({'; '.join(laws['groups'])}): only reports with one group can be compared; make "
                "one sweep for each family"
            )
    keyed_a, keyed_b = _by_key(laws_a), _by_key(laws_b)
    runs_a, runs_b = _runs(laws_a), _runs(laws_b)
    shared = [key for key in keyed_a if key in keyed_b]
    a, b = _name(laws_a, "a"), _name(laws_b, "b")
    return Difference(
        names=(a, b) if a != b else (f"{a} (a)", f"{b} (b)"),
        laws=tuple(_pair(keyed_a[key], keyed_b[key]) for key in shared),
        only_a=tuple(_label(law) for key, law in keyed_a.items() if key not in keyed_b),
        only_b=tuple(_label(law) for key, law in keyed_b.items() if key not in keyed_a),
        levels=tuple(
            level_at_size for key in shared for level_at_size in _levels(keyed_a[key], keyed_b[key])
        ),
        runs_a=tuple(sorted(set(runs_a) - set(runs_b))),
        runs_b=tuple(sorted(set(runs_b) - set(runs_a))),
        changed=tuple(
            f"{run}: {text}"
            for run in sorted(set(runs_a) & set(runs_b))
            if (text := _changes(runs_a[run], runs_b[run]))
        ),
        settings=_settings(laws_a, laws_b),
        lines={
            what: pair
            for what in _LISTS
            if any(pair := _alone(_texts(laws_a, what), _texts(laws_b, what)))
        },
    )


def write_difference(path: Path, comparison: Difference) -> None:
    """Write one self-contained HTML page to `path`."""
    page = environment().get_template("against.html.j2").render(comparison=comparison)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _pair(a: Mapping[str, Any], b: Mapping[str, Any]) -> LawPair:
    parameters = {}
    for name in ("alpha", "E"):
        values = [law["fit"]["values"].get(name) for law in (a, b)]
        if None not in values:
            intervals = [law["intervals"].get(name) for law in (a, b)]
            parameters[name] = _parameter_pair(values[0], values[1], *intervals)
    test, points = one_law_for_both(a, b), (len(a["y"]), len(b["y"]))
    return LawPair(a["label"], a["fit"]["law"], parameters, points, test.p, test.why, test.values)


def _parameter_pair(a: float, b: float, interval_a: Any, interval_b: Any) -> ParameterPair:
    (a_low, a_high), (b_low, b_high) = spans = [
        (None, None) if interval is None else (interval["low"], interval["high"])
        for interval in (interval_a, interval_b)
    ]
    low = high = None
    if b_low is not None and a_high is not None:
        low = b - a - math.hypot(b - b_low, a_high - a)
    if b_high is not None and a_low is not None:
        high = b - a + math.hypot(b_high - b, a - a_low)
    return ParameterPair(a, b, spans[0], spans[1], b - a, low, high)


def _levels(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Level]:
    """Levels at the shared sizes. Only for the pure law, so that each metric and count of
    parameters is listed once.
    """
    if a["fit"]["law"] != "pure" or a["variable"] == "train_flops":
        return []
    levels = []
    sizes = [np.asarray(law["x"], dtype=float) for law in (a, b)]
    for size in np.unique(sizes[0]):
        near = [np.abs(x / size - 1) < _SAME_SIZE for x in sizes]
        if near[1].any():
            means = [_mean(law["y"], at_size) for law, at_size in zip((a, b), near, strict=True)]
            levels.append(Level(a["label"], float(size), *means))
    return levels


def _mean(values: Any, chosen: NDArray[np.bool_]) -> float:
    return float(np.exp(np.log(np.asarray(values, dtype=float)[chosen]).mean()))


def _runs(laws: Laws) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Points by run, then by label of the law. Each metric only in its first variable."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    first = {law["metric"]: law for law in reversed(laws["laws"]) if law["fit"]["law"] == "pure"}
    for law in reversed(first.values()):
        for trial, x, y in zip(law["trials"], law["x"], law["y"], strict=True):
            points.setdefault(trial, {}).setdefault(law["label"], []).append((x, y))
    return points


def _changes(a: dict[str, Any], b: dict[str, Any]) -> str:
    """The differences of one run as text; "" if there are none."""
    changes = []
    for label in dict.fromkeys((*a, *b)):
        points_a, points_b = sorted(a.get(label, [])), sorted(b.get(label, []))
        if len(points_a) != len(points_b):
            changes.append(f"{label} {len(points_a)} points and {len(points_b)}")
        for (x, y), (u, v) in zip(points_a, points_b, strict=False):
            if not _same(x, u):
                changes.append(f"{label} at {significant(x)} and at {significant(u)}")
            elif not _same(y, v):
                changes.append(f"{label} {level(y)} and {level(v)} ({signed(v / y - 1)})")
    return "; ".join(changes)


def _settings(a: Laws, b: Laws) -> dict[str, tuple[Any, Any]]:
    """The scalar values, entries of `table`, settings of the trials and verdicts that differ."""
    flat = [
        {key: value for key, value in laws.items() if not isinstance(value, dict | list | tuple)}
        | {f"table {key}": value for key, value in (laws.get("table") or {}).items()}
        | {f"trials: {key}": value for key, value in (laws.get("trial_settings") or {}).items()}
        | {f"fit {option}": value for option, value in (laws.get("options") or {}).items()}
        | {
            f"verdict on {choice['metric']} in {choice['variable']}": choice["verdict"]
            for choice in laws.get("choices") or []
        }
        for laws in (a, b)
    ]
    keys = dict.fromkeys((*flat[0], *flat[1]))
    pairs = {key: (flat[0].get(key), flat[1].get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _texts(laws: Laws, what: str) -> list[str]:
    """The lines of a list of laws.json; a warning's line is its text."""
    lines = laws.get(what) or []
    return [line["text"] if isinstance(line, dict) else line for line in lines]


def _alone(a: list[str], b: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The lines in `a` alone and in `b` alone."""
    return tuple(line for line in a if line not in b), tuple(line for line in b if line not in a)


def _by_key(laws: Laws) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    return {(law["metric"], law["variable"], law["fit"]["law"]): law for law in laws["laws"]}


def _name(laws: Laws, default: str) -> str:
    return str(laws.get("sweep") or (laws.get("table") or {}).get("source") or default)


def _label(law: Mapping[str, Any]) -> str:
    return f"{law['label']}, {law['fit']['law']}"


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_NOISE, abs_tol=1e-300)


def _with(value: float, ends: Any) -> str:
    return exponent(value) + (f" {span(ends)}" if ends != (None, None) else "")
