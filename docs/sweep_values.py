"""Tables of the sweeps families_rates and families_scores, from their rows in docs/tables."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from comparison_values import digits
from results import TABLES, Table

from analysis.comparison.conditions import conditions, rank_arms

_PAGE = "docs/families.md"
_NETWORKS = ("classifier", "seeded")
# (family, tokenizer): the name of the arm.
ARMS = {
    ("var", "multi-scale"): "VAR",
    ("ar", "one-scale"): "AR, 8,192 codes",
    ("ar", "residual"): "AR, 2 x 128 codes",
    ("dit", "multi-scale"): "DiT",
}
_RATES = {0.125: "c = 1/8", 0.25: "1/4", 0.5: "1/2", 1.0: "1"}  # constants and their columns
_GUIDANCE = ("0", "0.5", "1.5", "3")
_SEEDS = ("s0", "s1")
_SOURCES = {name: f"docs/tables/{name}.csv" for name in ("families_rates", "families_scores")}


def sweep_tables() -> list[Table]:
    rates, scores = _SOURCES.values()
    of_scores = (_guidance(), _steps(), _latents(), _codebooks(), _tokenizer_steps())
    return [Table(_PAGE, _rates(), rates), *(Table(_PAGE, rows, scores) for rows in of_scores)]


# Learning rates ----------------------------------------------------------------------------------


@cache
def rate_rows() -> pd.DataFrame:
    """The last evaluation of each run, with its arm and the constant c = rate × width."""
    rows = pd.read_csv(TABLES / "families_rates.csv")
    arms = [ARMS[pair] for pair in zip(rows.family, rows.tokenizer, strict=True)]
    return rows.assign(arm=arms, c=rows.trial.str.extract(r"-c([\d.]+)$")[0].astype(float))


def _rates() -> tuple[tuple[str, ...], ...]:
    lines = [("", "unit", *_RATES.values(), "± s.e.")]
    for (arm, depth), runs in rate_rows().groupby(["arm", "depth"], sort=False):
        losses = runs.set_index("c").val_loss
        cells = [
            f"**{losses[c]:.4f}**" if losses[c] == losses.min() else f"{losses[c]:.4f}"
            for c in _RATES
        ]
        error = f"{runs.val_loss_stderr.mean():.3f}"
        lines.append((f"{arm}, d{depth}", str(runs.loss_unit.iloc[0]), *cells, error))
    return tuple(lines)


def _rate_values() -> dict[str, str]:
    """How much better the best constant is than 1/4 where it is another, and how the averaged
    weights of DiT compare with the last ones.
    """
    rows, gains = rate_rows(), list[float]()
    for _, runs in rows.groupby(["arm", "depth"]):
        losses = runs.set_index("c").val_loss
        if losses.idxmin() != 0.25:
            gains.append(100 * (1 - losses.min() / losses[0.25]))
    dit = rows[rows.family == "dit"]
    change = dit.val_loss / dit.val_loss_raw - 1
    return {
        "rates.gain.least": f"{min(gains):.1f}", "rates.gain.most": f"{max(gains):.1f}",
        "rates.average": f"{100 * change.abs().max():.1f}",
        "rates.average.worse": str(int((change > 0).sum())),
        "rates.average.better": str(int((change < 0).sum())),
        "rates.average.runs": str(len(change)),
    }  # fmt: skip


# Scores ------------------------------------------------------------------------------------------


@cache
def score_rows() -> pd.DataFrame:
    return pd.read_csv(TABLES / "families_scores.csv")


def _distances(trials: tuple[str, ...], name: str, column: str = "distance") -> list[float]:
    """The geometric mean over `trials` of the set `name`, by each network."""
    rows = score_rows()
    rows = rows[rows.trial.isin(trials) & (rows.set == name) & ~rows.raw]
    means = np.exp(np.log(rows[column]).groupby(rows.extractor).mean())
    return [float(means[network]) for network in _NETWORKS]


def _pair(values: list[float]) -> str:
    return " / ".join(map(digits, values))


def _runs_of(arm: str) -> tuple[str, ...]:
    return tuple(f"{arm}-{seed}" for seed in _SEEDS)


_MAIN = {
    "VAR": "var", "AR, 2 x 128 codes": "ar-residual", "AR, 8,192 codes": "ar",
    "DiT, 25 steps": "dit",
}  # fmt: skip


def best_guidance(arm: str) -> tuple[str, ...]:
    """The weight that was chosen on other samples, for each network."""
    chosen = [_distances(_runs_of(arm), f"choose-g{g}") for g in _GUIDANCE]
    return tuple(_GUIDANCE[int(np.argmin(of_network))] for of_network in zip(*chosen, strict=True))


def _guidance() -> tuple[tuple[str, ...], ...]:
    lines = [("arm", *_GUIDANCE)]
    for name, arm in _MAIN.items():
        best, cells = best_guidance(arm), []
        for g in _GUIDANCE:
            pair = map(digits, _distances(_runs_of(arm), f"g{g}"))
            bold = [f"**{x}**" if g == b else x for x, b in zip(pair, best, strict=True)]
            cells.append(" / ".join(bold))
        lines.append((name, *cells))
    return tuple(lines)


def _steps() -> tuple[tuple[str, ...], ...]:
    sets = {2: "steps-2", 5: "steps-5", 10: "steps-10", 25: "g0", 50: "steps-50"}
    return (
        ("steps", *_NETWORKS),
        *((str(n), *map(digits, _distances(_runs_of("dit"), name))) for n, name in sets.items()),
    )


def _latents() -> tuple[tuple[str, ...], ...]:
    trials = {"features before quantisation": ("dit-features",), "quantised grid": ("dit-s0",)}
    return (
        ("latents", "samples", "reconstructions"),
        *((name, *_with_floor(runs)) for name, runs in trials.items()),
    )


def _codebooks() -> tuple[tuple[str, ...], ...]:
    trials = {"128": "ar-128", "1,024": "ar-1024", "8,192": "ar-s0"}
    bits = score_rows().groupby("trial").bits_per_image.first()
    return (
        ("codes", "bits per image", "samples", "reconstructions"),
        *((n, f"{bits[trial]:.0f}", *_with_floor((trial,))) for n, trial in trials.items()),
    )


def _with_floor(trials: tuple[str, ...]) -> tuple[str, str]:
    return _pair(_distances(trials, "g0")), _pair(_distances(trials, "g0", "floor"))


def _tokenizer_steps() -> tuple[tuple[str, ...], ...]:
    tokenizers = pd.read_csv(TABLES / "families_scores_tokenizers.csv").set_index("tokenizer")
    lines = [("tokenizer", "PSNR", "reconstructions", "VAR", "DiT")]
    for steps, name, end in (
        ("900", "multi-scale-900", "t900"),
        ("2,400", "multi-scale-2400", "t2400"),
        ("9,600", "multi-scale", "s0"),
    ):
        var, dit = (_distances((f"{family}-{end}",), "g0") for family in ("var", "dit"))
        floor = _distances((f"var-{end}",), "g0", "floor")
        psnr = f"{tokenizers.psnr_db[name]:.1f} dB"
        lines.append((f"{steps} steps", psnr, _pair(floor), _pair(var), _pair(dit)))
    return tuple(lines)


def _ratios_at_best() -> dict[str, str]:
    """Distances of each arm at its own best guidance, divided by that of AR on residual codes."""
    rows = score_rows()
    main = rows[rows.trial.isin([trial for arm in _MAIN.values() for trial in _runs_of(arm)])]
    found = {}
    for condition in conditions(main):
        if condition.set == "best of the grid":
            ranked = {each.arm: each for each in rank_arms(condition)}
            first = ranked.pop("ar, residual")
            for arm, each in ranked.items():
                ends = zip(("", ".low", ".high"), each.ratio_to(first), strict=True)
                name = f"best.{condition.extractor}.{arm}"
                found |= {f"{name}{end}": digits(value) for end, value in ends}
    return found


def _score_values() -> dict[str, str]:
    """Distances of each arm at its own best guidance, and without guidance."""
    found: dict[str, Any] = _ratios_at_best()
    *_, few, many = (row[3:] for row in _tokenizer_steps())
    for steps, cells in (("2400", few), ("9600", many)):
        for family, cell in zip(("var", "dit"), cells, strict=True):
            for network, value in zip(_NETWORKS, cell.split(" / "), strict=True):
                found[f"tokenizer.{steps}.{family}.{network}"] = value
    for arm in _MAIN.values():
        best = best_guidance(arm)
        for index, network in enumerate(_NETWORKS):
            of_best = _distances(_runs_of(arm), f"g{best[index]}")[index]
            found[f"guidance.{network}.{arm}"] = digits(of_best)
            found[f"guidance.{network}.{arm}.weight"] = best[index]
            unguided = _distances(_runs_of(arm), "g0")[index]
            found[f"guidance.{network}.{arm}.none"] = digits(unguided)
    return found


def sweep_values() -> dict[str, str]:
    return _rate_values() | _score_values()
