"""The quickstart: laws of its five seeds, quality of its tokenizers, distances of its samples."""

from functools import cache
from math import floor
from statistics import fmean, stdev

import numpy as np
import pandas as pd
from published_laws import short, span
from results import TABLES, Table

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import PURE
from analysis.selection.counting import by_convention
from analysis.selection.select import Candidate, choose
from analysis.uncertainty.intervals import interval

SWEEPS = ("quickstart", "quickstart_again", "seed_2", "seed_3", "seed_4")
_VARIABLES = {"params_blocks": "N (blocks)", "params_total": "N_total", "train_flops": "C"}


def quickstart_values() -> dict[str, str]:
    return _quickstart_values() | _distance_values()


def quickstart_tables() -> list[Table]:
    return [_quickstart_table(), _seeds_table(), *quality_table(), *_distance_tables()]


@cache
def quickstart_rows() -> pd.DataFrame:
    """Every evaluation of the first seed, the last ones of the others."""
    return pd.read_csv(TABLES / "quickstart.csv")


def finals(sweep: str) -> pd.DataFrame:
    """The end of each of its six runs."""
    rows = quickstart_rows()
    rows = rows[(rows.sweep == sweep) & (rows.step == rows.steps)]
    return rows.sort_values("params_blocks")


@cache
def laws_of(sweep: str, variable: str) -> tuple[Candidate, Candidate]:
    """L_mean in this variable at the ends of the runs: without E, and with E."""
    rows = finals(sweep)
    found = choose(rows[variable], rows.val_loss)
    pure, with_E = found.get("pure"), found.get("floor")
    assert pure is not None
    assert with_E is not None, found.refused
    return pure, with_E


@cache
def seed_fits() -> list[Fit]:
    """L_mean(N) of each seed."""
    return [
        fit_law(PURE, rows.params_blocks, rows.val_loss, "squares")
        for rows in map(finals, SWEEPS)
    ]  # fmt: skip


def _quickstart_values() -> dict[str, str]:
    rows, fits = finals("quickstart"), seed_fits()
    ends = [interval(fit, "alpha") for fit in fits]
    low, high = (int(index) for index in np.argsort([fit.alpha for fit in fits])[[0, -1]])
    alphas, rs = [fit.alpha for fit in fits], [fit.r for fit in fits]
    counted = [one.alpha for one in by_convention(rows, "val_loss", PURE) if one.alpha]
    total, blocks = rows.params_total, rows.params_blocks
    E = laws_of("quickstart", "params_blocks")[1].E_interval
    assert E is not None
    shown = [law.fit for sweep in SWEEPS[:2] for x in _VARIABLES for law in laws_of(sweep, x)]
    least = min(abs(fit.r) for fit in (*shown, *fits))
    return {
        "quickstart.alpha": short(fits[0].alpha),
        "quickstart.alpha.low": short(ends[0].low),
        "quickstart.alpha.high": short(ends[0].high),
        "quickstart.r": short(fits[0].r, 4),
        "quickstart.smallest": f"{total.min() / 1e3:.0f}",
        "quickstart.largest": f"{total.max() / 1e3:.0f}",
        "quickstart.tokens": f"{rows.tokens_seen.max() / 1e6:.1f}",
        "quickstart.decades": f"{np.log10(blocks.max() / blocks.min()):.1f}",
        "quickstart.E.undecided": f"{floor(2 * E.high) / 2:.1f}",
        "quickstart.table.r.least": short(floor(1000 * least) / 1000),
        "quickstart.counted.low": short(min(counted)),
        "quickstart.counted.high": short(max(counted)),
        "quickstart.psnr": f"{pd.read_csv(TABLES / 'quickstart_tokenizers.csv').psnr_db[0]:.1f}",
        "seeds.alpha": short(fmean(alphas)),
        "seeds.alpha.sd": short(stdev(alphas)),
        "seeds.r": short(fmean(rs), 4),
        "seeds.r.sd": short(stdev(rs), 4),
        **{
            f"seeds.{name}": short(number)
            for end, at in (("lowest", low), ("highest", high))
            for name, number in (
                (end, fits[at].alpha), (f"{end}.low", ends[at].low), (f"{end}.high", ends[at].high),
            )
        },
    }  # fmt: skip


def _quickstart_table() -> Table:
    header = (
        "sweep and x", "pure: α", "r", "R²", "predicted", "E fitted", "with E: α", "r", "predicted",
    )  # fmt: skip
    rows = [header]
    for sweep in SWEEPS[:2]:
        for variable, name in _VARIABLES.items():
            pure, with_E = laws_of(sweep, variable)
            assert with_E.E_interval is not None
            E = ", ".join(_two(end) for end in (with_E.E_interval.low, with_E.E_interval.high))
            rows.append((
                f"`{sweep}`, {name}", alpha_text(pure.fit), short(pure.fit.r, 4),
                short(pure.fit.r2, 4), _error(pure), f"{_two(with_E.fit.E)} [{E}]",
                alpha_text(with_E.fit), short(with_E.fit.r, 4), _error(with_E),
            ))  # fmt: skip
    return Table("docs/quickstart.md", tuple(rows), "docs/tables/quickstart.csv")


def _seeds_table() -> Table:
    fits = seed_fits()
    psnr = pd.read_csv(TABLES / "quickstart_tokenizers.csv").psnr_db
    lines = (
        ("α", [fit.alpha for fit in fits], 4),
        ("r", [fit.r for fit in fits], 4),
        ("PSNR of the tokenizer, dB", list(psnr), 1),
    )
    rows = [("seed", *map(str, range(len(fits))), "mean", "standard deviation")]
    for name, numbers, digits in lines:
        shown = [*numbers, fmean(numbers), stdev(numbers)]
        rows.append((name, *(short(number, digits) for number in shown)))
    return Table("docs/quickstart.md", tuple(rows), "docs/tables/quickstart.csv")


def quality_table() -> list[Table]:
    path = TABLES / "tokenizer_quality.csv"
    if not path.exists():  # then docs/tables/recorded has it
        return []
    every = pd.read_csv(path)
    every["tokenizer_steps"] = every.trial.str.split("-").str[1].astype(int)
    header = (
        "tokenizer steps", "PSNR, dB", "L_mean of d1", "L_mean of d6", "α of L_mean(N)", "r",
    )  # fmt: skip
    rows = [header]
    for steps, group in every.groupby("tokenizer_steps"):
        group = group.sort_values("params_blocks")
        fit = fit_law(PURE, group.params_blocks, group.val_loss, "squares")
        losses = (f"{group.val_loss.iloc[index]:.2f}" for index in (0, -1))
        psnr = f"{group.psnr_db.iloc[0]:.1f}"
        rows.append((f"{steps:,}", psnr, *losses, alpha_text(fit), short(fit.r, 4)))
    return [Table("docs/quickstart.md", tuple(rows), "docs/tables/tokenizer_quality.csv")]


def alpha_text(fit: Fit) -> str:
    ends = interval(fit, "alpha")
    return f"{short(fit.alpha)} [{span([ends.low, ends.high])}]"


def _error(law: Candidate) -> str:
    """The relative error at the largest size, predicted from the others."""
    assert law.held_out is not None
    text = f"{100 * law.held_out.relative_error:+.1f}".replace("-", "−")
    return f"{'0.0' if text[1:] == '0.0' else text} %"


def _two(value: float) -> str:
    return "0" if abs(value) < 0.005 else short(value, 2)


@cache
def distances() -> pd.DataFrame:
    """Scores by the seeded network: samples of each size, of d6 by guidance, reconstructions."""
    return pd.read_csv(TABLES / "quickstart_distances.csv")


def _distance_values() -> dict[str, str]:
    errors = distances()[distances().images != "reconstructions"].fd_seeded_stderr
    return {
        "distances.error.least": short(errors.min(), 2),
        "distances.error.most": short(errors.max(), 2),
    }


def _distance_tables() -> list[Table]:
    table = distances()
    default = table[table.guidance == 1.5].set_index("images").fd_seeded
    (tokenizer,) = table[table.images == "reconstructions"].itertuples()
    shown = f"{tokenizer.fd_seeded:.2f} ({tokenizer.samples:,} held-out images)"
    of_d6 = table[table.images == "d6"].sort_values("guidance")
    by_size = (
        ("", *default.index, "the tokenizer's reconstructions"),
        ("`fd_seeded`", *(f"{value:.2f}" for value in default), shown),
    )
    by_guidance = (
        ("guidance of d6", *(f"{g:g}" for g in of_d6.guidance)),
        ("`fd_seeded`", *(f"{value:.2f}" for value in of_d6.fd_seeded)),
    )
    source = "docs/tables/quickstart_distances.csv"
    return [Table("docs/images.md", rows, source) for rows in (by_size, by_guidance)]
