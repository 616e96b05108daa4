"""DiT's published table: the printed correlation, and the fits that the docs show."""

import re
from pathlib import Path

import pytest

from analysis.comparison.dit_paper import DIT_RUNS, PRINTED_R, printed_r, refits

LAWS = Path(__file__).parent.parent / "docs" / "laws.md"


def test_the_table_has_the_printed_correlation():
    assert len(DIT_RUNS) == 12
    assert printed_r() == pytest.approx(PRINTED_R, abs=0.005)


def test_the_docs_show_the_fits():
    section = LAWS.read_text().split("## DiT's table, fitted again")[1].split("## ")[0]
    rows = re.findall(r"^\| (all|patch \d) \|(.*)\|$", section, flags=re.MULTILINE)
    assert len(rows) == len(refits())
    for (models, cells), refit in zip(rows, refits(), strict=True):
        shown = [float(text.replace("−", "-")) for text in re.findall(r"[−-]?\d*\.?\d+", cells)]
        expected = [
            refit.fit.alpha,
            refit.alpha.low,
            refit.alpha.high,
            refit.fit.r,
            len(refit.fit.data.y),
        ]
        assert models == refit.models
        assert shown == pytest.approx(expected, abs=6e-4)
    assert f"r = −{-printed_r():.3f}".replace("0.", ".") in section
