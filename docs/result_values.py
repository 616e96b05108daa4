"""Values and tables of results, computed from docs/tables and benchmarks by the toolkit itself.

`values()` has the text of each number by name, as the pages write it; docs/tables/quotes.toml says
where each stands. `computed_tables()` has whole tables of Markdown.
"""

import json
import re
from functools import cache
from math import floor
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import pandas as pd
from published_laws import BESIROGLU, GREEK, NAMES, chinchilla, short, span
from published_sizes import (
    IMAGES,
    by_name,
    count_rows,
    encoding_share,
    figure_rows,
    flops_text,
    plan_of,
    sampling_text,
)
from results import TABLES, Table, recorded_tables

from analysis.comparison.dit_paper import PRINTED_R, printed_r, refits
from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import PURE
from analysis.selection.counting import by_convention
from analysis.selection.select import Candidate, choose
from analysis.uncertainty.intervals import interval
from sweeps.families import sweep as families_sweep
from var_scaling.models.registry import family_of

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SWEEPS = ("quickstart", "quickstart_again", "seed_2", "seed_3", "seed_4")
_VARIABLES = {"params_blocks": "N (blocks)", "params_total": "N_total", "train_flops": "C"}
H200_PEAK = 989e12  # dense half precision, FLOP/s, as in settings.Cluster.peak_tflops


@cache
def values() -> dict[str, str]:
    """Every named number, as text."""
    return (
        _quickstart_values() | _published_values() | _dit_values() | _gpu_values()
        | _sampling_values() | _cpu_values() | _size_values() | _recorded_values()
        | _coverage_values() | _plan_values() | _distance_values()
    )  # fmt: skip


@cache
def computed_tables() -> list[Table]:
    return [
        _quickstart_table(), _seeds_table(), *_quality_table(), *_distance_tables(),
        _chinchilla_table(), _forms_table(), _dit_table(), _h200_table(),
        Table("docs/families.md", tuple(count_rows()), "docs/published_sizes.py"),
        Table("docs/families.md", tuple(figure_rows()), "docs/published_sizes.py"),
    ]  # fmt: skip


# The quickstart.


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
                f"`{sweep}`, {name}", _alpha(pure.fit), short(pure.fit.r, 4),
                short(pure.fit.r2, 4), _error(pure), f"{_two(with_E.fit.E)} [{E}]",
                _alpha(with_E.fit), short(with_E.fit.r, 4), _error(with_E),
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


def _quality_table() -> list[Table]:
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
        rows.append((f"{steps:,}", psnr, *losses, _alpha(fit), short(fit.r, 4)))
    return [Table("docs/quickstart.md", tuple(rows), "docs/tables/tokenizer_quality.csv")]


def _alpha(fit: Fit) -> str:
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


# What was recorded, or is the result of other commands.


@cache
def recorded(name: str) -> dict[str, dict[str, str]]:
    """Cells of a recorded table by first cell of the row and by header."""
    head, *rows = next(table.rows for table in recorded_tables() if table.name == name)
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def numbers_in(cell: str) -> list[str]:
    return re.findall(r"\d[\d,]*\.?\d*|\.\d+", cell)


def _recorded_values() -> dict[str, str]:
    """Numbers of sentences that stand in a recorded table."""
    distances, guidance = recorded("families_distances"), recorded("families_guidance")
    order, steps = recorded("families_order"), recorded("families_tokenizer_steps")
    first, *_, last = distances
    arms = {
        "var": "VAR", "ar": "AR, 2 x 128 codes", "ar8192": "AR, 8,192 codes",
        "dit": "DiT, 25 steps",
    }  # fmt: skip
    best = {"var": "0.5", "ar": "1.5", "ar8192": "0.5", "dit": "0.5"}  # by the seeded network
    gaps = {
        row["trial"]: float(row["held-out loss, with the class"]) - float(row["last training loss"])
        for row in recorded("own_images").values()
    }
    timed = recorded("sampling_with_cache").values()
    cache_ratios = [float(row["without a cache"]) for row in timed]
    return {
        **{
            f"guidance.{arm}.{g}": numbers_in(guidance[name][g])[0]
            for arm, name in arms.items() for g in ("0", "0.5", "1.5")
        },
        **{
            f"guidance.{arm}.seeded": numbers_in(guidance[arms[arm]][g])[1]
            for arm, g in best.items()
        },
        "families.var.first": f"{float(numbers_in(distances[first]['VAR'])[0]):.1f}",
        "families.var.last": f"{float(numbers_in(distances[last]['VAR'])[0]):.1f}",
        "families.dit.first": f"{float(numbers_in(distances[first]['DiT'])[0]):.1f}",
        "families.dit.last": re.findall(r"DiT ([\d.]+)", order["classifier"]["order"])[0],
        "families.budgets": f"{float(last.split()[0]) / float(first.split()[0]):.0f}",
        "tokenizer2400.here": numbers_in(steps["2,400 steps"]["reconstructions"])[0],
        "tokenizer2400.seeded": numbers_in(steps["2,400 steps"]["reconstructions"])[1],
        "tokenizer2400.above": numbers_in(
            recorded("families_latents_of_dit")["quantised grid"]["reconstructions"]
        )[0],
        **{f"photos.gap.{trial}": f"{gap:.2f}" for trial, gap in gaps.items()},
        "cache.least": f"{min(cache_ratios):.1f}",
        "cache.most": f"{max(cache_ratios):.1f}",
        **_rate_gains(),
        **_quality_values(),
    }  # fmt: skip


def _rate_gains() -> dict[str, str]:
    """By how much the best learning rate is better than c = 1/4, where it is another."""
    gains = []
    for row in recorded("families_rates").values():
        losses = {c: float(row[c].strip("*")) for c in ("c = 1/8", "1/4", "1/2", "1")}
        if "*" not in row["1/4"]:
            gains.append(100 * (1 - min(losses.values()) / losses["1/4"]))
    return {"rates.gain.least": short(min(gains), 1), "rates.gain.most": short(max(gains), 1)}


def _quality_values() -> dict[str, str]:
    """By how much the PSNR rises when the tokenizer's steps double."""
    computed = _quality_table()
    rows = computed[0].rows[1:] if computed else recorded("tokenizer_quality").values()
    psnr = [float(row["PSNR, dB"] if isinstance(row, dict) else row[1]) for row in rows]
    rises = np.diff(psnr)
    return {"quality.psnr.least": f"{min(rises):.0f}", "quality.psnr.most": f"{max(rises):.0f}"}


def _coverage_values() -> dict[str, str]:
    """Coverage of approach 1 under the true law, from the page that `make coverage` writes."""
    text = (BENCHMARKS.parent / "docs/coverage.md").read_text().split("## True law")[1]
    (row,) = re.findall(r"^\| approach 1: a \|(.*)$", text.split("\n## ")[0], re.MULTILINE)
    shares = [float(share) for share in re.findall(r"\d+\.\d+", row)]
    return {
        "coverage.approach1.least": f"{min(shares):.0f}",
        "coverage.approach1.most": f"{max(shares):.0f}",
    }


# Published laws.

_FORMS = ("surface", "tied", "interaction")


def _published_values() -> dict[str, str]:
    known = chinchilla()
    fit = known["fits"]["huber"]["values"]
    distance = max(abs(fit[name] - value) / error for name, (value, error) in BESIROGLU.items())
    found = {
        "chinchilla.distance": short(np.ceil(100 * distance) / 100, 2),
        "chinchilla.r": short(known["r_in_N_alone"], 2),
        "chinchilla.gamma": short(known["interaction"]["values"]["gamma"]),
        "chinchilla.E.interaction": short(known["interaction"]["values"]["E"], 2),
        "chinchilla.E.short": short(fit["E"], 2),
    }
    criteria = known["forms"]["aicc"]
    gains = [criteria[f"{law} huber:L"] - criteria[f"{law} huber"] for law in _FORMS]
    found |= {
        "chinchilla.tied.aicc": short(criteria["tied huber"], 1),
        "chinchilla.logs.least": f"{min(gains):.1f}",
        "chinchilla.logs.most": f"{max(gains):.1f}",
    }
    for way, ends in known["gamma"].items():
        found |= _named(f"chinchilla.gamma.{way}", ends, 3)
    for name in NAMES:
        digits = {"E": 4, "A": 1, "B": 0}.get(name, 4)
        found[f"chinchilla.{name}"] = short(fit[name], digits)
        digits = {"E": 3, "A": 0, "B": 0}.get(name, 3)
        found |= _named(f"chinchilla.{name}", known["intervals"][name], digits)
    for one in known["approaches"]:
        name = f"chinchilla.approach{one['number']}"
        found[name] = short(one["a"])
        found |= _named(name, one["a_interval"], 3)
    return found


def _forms_table() -> Table:
    rows = tuple(tuple(row) for row in chinchilla()["forms"]["rows"])
    return Table("docs/laws.md", rows, "docs/tables/chinchilla.json")


def _named(name: str, ends: list[float], digits: int) -> dict[str, str]:
    return {f"{name}.{end}": short(x, digits) for end, x in zip(("low", "high"), ends, strict=True)}


def _chinchilla_table() -> Table:
    known = chinchilla()
    header = ("Chinchilla's table, 240 runs", *(GREEK.get(name, name) for name in NAMES))
    rows = [(*header, "objective")]
    digits = {"E": 5, "A": 2, "B": 2}
    forms = {"huber": "1.0182740178e-3", "absolute": "1.1294947", "squares": "1.14619e-2"}
    for name, shown in forms.items():
        fit = known["fits"][name]
        cells = [short(fit["values"][each], digits.get(each, 6)) for each in NAMES]
        rows.append((f"`{name}`", *cells, _like(shown, fit["objective"])))
    errors = known["standard_errors"]
    digits = {"A": 0, "B": 0}
    cells = [
        "–".join(
            short(end([draw[each] for draw in errors]), digits.get(each, 4)) for end in (min, max)
        )
        for each in NAMES
    ]
    rows.append(("standard error, `huber`, 4,000 resamples, three seeds", *cells, ""))
    return Table("docs/laws.md", tuple(rows), "docs/tables/chinchilla.json")


def _like(shown: str, value: float) -> str:
    """With as many digits as shown: 1.01827e-3."""
    digits, _, power = shown.partition("e")
    scaled = value / 10.0 ** int(power or 0)
    return f"{scaled:.{len(digits.split('.')[1])}f}" + (f"e{power}" if power else "")


def _dit_values() -> dict[str, str]:
    return {"dit.printed": short(PRINTED_R, 2), "dit.r": short(printed_r())}


def _dit_table() -> Table:
    rows = [("models", "α", "95 %", "r of the logarithms", "points")]
    for one in refits():
        ends = span([one.alpha.low, one.alpha.high])
        alpha, r = short(one.fit.alpha), short(one.fit.r, 4)
        rows.append((one.models, alpha, f"[{ends}]", r, str(one.fit.points)))
    return Table("docs/laws.md", tuple(rows), "analysis/comparison/dit_paper.py")


def _size_values() -> dict[str, str]:
    """FLOPs of published models, and their FID as published."""
    models = {
        "d16": "VAR-d16", "d24": "VAR-d24", "d30": "VAR-d30", "llamagen-l": "LlamaGen-L",
        "llamagen-xl": "LlamaGen-XL,", "dit-xl": "DiT-XL",
    }  # fmt: skip
    found = {name: by_name(start) for name, start in models.items()}
    ratio = found["dit-xl"].sampling_flops / found["d30"].sampling_flops
    return {
        **{f"{name}.train": flops_text(one.train_flops) for name, one in found.items()},
        **{
            f"{name}.sampling": sampling_text(one.sampling_flops).removesuffix(" T")
            for name, one in found.items()
        },
        **{f"{name}.fid": one.fid for name, one in found.items()},
        "dit-xl.by.d30": f"{ratio:.0f}",
    }


def _plan_values() -> dict[str, str]:
    """What planned sweeps cost, and counts of tiny models."""
    families, slower = (
        plan_of("imagenet256_families", *options) for options in (("--tflops", "400"), ())
    )
    encoding = plan_of("imagenet256")["before"][1]
    at_half, crops = plan_of("imagenet256", "--tflops", "395.6")["before"][1], 16
    hours, tokenizers = families["gpu_hours"], [step["flops"] for step in families["before"][:3]]
    tiny = {name: _tiny(name) for name in ("var-d6-s0", "ar-d6-s0")}
    return {
        "plan.families.hours": f"{hours:,.0f}",
        "plan.families.flops": flops_text(hours * 3600 * 400e12 / 10).replace("e21", "e22"),
        "plan.families.tokenizers": flops_text(sum(tokenizers) / 10).replace("e20", "e21"),
        "plan.families.price": f"{round(2.5 * hours, -2):,.0f}",
        "plan.families.slower": f"{round(slower['gpu_hours'], -2):,.0f}",
        "plan.encoding.fp32": f"{encoding['gpu_hours']:.0f}",
        "plan.encoding.half": f"{at_half['gpu_hours']:.0f}",
        "plan.crop.hours": f"{at_half['gpu_hours'] / crops:.1f}",
        "plan.crop.gb": f"{IMAGES * 680 * 2 / 1e9:.1f}",  # tokens are uint16
        "encoder.d6": f"{100 * encoding_share(6):.0f}",
        "encoder.d16": f"{100 * encoding_share(16):.0f}",
        "tiny.var": f"{sum(tiny['var-d6-s0'].values()) / 1e6:.2f}",
        "tiny.ar": f"{sum(tiny['ar-d6-s0'].values()) / 1e6:.2f}",
        "tiny.ar.head": f"{tiny['ar-d6-s0']['head'] / 1e6:.2f}",
    }


def _tiny(name: str) -> dict[str, int]:
    """Parameters of a trial of the sweep `families`."""
    spec = next(trial.spec for trial in families_sweep.trials if trial.name == name)
    return dict(family_of(spec.config).parameters(spec))


# Speed.


def _gpu_values() -> dict[str, str]:
    """Shares of an H200's peak in training, without compilation."""
    known = json.loads((BENCHMARKS / "measured/gpu_h200.json").read_text())
    matmul = known["peak"][0]["flops_per_second"]
    share = {
        row["depth"]: row["mfu_of_measured_peak"] * matmul / H200_PEAK
        for row in known["training"]
        if row["way"] == "ours"
    }
    return {"h200.d6": f"{100 * share[6]:.1f}", "h200.d16": f"{100 * share[16]:.0f}"}


@cache
def _sampling(batch: int) -> pd.DataFrame:
    """Times of a batch by grid and family: means over the rounds."""
    name = {1: "family_sampling_h200_batch1", 64: "family_sampling_h200"}[batch]
    known = json.loads((BENCHMARKS / f"measured/{name}.json").read_text())
    rows = pd.DataFrame(known["rows"])
    return rows[rows.batch == batch]


def _times(batch: int, column: str) -> pd.DataFrame:
    return _sampling(batch).pivot_table(column, "grid", "family", aggfunc="mean")


_FAMILIES = {"VAR": "var", "AR": "ar", "DiT, 25 steps": "dit, 25 steps"}
_GRIDS = (4, 8, 16)


def _h200_table() -> Table:
    families = _FAMILIES | {"DiT, 250 steps": "dit, 250 steps"}
    times = _times(1, "seconds")
    rows = [("grid", *families)]
    for grid in _GRIDS:
        var = times.loc[grid, "var"]
        cells = [
            f"{1e3 * times.loc[grid, name]:,.0f}"
            + ("" if name == "var" else f" ({_ratio(times.loc[grid, name] / var)})")
            for name in families.values()
        ]
        rows.append((f"{grid} x {grid}", *cells))
    rows.append(("p", *(_power(name) for name in families.values())))
    return Table("docs/families.md", tuple(rows), "benchmarks/measured")


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 30 else f"{value:.1f}"


def _power(family: str) -> str:
    """p of transformer seconds ∝ side^p over the three grids."""
    seconds = _times(1, "transformer_seconds")[family].loc[list(_GRIDS)]
    slope = np.polyfit(np.log(_GRIDS), np.log(seconds), 1)[0]
    return f"{slope:.2f}" if abs(slope) < 0.1 else f"{slope:.1f}"


def _sampling_values() -> dict[str, str]:
    one = _times(1, "seconds")
    whole, decoder, transformer = (
        _times(64, column) for column in ("seconds", "decoder_seconds", "transformer_seconds")
    )
    rounds = _sampling(1).pivot_table("seconds", "round", ["grid", "family"])[16]
    by_round = sorted(rounds["ar"] / rounds["var"])
    dit = transformer.loc[16, "dit, 25 steps"] / transformer.loc[16, "var"]
    flops = _sampling(1).pivot_table("flops", "grid", "family")
    mfu = _sampling(1).pivot_table("mfu", "grid", "family")
    ratios = {grid: transformer.loc[grid, "ar"] / transformer.loc[grid, "var"] for grid in _GRIDS}
    return {
        "sampling.ar": f"{one.loc[16, 'ar'] / one.loc[16, 'var']:.1f}",
        "sampling.ar.low": f"{by_round[0]:.1f}",
        "sampling.ar.high": f"{by_round[-1]:.1f}",
        "sampling.mfu": short(100 * mfu.loc[16, "var"], 1),
        **{f"sampling.ar.transformer{grid}": f"{ratio:.1f}" for grid, ratio in ratios.items()},
        "sampling.ar.whole64": f"{whole.loc[16, 'ar'] / whole.loc[16, 'var']:.1f}",
        "sampling.decoder": f"{100 * decoder.loc[16, 'var'] / whole.loc[16, 'var']:.0f}",
        "sampling.dit.transformer": f"{dit:.1f}",
        "sampling.flops.ar": f"{flops.loc[16, 'ar'] / 1e12:.2f}",
        "sampling.flops.var": f"{flops.loc[16, 'var'] / 1e12:.2f}",
    }  # fmt: skip


def _benchmark(name: str) -> list[dict[str, Any]]:
    """Rows of every run of a benchmark, oldest first."""
    lines = (BENCHMARKS / f"results/{name}.jsonl").read_text().splitlines()
    return [row for line in lines for row in json.loads(line)["rows"]]


def _cpu_values() -> dict[str, str]:
    case = [row for row in _benchmark("train") if row["case"] == "d4, 64 px, batch 32"]
    by_way = {
        way: median(
            row["median_seconds"]
            for row in case
            if row["implementation"] == way and row["commit"] == "32b6aa0"
        )
        for way in ("ours", "released")
    }
    return {f"cpu.step.{way}": f"{1e3 * seconds:.0f}" for way, seconds in by_way.items()}
