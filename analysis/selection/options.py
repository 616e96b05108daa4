"""What a study fits besides its objective: some of the laws, fixed E, weights, predictions."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.compute_optimal.isoflop import LOG_PARABOLA
from analysis.compute_optimal.parabola import BUDGET_TOLERANCE
from analysis.table.validate import TableError

# The laws that a study fits, by name (analysis.fitting.laws).
LAW_NAMES = ("pure", "floor", "logit", "surface")
# Other laws in N and D, which a study fits only by name.
FORM_NAMES = ("tied", "interaction", "varying", "repeated")


@dataclass(frozen=True)
class Options:
    """The defaults fit every law to all runs with equal weights, E included."""

    laws: tuple[str, ...] = LAW_NAMES
    E: float | None = None  # fixed irreducible loss, in every law that has one
    weights: str | None = None  # column of the table: the weight of each run
    budgets: str | None = None  # column of the table: the nominal budget of each run, FLOPs
    unique: str | None = None  # column of the table: the different training tokens of each run, U
    curve: str = LOG_PARABOLA  # of the isoFLOPs (analysis.compute_optimal.isoflop.CURVES)
    at: Mapping[str, float] = field(default_factory=dict)  # values of N, D, C to predict L at

    def weights_of(self, runs: pd.DataFrame) -> NDArray[np.float64] | None:
        """The weights of `runs`, (n,); None where no column is named."""
        return None if self.weights is None else column_of(runs, self.weights, "--weights")

    def budgets_of(self, runs: pd.DataFrame) -> list[float] | None:
        """The different nominal budgets of `runs`; None where no column is named.

        Raises TableError where budgets are so close that a run would count as one of another.
        """
        if self.budgets is None:
            return None
        own = column_of(runs, self.budgets, "--budget-column")
        budgets = np.unique(own)
        # As the isoFLOPs do: a run belongs to the nearest budget.
        spent = runs.train_flops.to_numpy(dtype=float)
        apart = np.abs(np.log(spent)[:, None] - np.log(budgets))
        nearest = budgets[apart.argmin(1)]
        within = np.abs(np.log(spent / own)) <= np.log1p(BUDGET_TOLERANCE)
        if len(wrong := np.flatnonzero(within & (nearest != own))):
            first = wrong[0]
            raise TableError(
                f"--budget-column {self.budgets}: the budgets {own[first]:.6g} and "
                f"{nearest[first]:.6g} are too close: {runs.trial.iloc[first]} has the first one, "
                f"and its FLOPs, {spent[first]:.6g}, are nearer to the second; leave out one of "
                "the budgets, or give both the same number"
            )
        return [float(each) for each in budgets]

    def unique_of(self, runs: pd.DataFrame) -> NDArray[np.float64] | None:
        """The different tokens of `runs`, (n,); None where no column is named."""
        return None if self.unique is None else column_of(runs, self.unique, "--unique-column")

    def refuse_wrong_columns(self, runs: pd.DataFrame) -> None:
        """Raise TableError if a named column is not in `runs` or has no positive numbers."""
        for values_of in (self.weights_of, self.budgets_of, self.unique_of):
            values_of(runs)


DEFAULTS = Options()


def column_of(runs: pd.DataFrame, column: str, option: str) -> NDArray[np.float64]:
    """A column of positive numbers. Raises TableError, which names `option`."""
    if column not in runs:
        known = ", ".join(str(name) for name in runs.columns if runs[name].notna().any())
        raise TableError(f"{option} {column}: there is no such column; there are: {known}")
    values = pd.to_numeric(runs[column], errors="coerce").to_numpy(dtype=float)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(wrong):
        raise TableError(
            f"{option} {column}: {len(wrong)} of {len(values)} runs have no positive number there, "
            f"the first is {runs.trial.iloc[wrong[0]]}"
        )
    return values
