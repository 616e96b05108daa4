"""The section of a report that sets families beside each other.

It begins with what can be cited: a figure, a sentence for each pair, what could not be determined.
Behind that: whether it holds under every condition, every currency, and each set in numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.comparison.conditions import (
    CURRENCIES,
    Condition,
    Placed,
    conditions,
    crossed,
    of_pairs,
    order_in_words,
    places,
    robustness,
)
from analysis.comparison.families import (
    IncomparableArms,
    Multiplier,
    refuse_incomparable,
    unequal_grounds,
    with_arms,
)
from analysis.plots.families import families, frontier
from analysis.plots.style import save
from analysis.report.format import significant
from analysis.report.html import figure_of

_CAPTION = (
    "Fréchet distance of each run's samples to images held out, against its training FLOPs and the "
    "FLOPs of one sample. Lines: geometric means over seeds of one size. Dotted: as many "
    "reconstructions by the arm's tokenizer. Samples: {}."
)


_PAIRS = 4  # that a sentence names


@dataclass(frozen=True)
class ConditionShown:
    """One condition in numbers."""

    name: str
    anchor: str
    settings: str
    sentences: tuple[str, ...]  # of the pairs whose multiplier is known
    undetermined: tuple[str, ...]
    cautions: tuple[str, ...]
    table: list[dict[str, str]]
    figure: dict[str, Any]


@dataclass(frozen=True)
class FamiliesShown:
    """What the section has. `heads`: the main set of samples, as each network sees it."""

    heads: tuple[ConditionShown, ...]
    orders: list[dict[str, str]]  # of the first set of samples, by each network
    partial: str
    holds: str
    robustness: list[dict[str, str]]
    currencies: list[dict[str, str]]
    frontier: dict[str, Any] | None  # of every setting, where models were sampled in several ways
    rest: tuple[ConditionShown, ...]


def families_shown(
    images: pd.DataFrame, folder: Path, kinds: tuple[str, ...], unscored: tuple[str, ...] = ()
) -> FamiliesShown | None:
    """All of it, drawn into `folder`; None where no two arms were scored alike.

    `unscored`: the sets of samples that the sweep asks for and has not scored yet.
    """
    found = conditions(images)
    if not found:
        return None
    shown = {one.name: _shown(one, folder, kinds) for one in found}
    table = robustness(found)
    main = [one for one in found if (one.set, one.weights) == (found[0].set, found[0].weights)]
    heads = tuple(shown.pop(one.name) for one in main)
    return FamiliesShown(
        heads=heads,
        orders=[
            {"network that looks": one.extractor, "nearest to real images first": _order(one)}
            for one in main
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
        currencies=_currencies(found[0]),
        frontier=_frontier(images, found[0].extractor, folder, kinds),
        rest=tuple(shown.values()),
    )  # fmt: skip


def comparison_scalars(images: pd.DataFrame) -> dict[str, float]:
    """The multipliers of training FLOPs under each condition, by name: for a tracker."""
    scalars: dict[str, float] = {}
    for condition in conditions(images):
        try:
            pairs = of_pairs(condition)
        except ValueError:
            continue
        for one in pairs:
            if one.value is None or one.low is None or one.high is None:
                continue
            base = f"families/{condition.name}/{one.arm} over {one.against}".replace(",", "")
            scalars |= {base: one.value, f"{base}/low": one.low, f"{base}/high": one.high}
    return scalars


def _shown(condition: Condition, folder: Path, kinds: tuple[str, ...]) -> ConditionShown:
    drawn = "families_" + condition.name.replace(", ", "-").replace(" ", "-")
    cautions = unequal_grounds(condition.rows)
    save(families(condition.rows, condition.extractor, cautions), folder, drawn, kinds)
    how = "; ".join(f"{arm}: {words}" for arm, words in condition.settings.items())
    return ConditionShown(
        name=condition.name,
        anchor=drawn,
        settings=how,
        sentences=_sentences(condition),
        undetermined=_undetermined(condition),
        cautions=cautions,
        table=_table(condition.rows),
        figure=figure_of(drawn, folder / f"{drawn}.svg") | {"caption": _CAPTION.format(how)},
    )


def _frontier(
    images: pd.DataFrame, extractor: str, folder: Path, kinds: tuple[str, ...]
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
    save(frontier(rows), folder, "families_frontier", kinds)
    caption = (
        "Every model with every setting it was sampled by: means over seeds. Lines: what no other "
        "of the same arm beats in both."
    )
    return figure_of("families_frontier", folder / "families_frontier.svg") | {"caption": caption}


def _sentences(condition: Condition) -> tuple[str, ...]:
    """One for each pair whose multiplier is known, the better arm last."""
    try:
        pairs = of_pairs(condition)
    except IncomparableArms as error:
        return (f"Not compared, for the arms were measured by different rulers: {error}.",)
    except ValueError as error:
        return (f"No multiplier of compute: {error}.",)
    placed = places(condition)
    return tuple(_in_words(one, placed) for one in pairs if one.value is not None)


def _in_words(one: Multiplier, placed: tuple[Placed, ...]) -> str:
    apart = "" if one.distinguishable else "; these runs cannot tell them apart"
    crosses = ""
    if crossed(one, placed):
        crosses = (
            " – over smaller budgets. At the largest that all arms reached it is nearer: the "
            "curves cross"
        )
    return f"{one.said}{apart}{crosses}."


def _undetermined(condition: Condition) -> tuple[str, ...]:
    try:
        return tuple(f"{one.said}." for one in of_pairs(condition) if one.value is None)
    except ValueError:
        return ()  # the sentences say it


def _partial(unscored: tuple[str, ...]) -> str:
    if not unscored:
        return ""
    some = ", ".join(unscored[:4]) + (" …" if len(unscored) > 4 else "")
    return f"Not finished: {len(unscored)} sets of samples are not scored yet ({some})."


def _order(condition: Condition) -> str:
    try:
        return order_in_words(places(condition))
    except ValueError as error:
        return f"not compared: {error}"


def _holds(table: pd.DataFrame) -> str:
    """Whether any way to sample, look or count turns a pair of the first row round."""
    others = table.iloc[1:]
    if others.empty or not others.told.sum():
        return (
            "Whether the order holds under other ways to sample, look and count cannot be told: in "
            "none of them are two arms told apart that the first row tells apart."
        )
    turned = others[others.reversed.map(len) > 0]
    against = f"the {len(others)} other ways to sample, look and count"
    if turned.empty:
        return f"None of {against} turns a pair of the first row round that both tell apart."
    pairs = dict.fromkeys(pair for row in turned.reversed for pair in row)
    return (
        f"The first row does not hold: {len(turned)} of {against} turn pairs round that both tell "
        f"apart ({_pairs(pairs)})."
    )


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    words = [f"{one} and {other}" for one, other in pairs]
    return "; ".join(words[:_PAIRS]) + " …" * (len(words) > _PAIRS) or "–"


def _currencies(condition: Condition) -> list[dict[str, str]]:
    """A row for each pair, a column for each currency: how much more the first arm needs."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cost, called in CURRENCIES.items():
        try:
            pairs = {(one.arm, one.against): one for one in of_pairs(condition, cost)}
        except ValueError:
            continue  # a currency in which sizes do not differ, or nothing is known of the spread
        for (arm, against), one in pairs.items():
            key = (arm, against) if (against, arm) not in rows else (against, arm)
            row = rows.setdefault(key, {"pair": f"{key[0]} over {key[1]}"})
            row[called] = _ratio(one, turned=key != (arm, against))
    empty = dict.fromkeys(CURRENCIES.values(), "–")
    return [{"pair": row["pair"], **empty, **row} for row in rows.values()]


def _ratio(one: Multiplier, turned: bool) -> str:
    if one.value is None or one.low is None or one.high is None:
        return "not reached"
    value, low, high = one.value, one.low, one.high
    if turned:
        value, low, high = 1 / value, 1 / high, 1 / low
    return f"{value:.2g} ({low:.2g} to {high:.2g})"


def _table(rows: pd.DataFrame) -> list[dict[str, str]]:
    """A row for each arm and size: its means over seeds."""
    shown = []
    for _, runs in rows.groupby(["arm", "train_flops"], sort=False):
        first, distance = runs.iloc[0], float(runs.distance.mean())
        floor = None if pd.isna(first.floor) else float(first.floor)
        error = runs.distance_stderr.mean()
        shown.append({
            "arm": str(first.arm),
            "depth": str(first.depth),
            "runs": str(len(runs)),
            "parameters": f"{first.params_total:,}",
            "images seen": f"{first.images_seen:,}",
            "epochs": significant(float(first.epochs), 3),
            "training FLOPs": significant(float(first.train_flops), 3),
            "FLOPs of a sample": significant(float(first.sampling_flops), 3),
            "bits an image": f"{first.bits_per_image:.0f}",
            "distance": significant(distance, 4),
            "± of sampling": "–" if pd.isna(error) else significant(float(error), 2),
            "reconstructions": significant(floor, 4),
            "above them": significant(None if floor is None else distance - floor, 3),
        })  # fmt: skip
    return shown
