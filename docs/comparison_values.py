"""Comparisons of families: distances, orders and compute multipliers, from rows of docs/tables."""

import json
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from results import TABLES, Table

from analysis.comparison.conditions import Condition, RankedArm, conditions, rank_arms, robustness
from analysis.comparison.families import (
    ComparisonError,
    Multiplier,
    curves,
    multiplier,
    spread,
)
from analysis.plots.families import families as plot_of_families

_PAGE = "docs/families.md"
_NETWORKS = ("classifier", "seeded")


@dataclass(frozen=True)
class Comparison:
    """A sweep whose rows are in docs/tables, with the names that its page uses."""

    sweep: str
    label: str  # ends the first header of each table: two tables of a page need different headers
    arms: dict[str, str]  # arm: its name; in the order of the columns
    tokenizers: dict[str, str]
    pairs: tuple[tuple[str, str], ...]  # arm that should need more compute, arm that needs less

    @cached_property
    def rows(self) -> pd.DataFrame:
        return pd.read_csv(TABLES / f"{self.sweep}.csv")

    @cached_property
    def conditions(self) -> dict[tuple[str, str], Condition]:
        """By network and weights."""
        return {(one.extractor, one.weights): one for one in conditions(self.rows)}

    def condition(self, network: str, weights: str = "as published") -> Condition:
        return self.conditions[network, weights]

    def ranking(self, network: str, score: str = "distance") -> tuple[RankedArm, ...]:
        """The arms at the largest budget, nearest to real images first."""
        return rank_arms(self.condition(network), score=score)

    def means(self, network: str, arm: str, weights: str = "as published") -> list[float]:
        """The geometric mean of the distance over the seeds of each size."""
        rows = self.condition(network, weights).rows
        return list(np.exp(curves(rows, "distance", "train_flops")[arm].log_score))

    def source(self) -> str:
        return f"docs/tables/{self.sweep}.csv"


CIFAR10 = Comparison(
    "families_cifar10",
    ", CIFAR-10",
    {"var": "VAR", "ar": "AR", "dit": "DiT"},
    {
        "cifar10-scales": "sides 1, 2, 3, 4, 6, 8 (VAR, DiT)",
        "cifar10-residual": "residual, sides 8, 8 (AR)",
    },
    (("var", "ar"), ("dit", "ar"), ("dit", "var")),
)


FAMILIES = Comparison(
    "families",
    "",
    {
        "var": "VAR", "ar, residual": "AR, 2 x 128 codes", "dit": "DiT",
        "ar, one-scale": "AR, 8,192 codes",
    },
    {
        "multi-scale": "`multi-scale`, sides 1, 2, 3, 4 (VAR, DiT)",
        "one-scale": "`one-scale`, side 4 (AR)",
        "residual": "`residual`, sides 4, 4 (AR)",
    },
    (
        ("var", "ar, residual"), ("var", "dit"), ("dit", "ar, residual"),
        ("ar, one-scale", "var"), ("ar, one-scale", "ar, residual"), ("ar, one-scale", "dit"),
    ),
)  # fmt: skip
COMPARISONS = (FAMILIES, CIFAR10)


def comparison_tables() -> list[Table]:
    return [table for one in COMPARISONS for table in _tables(one)]


def comparison_values() -> dict[str, str]:
    multiplier_of_var = _multiplier_values(FAMILIES, "classifier", "var", "ar, residual")
    return _values(FAMILIES, "families") | _values(CIFAR10, "cifar") | multiplier_of_var


def comparison_figure(comparison: Comparison, network: str) -> Figure:
    """Distances against training FLOPs and FLOPs of a sample."""
    rows = comparison.condition(network).rows
    return plot_of_families(rows.assign(arm=rows.arm.map(comparison.arms)), network)


def _tables(one: Comparison) -> list[Table]:
    made = (_distances(one), _orders(one), _multipliers(one), _tokenizers(one))
    return [Table(_PAGE, tuple(rows), one.source()) for rows in made]


def _distances(one: Comparison) -> list[tuple[str, ...]]:
    """A row for each size. DiT is the family with averaged weights: its last ones have a column."""
    columns = [(arm, "as published") for arm in one.arms] + [("dit", "last")]
    rows = [(f"training FLOPs{one.label}", *one.arms.values(), "DiT, last weights")]
    budgets = one.rows[one.rows.family == "var"].groupby("depth").train_flops.first()
    for size, (depth, flops) in enumerate(budgets.items()):
        cells = []
        for arm, weights in columns:
            means = [one.means(network, arm, weights)[size] for network in _NETWORKS]
            cells.append(" / ".join(map(digits, means)))
        rows.append((f"{flops:.1e} (depth {depth})".replace("e+", "e"), *cells))
    return rows


def _orders(one: Comparison) -> list[tuple[str, ...]]:
    """Nearest to real images first, with the distance of reconstructions in brackets."""
    rows: list[tuple[str, ...]] = [(f"network{one.label}", "order")]
    for network in _NETWORKS:
        floors = one.condition(network).rows.groupby("arm").floor.first()
        for score, name in (("distance", network), ("above", f"{network}, above reconstructions")):
            ranking = one.ranking(network, score)
            texts = [f"{one.arms[each.arm]} {digits(each.distance)}" for each in ranking]
            if score == "distance":
                texts = [
                    f"{text} ({digits(floors[each.arm])})"
                    for text, each in zip(texts, ranking, strict=True)
                ]
            signs = [
                "<" if first.distinguishable_from(second) else "≈"
                for first, second in pairwise(ranking)
            ]
            words = [word for both in zip(texts, signs, strict=False) for word in both]
            rows.append((name, " ".join([*words, texts[-1]])))
    return rows


def _multipliers(one: Comparison) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [(f"pair{one.label}", *_NETWORKS)]
    for pair in one.pairs:
        cells = [_multiplier_text(one, network, *pair) for network in _NETWORKS]
        rows.append((" over ".join(one.arms[arm] for arm in pair), *cells))
    return rows


def _multiplier(one: Comparison, network: str, of: str, against: str) -> Multiplier:
    rows = one.condition(network).rows
    by_arm = curves(rows, "distance", "train_flops")
    return multiplier(by_arm[of], by_arm[against], *spread(rows, "distance"))


def _multiplier_text(one: Comparison, network: str, of: str, against: str) -> str:
    found = _multiplier(one, network, of, against)
    if found.value is None or found.low is None or found.high is None:
        ranges = []
        for arm in (of, against):
            means = one.means(network, arm)
            ranges.append(f"{one.arms[arm]} {digits(min(means))} to {digits(max(means))}")
        return f"not reached: {'; '.join(ranges)}"
    text = f"{digits(found.value)} ({digits(found.low)} to {digits(found.high)})"
    text += " †" if found.narrow else ""
    return text if found.distinguishable else f"{text}: not distinguishable"


def _tokenizers(one: Comparison) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [(
        f"tokenizer{one.label}", "codes", "tokens per image", "bits per image",
        "PSNR of held-out images", "codes used", "reconstructions, classifier", "seeded",
    )]  # fmt: skip
    table = pd.read_csv(TABLES / f"{one.sweep}_tokenizers.csv").set_index("tokenizer")
    for name, text in one.tokenizers.items():
        row = table.loc[name]
        distances = [
            f"{row[f'fd_{network}']:.3f} ± {row[f'fd_{network}_stderr']:.3f}"
            for network in _NETWORKS
        ]
        rows.append((
            text, f"{row.codes:,}", str(row.tokens_per_image), f"{row.bits_per_image:,.0f}",
            f"{row.psnr_db:.1f} dB", f"{100 * row.codes_used:.0f} %", *distances,
        ))  # fmt: skip
    return rows


def _values(one: Comparison, name: str) -> dict[str, str]:
    """Numbers of sentences."""
    found = _run_values(one)
    for network in _NETWORKS:
        rows = one.condition(network).rows
        deviation, free = spread(rows, "distance")
        noise = rows.distance_stderr / rows.distance
        found |= {
            f"{network}.deviation": f"{deviation:.2f}",
            "free": str(free),
            f"{network}.noise": f"{noise.median():.2f}",
            f"{network}.images": f"{rows.floor_of_images.iloc[0]:.3f}",
        }
        ranked = {each.arm: each for each in one.ranking(network)}
        above = {each.arm: each for each in _above(one, network)}
        for arm in one.arms:
            means = one.means(network, arm)
            found[f"{network}.{arm}.first"] = digits(means[0])
            found[f"{network}.{arm}.last"] = digits(means[-1])
            if arm in above:
                found[f"{network}.{arm}.above"] = digits(above[arm].distance)
        for of, against in one.pairs:
            pair = f"{network}.{of}.{against}"
            found |= _ratio(pair, ranked[of], ranked[against])
            if {of, against} <= above.keys():
                found |= _ratio(f"{pair}.above", above[of], above[against])
        found[f"{network}.dit.last.weights"] = digits(one.means(network, "dit", "last")[-1])
    return {f"{name}.{key}": text for key, text in found.items()}


def _multiplier_values(one: Comparison, network: str, of: str, against: str) -> dict[str, str]:
    """A compute multiplier with its interval."""
    found = _multiplier(one, network, of, against)
    ends = {"": found.value, ".low": found.low, ".high": found.high}
    name = f"{one.sweep}.multiplier.{of}.{against.split(',')[0]}"
    return {f"{name}{end}": digits(value) for end, value in ends.items() if value is not None}


def _above(one: Comparison, network: str) -> tuple[RankedArm, ...]:
    try:
        return one.ranking(network, "above")
    except ComparisonError:
        return ()


def _ratio(name: str, of: RankedArm, against: RankedArm) -> dict[str, str]:
    """Ratio of two distances at the largest budget, with its 95 % interval."""
    ends = zip(("", ".low", ".high"), of.ratio_to(against), strict=True)
    return {f"{name}{end}": digits(value) for end, value in ends}


def _run_values(one: Comparison) -> dict[str, str]:
    run = json.loads((TABLES / f"{one.sweep}.json").read_text())
    started, ended = (
        datetime.fromisoformat(run[key]) for key in ("first_tokenizer_started", "last_set_scored")
    )
    budgets = one.rows.train_flops
    parameters = one.rows[one.rows.depth == one.rows.depth.max()].params_total
    dit = one.rows[(one.rows.family == "dit") & (one.rows.extractor == _NETWORKS[0])]
    losses = dit.pivot(index="trial", columns="raw", values="val_loss")
    orders = robustness(tuple(one.conditions.values()))
    epochs = one.rows.groupby("family").epochs.agg(["min", "max"])
    return {
        **{
            f"epochs.{family}.{end}": f"{value:.1f}"
            for family, ends in epochs.iterrows() for end, value in ends.items()
        },
        "minutes": f"{(ended - started).total_seconds() / 60:.0f}",
        "accuracy": f"{100 * run['classifier_accuracy']:.0f}",
        "budgets": f"{budgets.max() / budgets.min():.1f}",
        "parameters": f"{parameters.max() / 1e6:.2f}",
        "losses": f"{100 * (losses[True] / losses[False] - 1).abs().max():.2f}",
        "orders": str(len(orders) - 1),
        "reversed": str(int((orders.reversed.map(len) > 0).sum())),
    }  # fmt: skip


def digits(value: float) -> str:
    """Three significant digits, with zeros at the end: 0.640, 12.3."""
    return f"{value:#.3g}".removesuffix(".")
