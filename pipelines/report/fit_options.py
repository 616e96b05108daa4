"""The options of `fit` as text from a command line, parsed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.planning.named_numbers import numbers_by_name, point_of_text
from var_scaling.disk import read_json

if TYPE_CHECKING:
    from analysis.selection.options import Options


# Laws of analysis.fitting.laws whose left side is no metric of a run table, by name.
_OTHER_LAWS = {
    "rising": "N = k C^a is a law of best sizes, which the approaches to the best N and D have; "
    "for other points use fit_law(RISING, C, N)",
    "sigmoid": "is a law of a task's score in the loss, and a run table has no such score; use "
    "fit_law(SIGMOID, loss, score)",
}


@dataclass(frozen=True)
class FitOptions:
    """What the user gave; empty where an option was left out."""

    where: str | None = None  # --where
    laws: tuple[str, ...] = ()  # --law
    fixed: tuple[str, ...] = ()  # --fixed
    weights: str | None = None  # --weights
    predict: str | None = None  # --predict
    budgets: str | None = None  # --budget-column
    parabola_in: str | None = None  # --parabola-in
    spline: bool = False  # --spline
    unique: str | None = None  # --unique-column

    @property
    def recorded(self) -> dict[str, Any]:
        """The given options by name, for laws.json; a fit without options records nothing."""
        given = {
            "--where": self.where, "--law": list(self.laws), "--fixed": list(self.fixed),
            "--weights": self.weights, "--predict": self.predict, "--budget-column": self.budgets,
            "--parabola-in": self.parabola_in, "--spline": self.spline,
            "--unique-column": self.unique,
        }  # fmt: skip
        return {option: value for option, value in given.items() if value}

    @classmethod
    def of_record(cls, recorded: Mapping[str, Any]) -> "FitOptions":
        """The options of which `recorded` is the record."""
        return cls(
            recorded.get("--where"), tuple(recorded.get("--law", ())),
            tuple(recorded.get("--fixed", ())), recorded.get("--weights"),
            recorded.get("--predict"), recorded.get("--budget-column"),
            recorded.get("--parabola-in"), recorded.get("--spline", False),
            recorded.get("--unique-column"),
        )  # fmt: skip

    @property
    def settings(self) -> dict[str, str]:
        """The given options as text, for a page."""
        return {
            option: ", ".join(value) if isinstance(value, list) else _as_text(value)
            for option, value in self.recorded.items()
        }

    def parsed(self) -> "Options":
        """The options of a study, without `where`. Raises ValueError, which names the option."""
        from analysis.selection.options import FORM_NAMES, LAW_NAMES, Options

        allowed = (*LAW_NAMES, *FORM_NAMES)
        if unknown := [name for name in self.laws if name not in allowed]:
            why = _OTHER_LAWS.get(unknown[0], f"the laws are {', '.join(allowed)}")
            raise ValueError(f"--law {unknown[0]}: {why}")
        if "repeated" in self.laws and self.unique is None:
            raise ValueError(
                "--law repeated: needs --unique-column, the column with the different training "
                "tokens of each run"
            )
        if self.unique is not None and "repeated" not in self.laws:
            raise ValueError(f"--unique-column {self.unique}: only with --law repeated")
        E = fixed_E(self.fixed, self.laws)
        at = point_of_text("--predict", self.predict or "")
        laws, curve = self.laws or LAW_NAMES, self._curve()
        return Options(laws, E, self.weights, self.budgets, self.unique, curve, at)

    def _curve(self) -> str:
        """The curve of the isoFLOPs: one of analysis.compute_optimal.isoflop.CURVES."""
        from analysis.compute_optimal.isoflop import LOG_PARABOLA, PARABOLA, SPLINE

        if self.spline and self.parabola_in is not None:
            raise ValueError(
                f"--spline with --parabola-in {self.parabola_in}: a spline needs no parabola; give "
                "only one of them"
            )
        return SPLINE if self.spline else PARABOLA if self.parabola_in == "L" else LOG_PARABOLA


NO_OPTIONS = FitOptions()


def fixed_E(texts: Sequence[str], laws: Sequence[str]) -> float | None:
    """The value of --fixed, such as "E=1.8"; None where it is not given.

    Raises ValueError for another name than E, and where none of the `laws`, if any, has an E.
    """
    fixed = numbers_by_name("--fixed", texts, "E=1.8", minimum=0)
    if others := [name for name in fixed if name != "E"]:
        raise ValueError(
            f"--fixed {others[0]}={fixed[others[0]]:g}: only E, the irreducible loss, can be fixed"
        )
    if fixed and laws and not set(laws) - {"pure", "logit"}:
        raise ValueError(f"--fixed E={fixed['E']:g}: --law {laws[0]} has no E")
    return fixed.get("E")


def _as_text(value: Any) -> str:
    return "yes" if value is True else str(value)


def latest_fit(folder: Path) -> tuple[str, FitOptions]:
    """Objective and options of the fit in `folder`, which has its laws.json; else the defaults."""
    path = folder / "laws.json"
    laws = read_json(path) if path.exists() else {}
    return laws.get("objective", "squares"), FitOptions.of_record(laws.get("options", {}))
