"""The first screen of a report: one sentence with its interval, what is unknown, details folded."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from test_report import assert_sound, frame

from analysis.export import laws_of
from analysis.plots.all_figures import FIGURES
from analysis.report.compare import difference, exponents_of_both, write_difference
from analysis.report.html import Facts, write_report
from analysis.selection.options import Options
from analysis.study import study
from analysis.summary import main_result
from analysis.table.table import check

SIZES = 1e6 * np.arange(1, 9.0) ** 3
FACTS = Facts("a sweep", "Does it fall?", {}, {})


def fitted(losses, sizes=SIZES, **columns):
    return study(check(pd.DataFrame({"params_total": sizes, "val_loss": losses, **columns})))


def noisy(losses, noise=0.002, seed=0):
    return losses * np.exp(np.random.default_rng(seed).normal(0, noise, len(losses)))


def grid():
    N, D = (each.ravel() for each in np.meshgrid(np.geomspace(1e7, 1e9, 5), [2e9, 8e9, 3e10]))
    return fitted(noisy(1.7 + 400 * N**-0.34 + 410 * D**-0.28), N, tokens_seen=D)


def test_a_pure_law_is_one_sentence_with_its_interval():
    result = main_result(fitted(noisy(2.5 * (SIZES / 1e6) ** -0.2)))
    pattern = (
        r"L_mean \(loss, all scales\) falls as a power law of N_total \(all parameters\): exponent "
        r"0\.(20|19)\d\d \(95\s%: 0\.19\d\d to 0\.20\d\d\); each doubling lowers it by 1[23]\.\d% "
        r"\(1\d\.\d% to 1\d\.\d%\); the data need no irreducible loss\."
    )
    assert re.fullmatch(pattern, result.sentence)
    assert any("L_last, Err_mean, Err_last" in line for line in result.undetermined)
    assert any("seed" in line for line in result.limits)
    assert result.contradicted == ()


def test_an_irreducible_loss_is_in_the_sentence_with_its_interval():
    sentence = main_result(fitted(noisy(1.5 + 2 * (SIZES / 1e6) ** -0.3))).sentence
    assert re.search(r"above an irreducible loss E = 1\.[45]\d* \(1\.\d+ to 1\.\d+\)", sentence)
    assert "each doubling lowers the part above E by" in sentence


def test_where_the_data_do_not_decide_the_sentence_says_how_large_E_and_exponent_may_be():
    sizes = np.geomspace(1e6, 2e7, 6)
    losses = noisy(0.3 + (sizes / 1e5) ** -0.3, 0.01, 5)
    found = fitted(losses, sizes)
    assert found.choices["val_loss", "params_total"].preferred is None
    result = main_result(found)
    assert "do not exclude an irreducible loss up to" in result.sentence or (
        "which the data do not decide, above an irreducible loss" in result.sentence
    )
    assert any(line.startswith("L_mean(N_total):") for line in result.undetermined)


def test_the_number_of_tokens_is_named_where_all_runs_have_the_same():
    losses = noisy(1.5 + 2 * (SIZES / 1e6) ** -0.3)
    same = main_result(fitted(losses, tokens_seen=7.2e10)).sentence
    assert "power law of N_total (all parameters) at D = 7.2e10 tokens above" in same
    assert "at D =" not in main_result(fitted(losses)).sentence


def test_a_fixed_E_that_the_points_reject_is_said():
    table = check(pd.DataFrame({"params_total": SIZES, "val_loss": 1.7 + (SIZES / 1e4) ** -0.34}))
    rejected = main_result(study(table, options=Options(E=1.5)))
    assert any("reject the fixed E = 1.5" in line for line in rejected.limits)
    assert not any("reject" in line for line in main_result(study(table)).limits)


def test_a_contradicted_law_is_not_announced_and_its_reason_is_the_sentence():
    result = main_result(fitted(noisy(2 * (SIZES / 1e6) ** 0.1)))
    assert result.sentence.startswith("No law is announced. val_loss rises with size")
    assert result.contradicted == ()


def test_runs_of_different_D_begin_with_the_surface():
    sentence = main_result(grid()).sentence
    assert sentence.startswith("L_mean(N_total, D): a power law in both N and D, α = 0.3")
    assert FIGURES["main_law"](grid()) is None


def test_a_table_without_any_law_says_so():
    result = main_result(fitted([2.0], SIZES[:1]))
    assert result.sentence == "No law could be fitted."
    assert any(line.startswith("Not fitted: ") for line in result.undetermined)


def test_all_details_are_folded_below_the_first_screen(tmp_path):
    write_report(tmp_path / "index.html", fitted(noisy(2.5 * SIZES**-0.1)), {}, FACTS)
    page = (tmp_path / "index.html").read_text()
    assert_sound(page)
    first = page[page.index('id="result"') : page.index("<nav")]
    assert "falls as a power law of N_total" in first
    assert "Not determined" in first
    assert "Limits of the data" in first
    main = page[page.index("<main>") : page.index("</main>")]
    assert main.count("<details>") == main.count("<section ") == main.count("</details>") > 5
    assert "<details open" not in page


def test_surfaces_are_compared_with_their_intervals_and_a_common_law(tmp_path):
    a = json.loads(json.dumps(laws_of(grid())))
    shifted = {**a, "surfaces": [dict(a["surfaces"][0])], "sweep": "other"}
    surface = shifted["surfaces"][0]
    surface["y"] = [1.1 * y for y in surface["y"]]
    found = difference(a, shifted)
    pair = next(law for law in found.laws if law.law == "surface")
    assert found.main == pair  # laws in N alone are none here
    assert list(pair.parameters) == ["alpha", "beta", "E", "A", "B"]
    assert pair.p < 1e-3
    assert "β is 0." in found.sentence
    assert "One law for all points is rejected" in found.sentence
    alone = next(law for law in found.laws if (law.label, law.law) == ("L_mean(N_total)", "pure"))
    assert "its runs have different D" in alone.caution
    assert len(exponents_of_both(found).axes) == 2
    write_difference(tmp_path / "against.html", found)
    page = (tmp_path / "against.html").read_text()
    assert_sound(page)
    assert (tmp_path / "against.png").exists()
    assert page.index('id="result"') < page.index("<details")


def test_two_reports_with_no_law_in_common_say_so(tmp_path):
    ours = json.loads(json.dumps(laws_of(study(check(frame())))))
    found = difference({**ours, "laws": [], "surfaces": [], "sweep": "a"}, ours)
    assert found.sentence == "The two reports share no law."
    assert exponents_of_both(found) is None
    write_difference(tmp_path / "against.html", found)
    assert any(line.startswith("Only in ") for line in found.undetermined)
    with pytest.raises(ValueError, match="groups"):
        difference({**ours, "groups": {"var": ours}}, ours)
