"""Two reports beside each other: which laws differ by more than chance, which runs and settings."""

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
_NOISE = 1e-12  # relative: numbers that differ by less are one number, written twice
_LISTS = ("refused", "dropped", "notes")


@dataclass(frozen=True)
class Both:
    """One parameter in both, and how far apart; `low` and `high` of that, 95 %, if both have it.

    The interval of the difference is MOVER's (Zou and Donner 2008, Statistics in Medicine 27): it
    takes the two for independent.
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
    """One law in both: its parameters, and whether one common law would serve the points of both.

    `p`: of an F test, least squares, one law for all points against one for each. None with `why`.
    """

    label: str
    law: str
    parameters: dict[str, Both]
    points: tuple[int, int]
    p: float | None
    why: str
    common: dict[str, float] | None  # parameters of the common law

    @property
    def differs(self) -> bool:
        """Whether any number of the two laws is another, for whatever reason."""
        return any(not _same(both.a, both.b) for both in self.parameters.values())


@dataclass(frozen=True)
class Level:
    """A metric at a size that both have: geometric means over runs."""

    label: str
    size: float
    a: float
    b: float

    @property
    def relative(self) -> float:
        return self.b / self.a - 1


@dataclass(frozen=True)
class Difference:
    """What is other in `b` than in `a`. Runs are told by their names, laws by metric and size."""

    names: tuple[str, str]
    laws: tuple[LawPair, ...]
    only_a: tuple[str, ...]  # laws
    only_b: tuple[str, ...]
    levels: tuple[Level, ...]
    runs_a: tuple[str, ...]  # runs in a alone
    runs_b: tuple[str, ...]
    changed: tuple[str, ...]  # runs in both with other numbers, in words
    settings: dict[str, tuple[Any, Any]]  # those that differ
    lines: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]  # said in a alone, in b alone

    @property
    def nothing(self) -> bool:
        """Whether the two say the same of the same runs under the same settings."""
        told = (self.only_a, self.only_b, self.runs_a, self.runs_b, self.changed, self.settings)
        return not (any(told) or self.lines or any(law.differs for law in self.laws))

    def as_dict(self) -> dict[str, Any]:
        """Plain, for JSON."""
        found = asdict(self)
        for level_dict, one in zip(found["levels"], self.levels, strict=True):
            level_dict["relative"] = one.relative
        return {**found, "nothing": self.nothing}

    def rows(self) -> dict[str, list[str]]:
        """The laws as a table for a terminal, one column a list."""
        parts = [(law, name, both) for law in self.laws for name, both in law.parameters.items()]
        return {
            "law": [f"{law.label}, {law.law}" for law, _, _ in parts],
            "of": [name for _, name, _ in parts],
            self.names[0]: [_with(both.a, both.a_interval) for _, _, both in parts],
            self.names[1]: [_with(both.b, both.b_interval) for _, _, both in parts],
            "difference": [_with(both.difference, (both.low, both.high)) for *_, both in parts],
            "p, one law": [significant(law.p, 2) for law, _, _ in parts],
        }


def difference(laws_a: Laws, laws_b: Laws) -> Difference:
    """Compare two laws.json of format 2. Raises ValueError for another format."""
    for one in (laws_a, laws_b):
        if one.get("format") != FORMAT:
            raise ValueError(
                f"laws.json has format {one.get('format')}, this reads {FORMAT}: "
                "`var-scaling report` writes it anew"
            )
        if "groups" in one:
            raise ValueError(
                f"{_name(one, 'a report')} has laws of several groups "
                f"({'; '.join(one['groups'])}): two reports are compared where each has one; make "
                "a sweep of each family"
            )
    keyed_a, keyed_b = _by_key(laws_a), _by_key(laws_b)
    runs_a, runs_b = _runs(laws_a), _runs(laws_b)
    both = [key for key in keyed_a if key in keyed_b]
    a, b = _name(laws_a, "a"), _name(laws_b, "b")
    return Difference(
        names=(a, b) if a != b else (f"{a} (a)", f"{b} (b)"),
        laws=tuple(_pair(keyed_a[key], keyed_b[key]) for key in both),
        only_a=tuple(_label(law) for key, law in keyed_a.items() if key not in keyed_b),
        only_b=tuple(_label(law) for key, law in keyed_b.items() if key not in keyed_a),
        levels=tuple(at for key in both for at in _levels(keyed_a[key], keyed_b[key])),
        runs_a=tuple(sorted(set(runs_a) - set(runs_b))),
        runs_b=tuple(sorted(set(runs_b) - set(runs_a))),
        changed=tuple(
            f"{run}: {words}"
            for run in sorted(set(runs_a) & set(runs_b))
            if (words := _changes(runs_a[run], runs_b[run]))
        ),
        settings=_settings(laws_a, laws_b),
        lines={
            what: pair
            for what in _LISTS
            if any(pair := _alone(laws_a.get(what) or [], laws_b.get(what) or []))
        },
    )


def write_difference(path: Path, found: Difference) -> None:
    """One self-contained HTML page."""
    page = environment().get_template("against.html.j2").render(found=found)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _pair(a: Mapping[str, Any], b: Mapping[str, Any]) -> LawPair:
    parameters = {}
    for name in ("alpha", "E"):
        values = [one["fit"]["values"].get(name) for one in (a, b)]
        if None not in values:
            intervals = [one["intervals"].get(name) for one in (a, b)]
            parameters[name] = _both(values[0], values[1], *intervals)
    test, points = one_law_for_both(a, b), (len(a["y"]), len(b["y"]))
    return LawPair(a["label"], a["fit"]["law"], parameters, points, test.p, test.why, test.values)


def _both(a: float, b: float, of_a: Any, of_b: Any) -> Both:
    (a_low, a_high), (b_low, b_high) = spans = [
        (None, None) if one is None else (one["low"], one["high"]) for one in (of_a, of_b)
    ]
    low = high = None
    if b_low is not None and a_high is not None:
        low = b - a - math.hypot(b - b_low, a_high - a)
    if b_high is not None and a_low is not None:
        high = b - a + math.hypot(b_high - b, a - a_low)
    return Both(a, b, spans[0], spans[1], b - a, low, high)


def _levels(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Level]:
    """Once for each metric and count of parameters: with the pure law, which all of them have."""
    if a["fit"]["law"] != "pure" or a["variable"] == "train_flops":
        return []
    found = []
    sizes = [np.asarray(one["x"], dtype=float) for one in (a, b)]
    for size in np.unique(sizes[0]):
        near = [np.abs(x / size - 1) < _SAME_SIZE for x in sizes]
        if near[1].any():
            means = [_mean(one["y"], at) for one, at in zip((a, b), near, strict=True)]
            found.append(Level(a["label"], float(size), *means))
    return found


def _mean(values: Any, chosen: NDArray[np.bool_]) -> float:
    return float(np.exp(np.log(np.asarray(values, dtype=float)[chosen]).mean()))


def _runs(laws: Laws) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By run, then by law's label: its points. Each metric once, in its first variable."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    first = {law["metric"]: law for law in reversed(laws["laws"]) if law["fit"]["law"] == "pure"}
    for law in reversed(first.values()):
        for trial, x, y in zip(law["trials"], law["x"], law["y"], strict=True):
            found.setdefault(trial, {}).setdefault(law["label"], []).append((x, y))
    return found


def _changes(a: dict[str, Any], b: dict[str, Any]) -> str:
    """What is other of one run, in words; "" if nothing."""
    told = []
    for label in dict.fromkeys((*a, *b)):
        one, other = sorted(a.get(label, [])), sorted(b.get(label, []))
        if len(one) != len(other):
            told.append(f"{label} {len(one)} points and {len(other)}")
        for (x, y), (u, v) in zip(one, other, strict=False):
            if not _same(x, u):
                told.append(f"{label} at {significant(x)} and at {significant(u)}")
            elif not _same(y, v):
                told.append(f"{label} {level(y)} and {level(v)} ({signed(v / y - 1)})")
    return "; ".join(told)


def _settings(a: Laws, b: Laws) -> dict[str, tuple[Any, Any]]:
    """All plain values of the two files, those of `table` among them, that are not equal."""
    flat = [
        {key: value for key, value in one.items() if not isinstance(value, dict | list | tuple)}
        | {f"table {key}": value for key, value in (one.get("table") or {}).items()}
        | {
            f"verdict on {told['metric']} in {told['variable']}": told["verdict"]
            for told in one.get("choices") or []
        }
        for one in (a, b)
    ]
    keys = dict.fromkeys((*flat[0], *flat[1]))
    pairs = {key: (flat[0].get(key), flat[1].get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _alone(a: list[str], b: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(one for one in a if one not in b), tuple(one for one in b if one not in a)


def _by_key(laws: Laws) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    return {(law["metric"], law["variable"], law["fit"]["law"]): law for law in laws["laws"]}


def _name(laws: Laws, place: str) -> str:
    return str(laws.get("sweep") or (laws.get("table") or {}).get("source") or place)


def _label(law: Mapping[str, Any]) -> str:
    return f"{law['label']}, {law['fit']['law']}"


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_NOISE, abs_tol=1e-300)


def _with(value: float, ends: Any) -> str:
    return exponent(value) + (f" {span(ends)}" if ends != (None, None) else "")
