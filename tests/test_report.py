"""The report shows all numbers and warnings of the study."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.caveats import caveats
from analysis.forecasting.forecast import Outcome, Run, Target, freeze, score
from analysis.report.checklist import UNKNOWN, checklist
from analysis.report.html import SECTIONS, Facts, write_report
from analysis.report.latex import escape, law_table, symbol
from analysis.study import study
from analysis.summary import verdicts
from analysis.table.table import check

FACTS = Facts(title="title", question="question?", settings={}, provenance={})
ITEMS = [
    "form", "variables and counting", "data table", "n", "split", "metric", "checkpoint rule",
    "smoothing", "objective", "optimiser", "tolerances", "starts", "bounds", "interval method",
    "hold-out error", "seeds", "code of the runs", "code of the fits", "data fingerprint",
]  # fmt: skip


def loss(n, seed=0, noise=0.002):
    generator = np.random.default_rng(seed)
    return (1.5 + (2e-4 * n) ** -0.2) * np.exp(generator.normal(0, noise, len(n)))


def frame(depths=range(1, 8), seeds=(0, 1), **changes):
    """A small table of ours: two metrics, three counts, two evaluations of each run."""
    rows = []
    for seed in seeds:
        n = 1152.0 * np.array(list(depths)) ** 3
        for depth, size, final in zip(depths, n, loss(n, seed), strict=True):
            rows += [
                {
                    "sweep": "s", "trial": f"d{depth}-{seed}", "family": "var", "depth": depth,
                    "seed": seed, "step": step, "steps": 100, "learning_rate": 0.1,
                    "tokens_seen": 3000.0 * step * depth, "params_blocks": size, "epochs": 1.0,
                    "params_total": size + 2000, "train_flops": 18000 * size * step * depth,
                    "val_loss": final * (1.1 if step == 50 else 1), "val_images": 4096,
                    "data": "leaves", "status": "done", "commit": "c0ffee",
                }
                for step in (50, 100)
            ]  # fmt: skip
    return pd.DataFrame(rows).assign(**changes)


@pytest.fixture(scope="module")
def ours():
    return study(check(frame(), "ours.parquet"))


@pytest.fixture(scope="module")
def third_party():
    n = 1152.0 * np.arange(1, 8) ** 3
    return study(check(pd.DataFrame({"params_total": n, "val_loss": loss(n)}), "theirs.csv"))


def written(folder, found, figures=None, facts=FACTS):
    write_report(folder / "index.html", found, figures or {}, facts)
    assert (folder / "laws.tex").read_text() == law_table(found)
    return (folder / "index.html").read_text()


def png(path):
    Image.new("RGB", (300, 150)).save(path)
    return path


class Nesting(HTMLParser):
    """Elements that are not closed, and wrong closing tags."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "img", "br", "path", "use"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("path", "use"):
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


def assert_sound(page):
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.wrong == []
    assert nesting.open == []
    ids = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert [name for name, count in ids.items() if count > 1] == []
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert not re.search(r'(src|href)="(https?:)?//|<script|@import|url\(h', page)


# The page ------------------------------------------------------------------------------------


def test_a_page_is_well_formed_self_contained_and_without_broken_links(ours, third_party, tmp_path):
    page = written(tmp_path, ours)
    assert_sound(page)
    assert_sound(written(tmp_path, third_party))
    assert 'href="#points-val_loss-params_blocks"' in page
    run = re.search(r'<tr id="(run-\d+)"><th>d7-1</th>', page).group(1)
    points = page[page.index('id="points-val_loss-params_blocks"') :]
    assert f'<a href="#{run}">d7-1</a>' in points[: points.index("</table>")]


def test_every_law_shows_its_points_and_range(ours, tmp_path):
    page = written(tmp_path, ours)
    laws = re.search(r'<table id="laws">.*?</table>', page, re.DOTALL).group()
    fit = ours.get("val_loss", "params_blocks", "floor").fit
    held = ours.get("val_loss", "params_blocks", "floor").held_out
    interval = ours.get("val_loss", "params_blocks", "floor").intervals["alpha"]
    for shown in (
        "L_mean(N)", f"{fit.alpha:.4f}", f"[{interval.low:.4f}, {interval.high:.4f}]",
        f"{fit.E:.4g}", f"{fit.r:.5f}", f"{held.relative_error:+.2%}", "14 points, 7 sizes",
        "2 seeds, 2.5 decades",
    ):  # fmt: skip
        assert shown in laws, shown


def test_the_page_shows_the_values_of_the_study(ours, tmp_path):
    """Each part of a study is changed; the page must show all changed values."""
    noise, frontier = ours.noise["val_loss"], ours.frontiers["val_loss"]
    first, choice = ours.findings[0], ours.choices["val_loss", "params_blocks"]

    def moved(alpha):
        return replace(first.fit, values={"A": 1.0, "alpha": alpha})

    judged = replace(choice, judgement=replace(choice.judgement, doubts=("moved doubt",)))
    convention = replace(ours.conventions["val_loss"][0], ratio=9.876)
    held = replace(ours.rolled["pure"][0], predicted=77.1234)
    other = replace(
        ours,
        table=replace(ours.table, dropped=("moved row",)),
        findings=(replace(first, fit=moved(0.7654)), *ours.findings[1:]),
        choices={("val_loss", "params_blocks"): judged},
        conventions={"val_loss": (convention,)},
        objectives={"val_loss": {"huber": moved(0.4567)}},
        scales={1: moved(0.3456)},
        noise={"val_loss": replace(noise, sd=0.12345)},
        frontiers={"val_loss": replace(frontier, why=("moved bound",) * len(frontier.why))},
        rolled={"pure": (held,)},
        refused=("moved refusal",),
    )
    before, after = written(tmp_path, ours), written(tmp_path, other)
    for shown in (
        "moved row", "0.7654", "moved doubt", "9.876", "0.4567", "0.3456", "12.345%",
        "moved bound", "77.1234", "moved refusal",
    ):  # fmt: skip
        assert shown not in before, shown
        assert shown in after, shown


def test_external_text_is_escaped(tmp_path):
    bad = "<script>alert('x')</script> & co"
    n = 1152.0 * np.arange(1, 7) ** 3
    table = pd.DataFrame({"trial": bad, "params_total": n, "val_loss": loss(n), "data": bad})
    spoilt = (Outcome(bad, "tampered", bad, None),)
    found = replace(study(check(table, bad)), refused=(bad,), forecasts=spoilt)
    facts = Facts(title=bad, question=bad, settings={bad: bad}, provenance={bad: bad},
                  tokenizers=[{bad: bad}], trials=(bad,))  # fmt: skip
    page = written(tmp_path, found, {bad: png(tmp_path / "f.png")}, facts)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 20


def test_figures_are_in_their_sections_with_unique_names(ours, tmp_path):
    names = ("residuals", "scales", "brand_new")
    page = written(tmp_path, ours, {name: png(tmp_path / f"{name}.png") for name in names})
    assert_sound(page)
    assert page.index('id="choice"') < page.index('id="residuals"') < page.index('id="paper"')
    assert page.index('id="more"') < page.index('id="brand_new"')
    assert 'alt="brand new"' in page
    assert 'width="96" height="48"' in page, "300 pixels of print are an inch: 96 on the screen"


def test_a_section_without_data_is_absent(third_party, tmp_path):
    page = written(tmp_path, third_party)
    there = [anchor for anchor, *_ in SECTIONS if f'<section id="{anchor}">' in page]
    assert "the-laws" in there
    assert not {"tokenizer", "by-scale", "noise", "more"} & set(there)
    assert page.count("<li><a href") == len(there)


def test_a_study_without_results_shows_the_reasons(tmp_path):
    found = study(check(frame(depths=(3,), seeds=(0,))))
    assert found.findings == ()
    page = written(tmp_path, found)
    assert_sound(page)
    assert "No law could be fitted" in page
    assert "a law needs several" in page
    assert "Only 1 size:" in page
    assert "tabular" in (tmp_path / "laws.tex").read_text()


def test_a_table_without_a_finished_run_makes_a_page(tmp_path):
    found = study(check(frame(seeds=(0,), status="running")))
    page = written(tmp_path, found, facts=replace(FACTS, trials=("d1-0", "d99")))
    assert_sound(page)
    assert "No trial has finished" in page
    assert "Not finished, so not in any law: d1-0, d2-0" in page
    assert "Without any usable evaluation, so not in any law: d99." in page


# In words ------------------------------------------------------------------------------------


def test_the_verdict_names_the_true_law_or_says_that_the_data_do_not_decide():
    n = 1152.0 * np.arange(1, 9) ** 3
    reported = {}
    for name, y in {"floor": loss(n, noise=1e-4), "pure": (2e-4 * n) ** -0.2}.items():
        generator = np.random.default_rng(5)
        y = y * np.exp(generator.normal(0, 1e-4, len(n)))
        (message,) = verdicts(study(check(pd.DataFrame({"params_total": n, "val_loss": y}))))
        reported[name] = message
    assert reported["floor"].preferred == "floor"
    assert re.search(r"above an irreducible loss E = 1\.(49|5)", reported["floor"].headline)
    assert reported["pure"].preferred == "pure"
    assert reported["pure"].headline.startswith("A pure power law: exponent 0.2")
    few = pd.DataFrame({"params_total": n[:3], "val_loss": loss(n[:3])})
    (message,) = verdicts(study(check(few)))
    assert message.preferred is None
    assert message.unknown


def test_warnings_name_misleading_results(ours):
    base = frame(seeds=(0,))
    pooled = base.assign(tokenizer=["one", "two"] * (len(base) // 2), epochs=3.0)
    pooled.loc[pooled.depth == 2, "tokenizer"] = "two"
    pooled.loc[pooled.step == 100, "tokenizer"] = ["one", "two"] * 3 + ["two"]
    message = " ".join(each.text for each in caveats(replace(ours, table=check(pooled))))
    assert "up to 3.0 times" in message
    assert "One seed for each size" in message
    assert "several tokenizers are pooled: one, two" in message
    rates = pd.concat([base, base.assign(learning_rate=0.2, trial=base.trial + "-fast")])
    reported = caveats(replace(ours, table=check(rates)))
    assert any("several learning rates" in each.text for each in reported)


# Checklist and LaTeX -------------------------------------------------------------------------


def test_the_checklist_is_complete_and_correct(ours, third_party):
    assert [item.name for item in checklist(ours)] == ITEMS
    assert [item.name for item in checklist(ours) if item.state == "missing"] == []
    values = {item.name: item.value for item in checklist(ours)}
    assert values["code of the runs"] == "c0ffee"
    assert ours.table.fingerprint in values["data table"]
    assert values["split"] == "held-out images, 4,096 of leaves"
    theirs = checklist(third_party)
    assert [item.name for item in theirs] == ITEMS
    missing = [item.name for item in theirs if item.state == "missing"]
    assert missing == ["split", "checkpoint rule", "seeds", "code of the runs"]
    assert all(item.value.startswith(UNKNOWN) for item in theirs if item.state == "missing")
    reported = {item.name: item.value for item in checklist(third_party, {"code": "abc"})}
    assert reported["code of the runs"] == "abc"


def test_the_checklist_of_a_study_without_laws_claims_no_fit():
    found = checklist(study(check(frame(depths=(3,), seeds=(0,)))))
    missing = {item.name for item in found if item.state == "missing"}
    assert missing >= {"form", "n", "metric", "starts", "tolerances", "interval method"}


def unescaped(text):
    return re.findall(r"(?<!\\)[%#&_]", text)


def test_the_latex_table_has_equal_columns_balanced_braces_and_nothing_unescaped(ours):
    lines = [line for line in law_table(ours).splitlines() if not line.startswith("%")]
    text = "\n".join(lines)
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    columns = len(re.search(r"\\begin\{tabular\}\{([lrc]+)\}", text).group(1))
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 1 + len(ours.findings)
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
        outside = re.sub(r"\$[^$]*\$", "", line.removesuffix(r"\\"))
        assert set(unescaped(outside)) <= {"&"}
        assert not set(outside) & {"α", "∞", "–", "^", "~"}
    assert r"\toprule" in text
    assert r"\bottomrule" in text
    assert f"{ours.findings[0].fit.alpha:.4f}" in body[1]


def test_latex_escapes_all_characters_of_names():
    assert escape(r"a_b & 50% of #1 {x} ~^$\y") == (
        r"a\_b \& 50\% of \#1 \{x\} \textasciitilde{}\textasciicircum{}\$\textbackslash{}y"
    )
    assert symbol("L_mean") == r"L_{\mathrm{mean}}"
    assert symbol("Err_last") == r"\mathrm{Err}_{\mathrm{last}}"


# Forecasts -----------------------------------------------------------------------------------


def test_graded_waiting_and_damaged_forecasts_are_listed(ours, tmp_path):
    sizes = 1152.0 * np.arange(1, 8) ** 3
    runs = [
        Run(f"d{i}", {"params_blocks": float(n)}, {"val_loss": float(y)})
        for i, (n, y) in enumerate(zip(sizes, loss(sizes), strict=True))
    ]
    target = Target("big", "d30", {"params_blocks": 2e6}, {})
    made = freeze(target, runs, "params_blocks", sweep="s", time="2026-01-02T03:04:05Z",
                  commit="abc", data="feed")  # fmt: skip
    grades = score(made, {"val_loss": 1.81818})
    outcomes = (
        Outcome("a.json", "graded", "", made, grades),
        Outcome("b.json", "waiting", "at step 10 of 100", made),
        Outcome("c.json", "tampered", "the seal is broken", None),
    )
    page = written(tmp_path, replace(ours, forecasts=outcomes))
    assert_sound(page)
    table = re.search(r'<table id="outcomes">.*?</table>', page, re.DOTALL).group()
    quoted = made.metrics[0].quoted
    for shown in ("a.json", "1.8182", "b.json", "waiting", "at step 10 of 100", "c.json",
                  "the seal is broken", "big/d30", f"{quoted.predicted:.4f}"):  # fmt: skip
        assert shown in table, shown
    assert table.count("(quoted)") == 2
