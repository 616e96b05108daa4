"""Groups of runs: a law, a forecast and a search of rates are of one family."""

import numpy as np
import pandas as pd
import pytest
from three_families import ONE_SCALE, family_trial, trials

from analysis.caveats import caveats
from analysis.export import laws_of
from analysis.selection.rates import rate_sweeps
from analysis.study import studies, study
from analysis.table.table import Table, check
from pipelines.planning.targets import comparable_models
from var_scaling.models.ar.config import ArModel


def table_of(**columns) -> Table:
    rows = pd.DataFrame(
        {
            "trial": [f"t{number}" for number in range(8)],
            "params_blocks": 1000.0 * 2.0 ** np.arange(8),
            "val_loss": 5.0 * 0.9 ** np.arange(8),
            "step": 10,
            "steps": 10,
        }
    )
    return check(rows.assign(**columns))


def test_rows_are_grouped_by_family_tokenizer_and_data():
    assert list(table_of().groups) == [""]
    assert list(table_of(family="var", tokenizer="a").groups) == [""]
    halves = ["var"] * 4 + ["dit"] * 4
    assert list(table_of(family=halves, tokenizer="a").groups) == ["var", "dit"]
    found = table_of(family=halves, tokenizer=["a"] * 4 + ["b", "b", "c", "c"]).groups
    assert {label: len(part.rows) for label, part in found.items()} == {
        "var": 4, "dit, b": 2, "dit, c": 2,
    }  # fmt: skip
    # Another unit of the loss makes another group.
    units = ["nats/token"] * 4 + ["squared error"] * 4
    assert list(table_of(family="dit", loss_unit=units).groups) == [
        "dit, nats/token", "dit, squared error",
    ]  # fmt: skip


def test_no_law_is_fitted_to_several_families():
    mixed = table_of(family=["var"] * 4 + ["dit"] * 4)
    with pytest.raises(ValueError, match="2 groups whose losses do not follow one law: var; dit"):
        study(mixed)
    each = studies(mixed)
    assert list(each) == ["var", "dit"]
    assert [one.get("val_loss", "params_blocks", "pure").fit.points for one in each.values()] == [
        4, 4,
    ]  # fmt: skip


def test_a_forecast_uses_only_runs_of_the_family_of_its_target():
    things = [*trials(1), *trials(2)]
    target = family_trial("ar", ArModel(depth=5, width_per_depth=8), ONE_SCALE)
    assert [one.name for one in comparable_models(things, target)] == ["ar-d1", "ar-d2"]
    others = [one for one in things if one.model.family == "dit"]
    with pytest.raises(
        ValueError, match="ar-d5 is of the family ar, and the finished runs are dit"
    ):
        comparable_models(others, target)


def test_the_best_learning_rate_of_each_size_is_marked_if_at_the_edge():
    losses = {(1000.0, 0.1): 3.0, (1000.0, 0.2): 2.0, (1000.0, 0.4): 2.5, (8000.0, 0.1): 1.5,
              (8000.0, 0.2): 1.6, (8000.0, 0.4): 1.7}  # fmt: skip
    sizes, rates = zip(*losses, strict=True)
    table = check(
        pd.DataFrame(
            {
                "trial": [f"t{n}" for n in range(6)], "params_blocks": sizes, "width": 8,
                "learning_rate": rates, "val_loss": list(losses.values()), "step": 9, "steps": 9,
            }
        )
    )  # fmt: skip
    small, large = rate_sweeps(table.finals, "params_blocks")
    assert (small.best, small.at_edge, small.constant) == (0.2, False, 1.6)
    assert small.relative(0.4) == pytest.approx(0.25)
    assert (large.best, large.at_edge) == (0.1, True)
    message = [each.text for each in caveats(study(table))]
    assert any("edge of the tried range (0.1 of N = 8,000)" in one for one in message)
    assert [one["at_edge"] for one in laws_of(study(table))["rates"]] == [False, True]
