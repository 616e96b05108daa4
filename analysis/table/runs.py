"""Which rows of a run table belong to one run. A name alone does not say: seeds may share it."""

import pandas as pd

from analysis.table.schema import VARIABLES

# Rows with equal values in these columns are of one run.
RUN_COLUMNS = ["sweep", "trial", "seed", *(n for n in VARIABLES if n.startswith("params")),
        "learning_rate"]  # fmt: skip
_PROGRESS = ["step", "train_flops", "tokens_seen"]  # no run has two rows with equal values here


def run_names(rows: pd.DataFrame) -> pd.Series:
    """A name for the run of each row, which no other run has.

    It is the trial; where several runs have that name, it also has the values that differ between
    them, such as "d4, seed 1". Runs that differ in no column but were evaluated at equal steps are
    told apart by their order.
    """
    trials = rows.trial.astype(str)
    key = [name for name in RUN_COLUMNS if name in rows]
    progress = [name for name in _PROGRESS if name in rows]
    repeats = rows.groupby([*key, *progress], dropna=False, sort=False).cumcount() + 1
    names = trials.copy()
    for name in key:
        if name != "trial":
            # NaN counts as a value: a run without a seed is not that of seed 0.
            codes = pd.Series(pd.factorize(rows[name])[0], index=rows.index)
            differs = codes.groupby(trials).transform("nunique") > 1
            names = names.where(~differs, names + f", {name} " + rows[name].map(_shown))
    several = repeats.groupby(names).transform("max") > 1
    return names.where(~several, names + " (" + repeats.astype(str) + ")")


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
