"""The section of a report that compares families.

It begins with the main result: a figure, a sentence for each pair of arms, and the pairs without a
result. Then follow the rankings under every other condition, the multipliers in every kind of cost,
and a table for each set of samples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.comparison.conditions import (
    COST_NAMES,
    Condition,
    RankedArm,
    conditions,
    curves_cross,
    pairwise_multipliers,
    rank_arms,
    ranking_sentence,
    ranking_text,
    robustness,
)
from analysis.comparison.families import (
    ComparisonError,
    IncomparableArms,
    Multiplier,
    arm_differences,
    refuse_incomparable,
    with_arms,
)
from analysis.format import fixed, significant
from analysis.plots.families import families, frontier
from analysis.plots.style import save
from analysis.report.html import figure_of
from var_scaling.text import counted

_CAPTION = (
    "Fréchet distance of each run's samples to held-out images, against its training FLOPs and the "
    "FLOPs of one sample. Lines: geometric means over seeds of one size. Dotted: distance of the "
    "same number of reconstructions by the arm's tokenizer. Samples: {}."
)


_MAX_PAIRS = 4  # pairs that a sentence names


@dataclass(frozen=True)
class ConditionSection:
    """What the report shows for one condition."""

    name: str
    anchor: str
    settings: str
    order: str  # the arms at the largest budget, in a sentence; "" if they were not ranked
    sentences: tuple[str, ...]  # one for each pair with a multiplier
    undetermined: tuple[str, ...]
    cautions: tuple[str, ...]
    table: list[dict[str, str]]
    figure: dict[str, Any]


@dataclass(frozen=True)
class FamiliesSection:
    """The content of the section, for its template."""

    heads: tuple[ConditionSection, ...]  # the main set of samples, by each feature network
    orders: list[dict[str, str]]  # rankings of the main set, by each feature network
    partial: str  # a note on the sets that are not scored yet
    holds: str  # whether the main ranking holds under the other conditions
    robustness: list[dict[str, str]]
    costs: list[dict[str, str]]
    frontier: dict[str, Any] | None  # all settings, if models were sampled with several
    rest: tuple[ConditionSection, ...]  # the other conditions


def families_section(
    images: pd.DataFrame,
    folder: Path,
    formats: Sequence[str] = (),
    unscored: tuple[str, ...] = (),
) -> FamiliesSection | None:
    """The section, its figures drawn into `folder`; None if no condition has two scored arms.

    `unscored`: the sets of samples that the sweep requests and that are not scored yet.
    """
    measured = conditions(images)
    if not measured:
        return None
    sections = {each.name: _condition_section(each, folder, formats) for each in measured}
    table = robustness(measured)
    first, main = measured[0], _main(measured)
    heads = tuple(sections.pop(each.name) for each in main)
    return FamiliesSection(
        heads=heads,
        orders=[
            {"feature network": each.extractor, "nearest to real images first": _order(each)}
            for each in main
        ],
        partial=_partial(unscored),
        holds=_holds(table),
        robustness=[
            {
                "condition": str(row["condition"]),
                "FLOPs counted as": str(row["counted"]),
                "measure": str(row["measure"]),
                "order": str(row["order"]),
                "reversed against the first": _pairs(row["reversed"]),
            }
            for row in table.to_dict("records")
        ],
        costs=_costs(first),
        frontier=_frontier(images, first.extractor, folder, formats),
        rest=tuple(sections.values()),
    )  # fmt: skip


def _main(measured: tuple[Condition, ...]) -> list[Condition]:
    """The conditions of the first set of samples, one for each feature network."""
    first = measured[0]
    return [each for each in measured if (each.set, each.weights) == (first.set, first.weights)]


def comparison_orders(images: pd.DataFrame) -> list[str]:
    """The order of the arms at the largest budget, a sentence for each feature network."""
    measured = conditions(images)
    orders = map(_order_sentence, _main(measured)) if measured else ()
    return [order for order in orders if order]


def comparison_scalars(images: pd.DataFrame) -> dict[str, float]:
    """The multipliers of training FLOPs under each condition, by name: for experiment tracking."""
    scalars: dict[str, float] = {}
    for condition in conditions(images):
        try:
            pairs = pairwise_multipliers(condition)
        except ComparisonError:
            continue  # `_sentences` gives the reason
        for pair in pairs:
            if pair.value is None or pair.low is None or pair.high is None:
                continue
            base = f"families/{condition.name}/{pair.arm} over {pair.against}".replace(",", "")
            scalars |= {base: pair.value, f"{base}/low": pair.low, f"{base}/high": pair.high}
    return scalars


def _condition_section(
    condition: Condition, folder: Path, formats: Sequence[str]
) -> ConditionSection:
    figure_name = "families_" + condition.name.replace(", ", "-").replace(" ", "-")
    cautions = arm_differences(condition.rows)
    figure = families(condition.rows, condition.extractor, cautions)
    png = save(figure, folder, figure_name, formats)
    settings = "; ".join(f"{arm}: {text}" for arm, text in condition.settings.items())
    return ConditionSection(
        name=condition.name,
        anchor=figure_name,
        settings=settings,
        order=_order_sentence(condition),
        sentences=_sentences(condition),
        undetermined=_undetermined(condition),
        cautions=cautions,
        table=_table(condition.rows),
        figure=figure_of(figure_name, png) | {"caption": _CAPTION.format(settings)},
    )


def _frontier(
    images: pd.DataFrame, extractor: str, folder: Path, formats: Sequence[str]
) -> dict[str, Any] | None:
    rows = with_arms(images)
    rows = rows[(rows.extractor == extractor) & ~rows.chooses & ~rows.raw]
    try:
        refuse_incomparable(rows)
    except IncomparableArms:
        return None
    several = rows.groupby("trial").settings.nunique().max() > 1
    if not several and rows.latency_seconds.isna().all():
        return None
    png = save(frontier(rows), folder, "families_frontier", formats)
    caption = (
        "Every model with every sampling setting: means over seeds. Lines: the models and settings "
        "of an arm to which none of the same arm has both a smaller distance and a lower cost."
    )
    return figure_of("families_frontier", png) | {"caption": caption}


def _sentences(condition: Condition) -> tuple[str, ...]:
    """One sentence for each pair with a multiplier; the better arm is named last."""
    try:
        pairs = pairwise_multipliers(condition)
    except IncomparableArms as error:
        return (f"Not compared, because the arms were measured differently: {error}.",)
    except ComparisonError as error:
        return (f"No multiplier of compute: {error}.",)
    ranking = rank_arms(condition)
    return tuple(_sentence(pair, ranking) for pair in pairs if pair.value is not None)


def _sentence(pair: Multiplier, ranking: tuple[RankedArm, ...]) -> str:
    significance = "" if pair.distinguishable else "; the difference is not significant"
    crossing = ""
    if curves_cross(pair, ranking):
        crossing = (
            " – over smaller budgets. At the largest budget that all arms reached its distance is "
            "smaller: the curves cross"
        )
    return f"{pair.sentence}{significance}{crossing}."


def _order_sentence(condition: Condition) -> str:
    try:
        return ranking_sentence(condition)
    except ComparisonError:
        return ""  # `_sentences` gives the reason


def _undetermined(condition: Condition) -> tuple[str, ...]:
    try:
        pairs = pairwise_multipliers(condition)
    except ComparisonError:
        return ()  # `_sentences` gives the reason
    return tuple(f"{pair.sentence}." for pair in pairs if pair.value is None)


def _partial(unscored: tuple[str, ...]) -> str:
    if not unscored:
        return ""
    names = ", ".join(unscored[:4]) + (" …" if len(unscored) > 4 else "")
    return f"Not finished: {counted(len(unscored), 'set')} of samples not scored yet ({names})."


def _order(condition: Condition) -> str:
    try:
        return ranking_text(rank_arms(condition))
    except ComparisonError as error:
        return f"not compared: {error}"


def _holds(table: pd.DataFrame) -> str:
    """Whether a pair of the first row has the opposite order in any other row."""
    others = table.iloc[1:]
    if others.empty or not others.significant_pairs.sum():
        return (
            "Whether the order holds under other ways to sample, measure and count is unknown: in "
            "none of them do two arms differ significantly that also do in the first row."
        )
    reversing = others[others.reversed.map(len) > 0]
    others_text = f"the {len(others)} other ways to sample, measure and count"
    if reversing.empty:
        return f"None of {others_text} reverses a significant difference of the first row."
    pairs = dict.fromkeys(pair for row in reversing.reversed for pair in row)
    return (
        f"The order of the first row does not hold: {len(reversing)} of {others_text} reverse it "
        f"significantly ({_pairs(pairs)})."
    )


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    names = [f"{arm} and {other}" for arm, other in pairs]
    return "; ".join(names[:_MAX_PAIRS]) + " …" * (len(names) > _MAX_PAIRS) or "–"


def _costs(condition: Condition) -> list[dict[str, str]]:
    """A row for each pair, a column for each kind of cost: how much more the first arm needs."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cost, cost_name in COST_NAMES.items():
        try:
            pairs = {
                (pair.arm, pair.against): pair for pair in pairwise_multipliers(condition, cost)
            }
        except ComparisonError:
            continue  # this cost does not grow with size, or the spread of seeds is unknown
        for (arm, against), multiplier in pairs.items():
            key = (arm, against) if (against, arm) not in rows else (against, arm)
            row = rows.setdefault(key, {"pair": f"{key[0]} over {key[1]}"})
            row[cost_name] = _ratio(multiplier, inverted=key != (arm, against))
    empty = dict.fromkeys(COST_NAMES.values(), "–")
    return [{"pair": row["pair"], **empty, **row} for row in rows.values()]


def _ratio(multiplier: Multiplier, inverted: bool) -> str:
    if multiplier.value is None or multiplier.low is None or multiplier.high is None:
        return "not reached"
    value, low, high = multiplier.value, multiplier.low, multiplier.high
    if inverted:
        value, low, high = 1 / value, 1 / high, 1 / low
    return f"{value:.2g} ({low:.2g} to {high:.2g})"


def _table(rows: pd.DataFrame) -> list[dict[str, str]]:
    """A row for each arm and size: its means over seeds."""
    table = []
    for _, runs in rows.groupby(["arm", "train_flops"], sort=False):
        first, distance = runs.iloc[0], float(runs.distance.mean())
        floor = None if pd.isna(first.floor) else float(first.floor)
        error = runs.distance_stderr.mean()
        table.append({
            "arm": str(first.arm),
            "depth": str(first.depth),
            "runs": str(len(runs)),
            "parameters": f"{first.params_total:,}",
            "images seen": f"{first.images_seen:,}",
            "epochs": significant(float(first.epochs), 3),
            "training FLOPs": significant(float(first.train_flops), 3),
            "FLOPs of a sample": significant(float(first.sampling_flops), 3),
            "bits an image": fixed(float(first.bits_per_image), 0),
            "distance": significant(distance, 4),
            "± of sampling": "–" if pd.isna(error) else significant(float(error), 2),
            "reconstructions": significant(floor, 4),
            "above them": significant(None if floor is None else distance - floor, 3),
        })  # fmt: skip
    return table
