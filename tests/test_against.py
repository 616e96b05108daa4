"""Comparison of two reports: no difference of a report with itself, a shift is detected."""

import json

import numpy as np
import pytest
from test_report import assert_sound, frame

from analysis.export import laws_of
from analysis.report.compare import difference, write_difference
from analysis.study import study
from analysis.table.table import check


@pytest.fixture(scope="module")
def ours():
    return study(check(frame(), "ours.parquet"))


def stored(found, **more):
    """A round trip through laws.json."""
    return json.loads(json.dumps({**laws_of(found), **more}, allow_nan=False))


def test_a_report_does_not_differ_from_itself(ours, tmp_path):
    laws = stored(ours, sweep="s")
    found = difference(laws, laws)
    assert found.nothing
    assert found.changed == found.runs_a == found.runs_b == ()
    assert found.settings == {}
    reasons = {law.label: law.why for law in found.laws if law.p is None}
    assert len(reasons) == len({law.label for law in found.laws})
    for label, why in reasons.items():
        # The points of a frontier depend on each other, also within one report.
        assert ("upper bounds" if "(C)" in label else "in both") in why
    write_difference(tmp_path / "d.html", found)
    page = (tmp_path / "d.html").read_text()
    assert_sound(page)
    assert "Nothing differs" in page


def test_a_shifted_table_is_reported_for_each_law_and_run(ours, tmp_path):
    table = frame(seeds=(2, 3))
    table["val_loss"] = table.val_loss * (table.params_blocks / 1e5) ** -0.01
    table["trial"] = table.trial.str.replace("-2", "-0")
    other = study(check(table.drop(columns=["params_total", "train_flops"]), "other <b>.csv"))
    found = difference(stored(ours), stored(other, sweep="later"))
    assert not found.nothing
    pure = next(law for law in found.laws if (law.label, law.law) == ("L_mean(N)", "pure"))
    both = pure.parameters["alpha"]
    assert both.difference == pytest.approx(0.01, abs=0.003)
    assert both.low < both.difference < both.high
    assert pure.p < 0.01
    assert "L_mean(N_total), pure" in found.only_a
    assert found.only_b == ()
    assert found.runs_a == tuple(f"d{d}-1" for d in range(1, 8))
    assert found.runs_b == tuple(f"d{d}-3" for d in range(1, 8))
    assert [line.split(":")[0] for line in found.changed] == [f"d{d}-0" for d in range(1, 8)]
    assert {"sweep", "table source", "table fingerprint"} <= set(found.settings)
    assert found.settings["sweep"] == (None, "later")
    assert found.trial_settings == ["seed: 0, 1 | 2, 3"]
    largest = max(found.levels, key=lambda at: at.size)
    assert largest.relative == pytest.approx((largest.size / 1e5) ** -0.01 - 1, abs=0.005)
    json.dumps(found.as_dict(), allow_nan=False)
    assert len({len(column) for column in found.rows().values()}) == 1
    write_difference(tmp_path / "d.html", found)
    page = (tmp_path / "d.html").read_text()
    assert_sound(page)
    assert "other &lt;b&gt;.csv" in page


def test_the_one_law_test_rejects_at_its_nominal_rate():
    """p is uniform if both tables follow one law: about a tenth of 60 is below 0.1."""
    n = 1152.0 * np.arange(1, 8) ** 3

    def law(seed):
        y = (2e-4 * n) ** -0.2 * np.exp(np.random.default_rng(seed).normal(0, 0.004, 7))
        return {"fit": {"law": "pure", "floor_fixed_at": None}, "x": n.tolist(), "y": y.tolist()}

    from analysis.comparison.one_law import one_law_for_both

    low = sum(one_law_for_both(law(2 * k), law(2 * k + 1)).p < 0.1 for k in range(60))
    assert 1 <= low <= 14


def test_laws_of_another_format_are_refused(ours):
    with pytest.raises(ValueError, match="has format 1"):
        difference(stored(ours), {**stored(ours), "format": 1})


def test_settings_in_which_the_trials_differ_are_listed(ours):
    table = frame()
    table["learning_rate"] = table.learning_rate / 2
    table = table[table.depth > 2]
    found = difference(stored(ours), stored(study(check(table, "half"))))
    names = [line.split(":")[0] for line in found.trial_settings]
    assert names == ["depth", "learning_rate"]
    assert found.trial_settings[0] == "depth: 1, 2, 3, 4, 5, 6, 7 | 3, 4, 5, 6, 7"
