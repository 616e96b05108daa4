"""The run table: rows of any source, and none is dropped without a reason."""

import gzip
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.table.schema import BY_NAME, NATIVE_COLUMNS, SCHEMA, SCORES, VARIABLES
from analysis.table.table import TableError, check, complete, load_results, load_table
from var_scaling.results import make_row


def ours(**changes) -> pd.DataFrame:
    """Six trials of ours, each evaluated half-way and at its end."""
    rows = []
    for depth in range(1, 7):
        for step in (50, 100):
            n = 1152 * depth**3
            loss = (1.5 + (2e-4 * n) ** -0.2) * (1.1 if step == 50 else 1)
            rows.append({
                "sweep": "s", "trial": f"d{depth}", "family": "var", "depth": depth,
                "width": 8 * depth, "seed": 0, "step": step, "steps": 100, "learning_rate": 0.1,
                "tokens_seen": step * 30, "params_total": 2 * n, "params_blocks": n,
                "train_flops": 6 * n * step * 30, "val_loss": loss, "val_loss_last": loss * 1.1,
                "val_error": 0.3 + loss / 10, "val_error_last": 0.3 + loss / 9, "status": "done",
                "val_loss_parts": [loss, loss + 1],
            })  # fmt: skip
    return pd.DataFrame(rows).assign(**changes)


def theirs(**changes) -> pd.DataFrame:
    """A table as in a paper: sizes, tokens, losses."""
    n = np.array([1e7, 3e7, 1e8, 3e8])
    loss = 1.7 + 400 * n**-0.34
    return pd.DataFrame({"params_total": n, "tokens_seen": 20 * n, "val_loss": loss, **changes})


# The schema ---------------------------------------------------------------------------------------


def test_column_names_are_unique_and_include_those_of_our_tables():
    assert [column.name for column in SCHEMA] == list(dict.fromkeys(BY_NAME))
    assert set(NATIVE_COLUMNS) <= set(BY_NAME)
    assert all(column.meaning for column in SCHEMA)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"val_losss": 1.0}, "val_losss: no such columns"),
        ({"depth": 1.5}, "depth = 1.5: expected kind whole"),
        ({"depth": True}, "depth = True: expected kind whole"),
        ({"trial": 3}, "trial = 3: expected kind text"),
        ({"val_loss_parts": [1, "x"]}, "expected kind list"),
        ({"val_loss": "3.1"}, "val_loss = '3.1': expected kind number"),
    ],
)
def test_a_row_refuses_unknown_columns_and_values_of_the_wrong_type(values, message):
    with pytest.raises(ValueError, match=message):
        make_row(values)


def test_a_row_has_every_column_with_none_for_unknown_values():
    row = make_row({"depth": 2, "train_flops": 10**30, "val_loss_parts": (1.0, 2)})
    assert list(row) == list(BY_NAME)
    assert {name for name, value in row.items() if value is not None} == {
        "depth", "train_flops", "val_loss_parts",
    }  # fmt: skip


def test_every_number_has_a_unit_or_is_dimensionless():
    plain = {"seed", "learning_rate", "epochs", "fid", "inception_score", "attempts"}
    plain |= {"kid", "fd_seeded"}
    for column in SCHEMA:
        assert (column.unit == "") == (column.kind == "text" or column.name in plain), column
        assert column.meaning


# Ours ---------------------------------------------------------------------------------------------


def test_our_rows_are_dropped_only_with_a_reason():
    frame = ours()
    frame.loc[0, "val_loss"] = -1.0
    frame.loc[3, "status"] = "diverged"
    frame.loc[6, "val_error"] = np.nan
    frame = pd.concat([frame, frame.iloc[[5]].assign(val_loss=9.0)], ignore_index=True)
    found = check(frame)
    assert found.dropped == (
        "d1 at step 50: val_loss is not a positive number: -1.0",
        "d2 at step 100: diverged",
        "d3 at step 100: a row below has the same trial and step",
        "d4 at step 50: val_error is not a positive number: absent",
    )
    assert len(found.rows) == len(frame) - 4
    assert found.finals.set_index("trial").val_loss["d3"] == 9.0  # the last counts
    assert found.assumed == ()


def test_laws_use_only_final_evaluations_of_finished_trials():
    frame = ours()
    frame.loc[frame.trial == "d6", "status"] = "running"
    finals = check(frame).finals
    assert finals.trial.tolist() == ["d1", "d2", "d3", "d4", "d5"]
    assert (finals.step == 100).all()
    assert finals.params_total.dtype == np.int64  # a count stays an integer


def test_only_the_training_of_an_imported_model_may_be_unknown():
    unknown = dict.fromkeys(("seed", "step", "steps", "tokens_seen", "train_flops"))
    imported = ours().iloc[[11]].assign(trial="it", status="imported", **unknown)
    bad = imported.assign(trial="bad", params_blocks=None)
    found = check(pd.concat([ours(), imported, bad], ignore_index=True))
    assert found.finals.trial.tolist()[-1] in ("d6", "it")
    assert "it" in set(found.finals.trial)
    assert found.dropped == ("bad: params_blocks is not a positive number: absent",)
    trained = ours()
    trained.loc[11, "train_flops"] = None
    assert check(trained).dropped == (
        "d6 at step 100: train_flops is not a positive number: absent",
    )


# Tables of other programs ------------------------------------------------------------------------


def test_a_table_needs_only_a_score_and_a_variable():
    found = check(theirs())
    assert found.finals.trial.tolist() == ["row-1", "row-2", "row-3", "row-4"]
    assert set(BY_NAME) <= set(found.finals.columns)
    assert found.finals[["seed", "depth", "width", "learning_rate", "step"]].isna().all(axis=None)
    assert found.finals.family.tolist() == [None] * 4
    assert (found.rows.status == "done").all()
    assert not found.dropped
    for score, variable in zip(SCORES, VARIABLES, strict=True):
        frame = pd.DataFrame({score: [0.5, 0.4], variable: [2e6, 1e6]})
        assert check(frame).finals[variable].tolist() == [1e6, 2e6]


def test_a_run_without_a_stated_length_ends_at_its_last_step():
    frame = pd.DataFrame({
        "trial": ["a", "a", "b", "b"], "step": [10, 20, 10, 40], "params_total": [1, 1, 2, 2],
        "val_loss": [4, 3, 3.5, 2],
    })  # fmt: skip
    found = check(frame)
    assert found.finals.val_loss.tolist() == [3, 2]
    assert "steps of 4 rows is not given: each run ends at its last step" in found.notes


def test_seeds_with_one_name_are_not_duplicates():
    frame = ours().assign(sweep="s", trial="same", depth=3)
    assert len(check(frame).finals) == 6
    assert "5 runs have the name of another" in check(frame).notes[-1]
    seeds = theirs(trial="d8", params_total=1e8, seed=[0, 1, 2, 3], step=10)
    assert len(check(seeds).finals) == 4


def test_the_same_row_twice_counts_once():
    found = check(pd.concat([theirs(), theirs().iloc[[1]]]))
    assert found.dropped == ("row-2: an identical row is below",)
    assert len(found.finals) == 4


@pytest.mark.parametrize("value", [0, -2.5, "n/a?", math.inf])
@pytest.mark.parametrize("column", ["val_loss", "params_total", "tokens_seen"])
def test_a_row_with_a_bad_number_is_dropped_and_reported(column, value):
    frame = theirs().astype({column: object})
    frame.loc[2, column] = value
    (dropped,) = check(frame).dropped
    assert dropped.startswith(f"row-3: {column} is not a positive number: ")
    assert str(value) in dropped


def test_a_row_without_one_score_is_kept_for_the_others():
    found = check(theirs(val_error=[0.9, None, 0.7, None], val_loss=[3, 2.9, None, None]))
    assert found.dropped == ("row-4: no score is given",)
    assert found.finals.val_error.isna().tolist() == [False, True, False]
    assert "val_error is unknown in 1 of 3 rows; laws that need it leave it out" in found.notes


def test_an_invalid_optional_value_is_unknown_and_reported():
    found = check(theirs(depth=["six", "8", 10, -1], val_loss_parts=["[1, 2.5]", "?", "", None]))
    assert found.rows.depth.tolist()[1:3] == [8, 10]
    assert found.rows.depth.isna().tolist() == [True, False, False, True]
    assert "depth of 2 rows is not valid and counts as unknown: 'six'" in found.notes
    assert found.rows.val_loss_parts.tolist() == [[1, 2.5], None, None, None]
    assert "val_loss_parts of 1 row is not valid and counts as unknown: '?'" in found.notes


def test_known_status_words_of_third_parties_are_mapped_and_others_not_guessed():
    found = check(theirs(status=["FINISHED", "completed", "Running", "crashed"]))
    assert found.rows.status.tolist() == ["done", "done", "running"]
    assert found.dropped[0].startswith("row-4: status is none of done, running")
    assert len(found.finals) == 2


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (theirs().drop(columns="val_loss"), "columns missing: a score, .*there are: params_total,"),
        (theirs()[["val_loss"]], "columns missing: a variable, which is one of tokens_seen"),
        (pd.DataFrame(), "columns missing: a score.*there are: none"),
        (theirs().iloc[:0], "the table is empty"),
        (ours(val_loss=np.nan), "no usable row: .*val_loss is not a positive number: absent"),
        (theirs(val_loss=np.nan), "no usable row: row-1: no score is given"),
        (theirs(val_error=[0.9, 45.2, 44, 43]), "val_error is up to 45.2, .*in per cent"),
        (pd.concat([theirs(), theirs()[["val_loss"]]], axis=1), "two columns are named val_loss"),
    ],
)
def test_an_unusable_table_is_refused_with_the_reason(frame, message):
    with pytest.raises(TableError, match=message):
        check(frame)


def test_a_column_that_a_file_has_twice_is_refused(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("params_total,val_loss,val_loss\n1e6,3,2\n1e7,2.5,2\n")
    with pytest.raises(TableError, match="two columns are named val_loss"):
        load_table(path)
    path.write_text("params_total,loss,loss\n1e6,3,2\n1e7,2.5,2\n")
    with pytest.raises(TableError, match="two columns are named val_loss"):
        load_table(path, {"loss": "val_loss"})


MESS = (None, math.nan, 0, -1, 0.5, 2, "x", "", "1e5", math.inf, True, pd.NA, [1.0], 10**25, b"x")


@settings(max_examples=8, deadline=None)
@given(
    mess=st.lists(st.tuples(*[st.sampled_from(MESS)] * 5), min_size=1, max_size=5),
    names=st.permutations([name for name, column in BY_NAME.items() if column.sign != "share"]),
)
def test_every_row_of_arbitrary_cells_is_usable_or_has_a_reason(mess, names):
    columns = ["val_loss", "params_total", *names]
    good = (1.5, 2.0, *[None] * 3)
    frame = pd.DataFrame([*mess, good], columns=list(dict.fromkeys(columns))[:5], dtype=object)
    frame["status"] = "done"
    found = check(frame)
    assert len(found.rows) + len(found.dropped) == len(frame)
    for name in ("val_loss", "params_total"):
        known = found.rows[name].dropna()
        assert (np.isfinite(known) & (known > 0)).all()
    assert len(check(found.rows).rows) == len(found.rows)  # rows that were kept stay the same


# Files --------------------------------------------------------------------------------------------


def test_every_file_format_gives_the_same_table(tmp_path):
    frame = ours()
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_csv(tmp_path / "excel.csv", index=False, sep=";", encoding="utf-8-sig")
    frame.to_csv(tmp_path / "t.csv.gz", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    tables = [load_table(path) for path in sorted(tmp_path.iterdir())]
    assert len(tables) == 5
    assert {table.fingerprint for table in tables} == {check(frame).fingerprint}
    assert all(len(table.finals.val_loss_parts[0]) == 2 for table in tables)
    assert load_results(tmp_path / "t.csv").source == str(tmp_path / "t.csv")


def test_third_party_columns_are_renamed_and_a_wrong_name_lists_the_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Model Size, Training FLOP,loss,colour\n1e9,1e20,2.5,red\n2e9,3e20,2.4,red\n")
    names = {"Model Size": "params_total", "Training FLOP": "train_flops", "loss": "val_loss"}
    found = load_table(path, names)
    assert found.finals.train_flops.tolist() == [1e20, 3e20]
    assert found.finals.colour.tolist() == ["red", "red"]
    for wrong, message in (
        ({"Model size": "params_total"}, "no 'Model size'; there are: Model Size, Training FLOP,"),
        ({"loss": "validation_loss"}, "'validation_loss' is no column .*val_loss"),
        (
            {"loss": "val_loss", "colour": "val_loss"},
            "'loss' and 'colour' are both mapped to val_loss",
        ),
        ({"loss": "val_loss"}, "columns missing: a variable"),
    ):
        with pytest.raises(TableError, match=message):
            load_table(path, wrong)
    theirs().assign(loss=1.0).to_csv(path)
    with pytest.raises(TableError, match="there is already a column val_loss"):
        load_table(path, {"loss": "val_loss"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "the file is empty"),
        ("t.csv", b"params_total,val_loss\n", "the table is empty"),
        ("t.csv", b"params_total,val_loss\n1,2\n1,2,3,4\n", "cannot be read"),
        ("t.csv", b"\xff\xfe\x00p", "cannot be read"),
        ("t.csv.gz", b"no gzip", "cannot be read"),
        ("t.csv.gz", gzip.compress(b"params_total\n" * 99, mtime=0)[:-20], "cannot be read"),
        ("t.parquet", b"PAR1 no parquet", "cannot be read"),
        ("t.xlsx", b"", r"must be one of \.csv"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError, match=message) as reported:
        load_table(tmp_path / name)
    assert "\n" not in str(reported.value)


def test_a_missing_file_is_refused_without_a_traceback(tmp_path):
    with pytest.raises(TableError, match="no such file"):
        load_table(tmp_path / "none.csv")
    with pytest.raises(TableError, match="no results yet"):
        load_results(tmp_path / "none.parquet")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(TableError, match="cannot be read"):
        load_table(tmp_path / "folder.csv")


# Fingerprint and completion -----------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(12)), columns=st.randoms(use_true_random=False))
def test_the_fingerprint_depends_only_on_the_content(order, columns):
    frame = ours()
    names = list(frame.columns)
    columns.shuffle(names)
    other = frame.iloc[list(order)][names].astype({"depth": "int16", "seed": "float32"})
    other = other.assign(colour="red", fid=None)
    assert check(other).fingerprint == check(frame).fingerprint
    assert len(check(frame).fingerprint) == 12


def test_the_fingerprint_changes_with_any_number():
    known = {check(theirs()).fingerprint, check(theirs().iloc[:3]).fingerprint}
    for column in theirs().columns:
        frame = theirs()
        frame.loc[1, column] = np.nextafter(frame.loc[1, column], np.inf)
        known.add(check(frame).fingerprint)
    assert len(known) == 5
    assert check(theirs(status="done")).fingerprint != check(theirs(seed=0)).fingerprint
    shuffled = theirs().iloc[
        [2, 0, 3, 1]
    ]  # its rows get different generated names, unless names are given
    assert check(shuffled).fingerprint == check(theirs()).fingerprint


def test_missing_compute_is_filled_by_6nd_only_if_requested():
    n, d = theirs().params_total, theirs().tokens_seen
    table = check(theirs())
    assert table.finals.train_flops.isna().all()
    full = complete(table, "train_flops")
    assert full.finals.train_flops.tolist() == (6 * n * d).tolist()
    assert full.notes[-1] == (
        "train_flops of 4 rows was computed by C = 6 N D from params_total and tokens_seen"
    )
    assert full.fingerprint != table.fingerprint
    assert full.finals.trial.tolist() == table.finals.trial.tolist()
    assert table.finals.train_flops.isna().all()
    for lost in ("tokens_seen", "params_total"):
        frame = full.rows.assign(**{lost: np.nan})
        frame.loc[0, lost] = 7.0  # known values do not change
        found = complete(check(frame), lost).finals.sort_values("trial")[lost].to_numpy()
        np.testing.assert_allclose(found, [7.0, *theirs()[lost][1:]], rtol=1e-12)
    for column, parameters, message in (
        ("train_flops", "params_blocks", "no row without train_flops has both params_blocks and"),
        ("tokens_seen", "params_total", "tokens_seen is known in every row"),
        ("val_loss", "params_total", "'val_loss': C = 6 N D gives one of train_flops, params_to"),
    ):
        with pytest.raises(TableError, match=message):
            complete(table, column, parameters)
