"""Comparison of two reports: laws that differ significantly, other runs, other settings."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.comparison.one_law import CommonLawTest, one_law_for_both
from analysis.export import FORMAT
from analysis.format import SYMBOLS, change, exponent, level, signed, significant, span
from analysis.plots.diagnostics import Dot, dots_figure
from analysis.plots.style import VERMILION, save
from analysis.report.html import environment, figure_of
from var_scaling.text import counted

Laws = Mapping[str, Any]  # what laws.json holds
_SAME_SIZE = 1e-6  # relative
_NOISE = 1e-12  # relative: numbers that differ by less are equal up to rounding
_PARAMETERS = ("alpha", "beta", "E", "A", "B")  # of a law in one variable only α and E
_SIGNIFICANT = 0.05  # p
# F needs independent points; the surfaces of both reports have a test of their own.
_NO_TEST = CommonLawTest(
    None, "no test: the points of a frontier are upper bounds and not independent", None
)
_CAPTION = (
    "The exponents of both reports with their 95 % intervals; an arrow: an open end. Laws that the "
    "data of either contradict are left out."
)
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
    caution: str = ""  # why the law should not be used in one of the two

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
    def main(self) -> LawPair | None:
        """The pair that the page begins with: the first that is a law in both."""
        return next((law for law in self.laws if not law.caution), None)

    @property
    def sentence(self) -> str:
        """The main result in words."""
        if self.nothing:
            return "Nothing differs."
        if self.main is None:
            return "The two reports share no law."
        law, (a, b) = self.main, self.names
        words = "; ".join(
            f"{SYMBOLS.get(name, name)} is {_with(pair.a, pair.a_interval)} in {a} and "
            f"{_with(pair.b, pair.b_interval)} in {b}, a difference of "
            f"{change(pair.difference)}"
            + (f" {span((pair.low, pair.high), 'change')}" if pair.low is not None else "")
            for name, pair in law.parameters.items()
            if name in ("alpha", "beta")
        )
        return f"{law.label}, {law.law}: {words} (95 %). {_one_law(law)}"

    @property
    def undetermined(self) -> tuple[str, ...]:
        """The laws without a test or a partner, in words."""
        reasons: dict[str, list[str]] = {}
        for law in self.laws:
            if law.p is None and law != self.main:
                reasons.setdefault(law.why, []).append(f"{law.label} {law.law}")
        lines = [f"{', '.join(labels)}: {why}." for why, labels in reasons.items()]
        for name, only in zip(self.names, (self.only_a, self.only_b), strict=True):
            if only:
                lines.append(f"Only in {name}: {'; '.join(only)}.")
        return tuple(lines)

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
            "of": [SYMBOLS.get(name, name) for _, name, _ in parts],
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
    names = (a, b) if a != b else (f"{a} (a)", f"{b} (b)")
    mixed = tuple(laws.get("mixed_data") or {} for laws in (laws_a, laws_b))
    return Difference(
        names=names,
        laws=tuple(_pair(keyed_a[key], keyed_b[key], names, mixed) for key in shared),
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
    figure = exponents_of_both(comparison)
    shown = None
    if figure is not None:
        name = path.stem
        png = save(figure, path.parent, name)
        shown = figure_of(name, png) | {"caption": _CAPTION}
    template = environment().get_template("against.html.j2")
    page = template.render(comparison=comparison, figure=shown, SYMBOLS=SYMBOLS)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def exponents_of_both(comparison: Difference) -> Figure | None:
    """The exponents of both reports with their intervals, a panel for each law; None without any
    law that both share.
    """
    groups = {}
    for law in comparison.laws:
        if law.caution or law.law not in ("pure", "surface"):
            continue
        for name, pair in law.parameters.items():
            if name in ("alpha", "beta"):
                groups[f"{SYMBOLS[name]} of {law.label}"] = [
                    Dot(comparison.names[0], pair.a, *pair.a_interval),
                    Dot(comparison.names[1], pair.b, *pair.b_interval, colour=VERMILION),
                ]
    return dots_figure(groups, "exponent, with its 95 % interval") if groups else None


def _pair(
    a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str], mixed: Any
) -> LawPair:
    """`mixed`: for each report, its metrics whose runs have different D at one size."""
    parameters = {}
    for name in _PARAMETERS if "N" in a else ("alpha", "E"):
        values = [law["fit"]["values"].get(name) for law in (a, b)]
        if None not in values:
            intervals = [law["intervals"].get(name) for law in (a, b)]
            parameters[name] = _parameter_pair(values[0], values[1], *intervals)
    points = len(a["y"]), len(b["y"])
    test = one_law_for_both(a, b) if a.get("variable") != "train_flops" else _NO_TEST
    cautions = []
    for law, name, metrics in zip((a, b), names, mixed, strict=True):
        if law.get("no_law"):
            cautions.append(f"no law in {name}: {law['no_law']}")
        elif law.get("variable", "train_flops") != "train_flops" and law["metric"] in metrics:
            cautions.append(f"no law in {name}: its runs have different D")
    return LawPair(
        a["label"], a["fit"]["law"], parameters, points, test.p, test.why, test.values,
        "; ".join(cautions),
    )  # fmt: skip


def _one_law(law: LawPair) -> str:
    """The test of a common law, in words."""
    if law.p is None:
        return f"Whether one law describes both is not known: {law.why.removeprefix('no test: ')}."
    p = f"p = {significant(law.p, 2)}, F test"
    if law.p < _SIGNIFICANT:
        return f"One law for all points is rejected ({p})."
    return f"One law for all points is not rejected ({p})."


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
    if a["fit"]["law"] != "pure" or a.get("variable") == "train_flops":
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
            changes.append(f"{label} {counted(len(points_a), 'point')} and {len(points_b)}")
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
    """Laws in one variable, and surfaces; those first that the report puts first."""
    one = {(law["metric"], law["variable"], law["fit"]["law"]): law for law in laws["laws"]}
    surfaces = {
        (law["metric"], "N, D", law["fit"]["law"]): law for law in laws.get("surfaces") or []
    }
    return {**surfaces, **one} if laws.get("mixed_data") else {**one, **surfaces}


def _name(laws: Laws, default: str) -> str:
    return str(laws.get("sweep") or (laws.get("table") or {}).get("source") or default)


def _label(law: Mapping[str, Any]) -> str:
    return f"{law['label']}, {law['fit']['law']}"


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_NOISE, abs_tol=1e-300)


def _with(value: float, ends: Any) -> str:
    return exponent(value) + (f" {span(ends)}" if ends != (None, None) else "")
