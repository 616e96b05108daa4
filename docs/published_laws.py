"""Published laws beside our fits of the same runs: docs/published_laws.md.

    python docs/published_laws.py     # after a change of the fits; half a minute

fits Chinchilla's points again and writes docs/tables/chinchilla.json. The points are not in this
repository (the notes of `benchmarks/published_forms.py` say where they come from), so `make docs`
writes the page from that file. DiT's table is fitted on the way, its numbers are in
`analysis/comparison/dit_paper.py`.
"""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import INTERACTION, SURFACE, bootstrap, certify, fit_law, interval, load_table
from analysis.comparison.dit_paper import PRINTED_R, Refit, printed_r, refits
from analysis.comparison.var_paper import NOTE, PUBLISHED_LAWS
from analysis.compute_optimal.allocation import Approaches, approaches
from analysis.compute_optimal.cost import six_nd
from analysis.fitting.fit import Fit
from analysis.format import SYMBOLS
from analysis.selection.select import aicc
from analysis.study import study
from analysis.table.table import Table, complete

ROOT = Path(__file__).parent.parent
POINTS = ROOT.parent / "shared/data/laws/chinchilla_fig4.csv"
REFITS = Path(__file__).parent / "tables/chinchilla.json"
OBJECTIVES = ("huber", "absolute", "squares")
NAMES = ("E", "A", "B", "alpha", "beta")
# Hoffmann et al. 2022 (arXiv 2203.15556), Eq. 10, as printed.
HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
sys.path.append(str(ROOT / "benchmarks"))
import published_forms  # noqa: E402

BESIROGLU = published_forms.PUBLISHED
# Hoffmann et al., Table 2: exponents of N* and D*, 10th and 90th percentiles of 100 subsamples.
HOFFMANN_EXPONENTS = {
    1: ("training curves", ".50", ".488, .502", ".50", ".501, .512"),
    2: ("isoFLOPs", ".49", ".462, .534", ".51", ".483, .529"),
    3: ("parametric", ".46", ".454, .455", ".54", ".542, .543"),
}
BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)  # Hoffmann et al., Fig. 3
# Liang et al. 2024 (arXiv 2410.08184): optima of isoFLOPs from 1e17 to 6e18 FLOPs. FID by CLIP.
DIT_LAWS = (
    ("N* = k C^a, parameters", "0.0009", 0.5681),
    ("D* = k C^b, tokens", "186.8535", 0.4319),
    ("training loss = k C^a", "2.3943", -0.0273),
    ("FID = k C^a", "2.2566e6", -0.234),
)
DIT_BUDGET, DIT_SIZE = 1.5e21, 958.3e6  # the budget and the size at which they test the first law


def points() -> Table:
    """The 240 runs of lowest loss among the 245 that were read from Chinchilla's Figure 4."""
    names = {"Model Size": "params_total", "Training FLOP": "train_flops", "loss": "val_loss"}
    table = complete(load_table(POINTS, names), "tokens_seen")
    kept = table.rows.index.isin(table.rows.nsmallest(240, "val_loss").index)
    return replace(table, rows=table.rows[kept].reset_index(drop=True))


def chinchilla_approaches(runs: pd.DataFrame) -> Approaches:
    """The three approaches, with the budgets of the paper."""
    return approaches(
        runs.assign(steps=1, step=1), "val_loss", params="params_total", cost=six_nd(),
        budgets=BUDGETS,
    )  # fmt: skip


def measured() -> dict[str, Any]:
    """Everything that the pages say about Chinchilla's points, at full precision."""
    table = points()
    runs = table.finals
    x = tuple(runs[name].to_numpy(float) for name in ("params_total", "tokens_seen"))
    y = runs.val_loss.to_numpy(float)
    fits = {name: fit_law(SURFACE, x, y, name) for name in OBJECTIVES}
    draws = [bootstrap(fits["huber"], seed=seed) for seed in range(3)]
    found = study(table, "huber")
    alone = found.get("val_loss", "params_total", "pure")
    interaction = fit_law(INTERACTION, x, y, "huber")
    claims = {"Hoffmann": HOFFMANN, "Besiroglu": {n: v for n, (v, _) in BESIROGLU.items()}}
    checks = {name: certify(SURFACE, x, y, claim) for name, claim in claims.items()}
    of_gamma = (
        interval(interaction, "gamma"),
        bootstrap(interaction, resamples=1000).interval("gamma"),
    )
    return {
        "points": POINTS.name,
        "runs": len(y),
        "fits": {name: _fit(fit) for name, fit in fits.items()},
        "standard_errors": [{n: one.standard_error(n) for n in NAMES} for one in draws],
        "intervals": {
            name: [one.low, one.high]
            for name, one in found.surfaces["val_loss"].intervals.items()
        },
        "interval_method": found.surfaces["val_loss"].intervals["alpha"].method,
        "r_in_N_alone": alone.fit.r if alone else None,
        "forms": _forms(x, y),
        "interaction": _fit(interaction),
        "gamma": {"profile": _ends(of_gamma[0]), "bootstrap": _ends(of_gamma[1])},
        "checks": {
            n: {"excess": c.excess, "is_optimum": c.is_optimum, "summary": c.summary}
            for n, c in checks.items()
        },
        "approaches": [
            {
                "number": one.number, "a": one.a, "a_interval": _ends(one.a_interval),
                "b": one.b, "b_interval": _ends(one.b_interval), "method": one.interval_method,
            }
            for one in chinchilla_approaches(runs).estimates
        ],
    }  # fmt: skip


def _forms(x: Any, y: Any) -> dict[str, Any]:
    """Every form of the surface: rows for docs/laws.md, and AICc relative to the first."""
    fits = [fit_law(law, x, y, objective) for law, objective in published_forms.FORMS]
    criteria = [aicc(fit) or float("nan") for fit in fits]
    lines = published_forms.table_of_forms().splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    names = [f"{fit.law.name} {fit.objective.name}" for fit in fits]
    relative = [one - criteria[0] for one in criteria]
    return {"rows": [rows[0], *rows[2:]], "aicc": dict(zip(names, relative, strict=True))}


def _fit(fit: Fit) -> dict[str, Any]:
    c = fit.certificate
    return {
        "values": dict(fit.values), "objective": c.objective, "starts": c.starts,
        "agreed": c.agreed, "gradient": c.gradient, "condition": c.condition,
        "flags": list(fit.flags),
    }  # fmt: skip


def _ends(one: Any) -> list[float] | None:
    return None if one is None else [one.low, one.high]


def _exponent(value: float, ends: list[float] | None) -> str:
    return short(value) + ("" if ends is None else f" [{span(ends)}]")


@cache
def chinchilla() -> dict[str, Any]:
    """The committed refits."""
    return json.loads(REFITS.read_text())


def page() -> str:
    """The page, from the committed refits."""
    return "\n".join([_INTRODUCTION, _surface(), _allocation(), _dit_table(), _dit_laws(), _var()])


_INTRODUCTION = """# Published laws, fitted again

Generated by `make docs`; do not edit. `python docs/published_laws.py` fits Chinchilla's points
again. [published_laws.ipynb](../notebooks/published_laws.ipynb) does the same step by step.

A *certificate* says how a fit was checked: how many starting points reached the same optimum, and
the relative gradient there. Intervals are 95 % unless stated otherwise.

| law | runs published? | refitted here |
|---|---|---|
| Chinchilla's L(N, D), Hoffmann et al., arXiv 2203.15556 | 245 points, read from a figure * | yes |
| DiT's FID and Gflops, Peebles and Xie, arXiv 2212.09748 | 12 models, Table 4 | yes |
| DiT's laws, Liang et al., arXiv 2410.08184 | none found | no |
| VAR's laws, Tian et al., arXiv 2404.02905 | none found | no |

\\* by Besiroglu et al., arXiv 2404.10102.
"""


def _surface() -> str:
    known = chinchilla()
    fit, spans = known["fits"]["huber"], known["intervals"]
    rows = [("", "printed", "refit of Besiroglu et al. (standard error)", "our fit", "interval")]
    for name in NAMES:
        value, error = BESIROGLU[name]
        ends = ", ".join(significant(end) for end in spans[name])
        ours = significant(fit["values"][name])
        rows.append(
            (SYMBOLS.get(name, name), f"{HOFFMANN[name]}", f"{value} ({error})", ours, f"[{ends}]")
        )
    refit = {name: value for name, (value, _) in BESIROGLU.items()}
    checks = {name: known["checks"][name]["excess"] for name in ("Hoffmann", "Besiroglu")}
    certificates = [
        ("parameters", "objective above the optimum", "certificate"),
        ("printed", f"{100 * checks['Hoffmann']:.0f} %", "no optimum"),
        ("refit of Besiroglu et al.", f"{100 * checks['Besiroglu']:.1f} %", "no optimum"),
        ("our fit", "0", certificate(fit)),
    ]
    return f"""## Chinchilla: L = E + A N^-α + B D^-β

{known["runs"]} points, without the five of highest loss; sum of Huber losses of log residuals,
δ = 1e-3. The points are not in this repository, because their source states no licence. Their
errors of reading are not part of the intervals ({known["interval_method"]}).

{table_text(rows)}

{table_text(certificates)}

- The printed parameters are no optimum of the points: {outside(HOFFMANN)} of the five lie outside
  our intervals.
- Of the refit of Besiroglu et al., {outside(refit)} of the five lie outside. It is no optimum
  either, because its numbers belong to different objectives: see [laws.md](laws.md).
"""


def outside(parameters: dict[str, float]) -> int:
    """How many parameters lie outside our intervals."""
    spans = chinchilla()["intervals"]
    return sum(not spans[name][0] <= value <= spans[name][1] for name, value in parameters.items())


def _allocation() -> str:
    rows = [("approach", "printed: a, b (10 % to 90 %)", "our a", "our b", "our intervals")]
    for one in chinchilla()["approaches"]:
        name, a, a_ends, b, b_ends = HOFFMANN_EXPONENTS[one["number"]]
        rows.append((
            f"{one['number']}, {name}", f"{a} ({a_ends}), {b} ({b_ends})",
            *(_exponent(one[x], one[x + "_interval"]) for x in "ab"), one["method"],
        ))  # fmt: skip
    return f"""## Chinchilla: best size N* ∝ C^a and number of tokens D* ∝ C^b

The printed exponents are those of the paper's Table 2, from all its runs. Ours have only the
points of the figure: the ends of runs, C = 6 N D, and for approach 2 the nine budgets of the paper.

{table_text(rows)}

The printed interval of approach 3 is narrower than a hundredth; that of the points is not.
"""


def _dit_table() -> str:
    header = ("models", "α", "interval", "r of the logarithms", "certificate")
    rows = [header, *map(_dit_row, refits())]
    return f"""## DiT: FID = A G^-α, G in Gflops of a forward pass

Printed: Pearson's r = {short(PRINTED_R, 2)} of FID and log Gflops over the twelve models (Fig. 8).
The numbers of Table 4 give {short(printed_r())}. The paper prints no exponent. Least squares,
profile intervals:

{table_text(rows)}

No single power law in the FLOPs describes the twelve models: the exponent depends on the patch
size.
"""


def _dit_row(refit: Refit) -> tuple[str, ...]:
    ends = span([refit.alpha.low, refit.alpha.high])
    r = short(refit.fit.r, 4)
    return (refit.models, short(refit.fit.alpha), f"[{ends}]", r, certificate(_fit(refit.fit)))


def _dit_laws() -> str:
    rows = [("law", "k", "exponent", "refit")]
    rows += [
        (law, k, f"{power:g}".replace("-", "−"), "no runs published") for law, k, power in DIT_LAWS
    ]
    (_, k_N, a), (_, k_D, b) = DIT_LAWS[:2]
    product, size = 6 * float(k_N) * float(k_D), float(k_N) * DIT_BUDGET**a
    half = 0.05 / 0.9  # of the last printed digit of k, relative
    low, high = (size * (1 + sign * half) / 1e6 for sign in (-1, 1))
    return f"""## DiT: laws in compute

Not refitted: no runs published; no table of them was found. Printed, for text to image at 1e17 to
6e18 FLOPs, FID by features of CLIP (taken from a public summary of the paper, not from its text):

{table_text(rows)}

What the printed numbers alone show:

- a + b = {a + b:.4f}, and 6 k_N k_D = {product:.3f}: the two laws agree with C = 6 N D to rounding.
- At 1.5e21 FLOPs the first law gives {low:.0f} to {high:.0f} million parameters, because k has one
  digit. The paper says {DIT_SIZE / 1e6:.1f}.
"""


def _var() -> str:
    rows = [("metric", "x", "unit of x", "β", "α", "E subtracted", "r", "refit")]
    rows += [
        (
            f"`{law.metric}`", law.variable, law.unit_name, f"{law.beta:g}", f"{law.alpha:g}",
            f"{law.E:g} nats" if law.E else "", short(law.r, 3).rstrip("0"), "no runs published",
        )
        for law in PUBLISHED_LAWS
    ]  # fmt: skip
    by_metric = {(law.metric, law.variable): law.alpha for law in PUBLISHED_LAWS}
    metrics = dict.fromkeys(law.metric for law in PUBLISHED_LAWS)
    ratios = ", ".join(
        f"{by_metric[metric, 'N'] / by_metric[metric, 'C']:.2f} (`{metric}`)" for metric in metrics
    )
    swapped = (
        by_metric["val_loss_last", "N"] / by_metric["val_loss", "C"],
        by_metric["val_loss", "N"] / by_metric["val_loss_last", "C"],
    )
    return f"""## VAR: metric = (β x)^-α

Not refitted: no runs published. The paper shows its points in figures only, and no table of them
was found.

{table_text(rows)}

{NOTE}

What the printed numbers alone show: the ratio of the exponents in N and in C is
{ratios}. So all four metrics agree that compute grows as N^1.4 to N^1.5 along the frontier. With
the equations in C as printed, the ratios of the two losses would be {swapped[0]:.2f} and
{swapped[1]:.2f}. `report` compares our laws with these.
"""


def certificate(fit: dict[str, Any]) -> str:
    """How many starts reached the optimum, and the gradient there."""
    gradient = "< 1e-8" if fit["gradient"] < 1e-8 else f"{fit['gradient']:.0e}"
    starts = "1 start" if fit["starts"] == 1 else f"{fit['starts']} starts"
    return f"{100 * fit['agreed']:.0f} % of {starts}, gradient {gradient}"


def significant(value: float) -> str:
    """Four significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def short(value: float, digits: int = 3) -> str:
    """As the pages write a number below one: .058, −.9991."""
    text = f"{value:.{digits}f}".replace("-", "−")
    return text.replace("0.", ".", 1) if abs(value) < 0.99995 else text


def span(ends: list[float]) -> str:
    return ", ".join(short(end) for end in ends)


def table_text(rows: list[tuple[str, ...]]) -> str:
    lines = ["".join(f"| {cell} " if cell else "| " for cell in row) + "|" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def main() -> None:
    if not POINTS.exists():
        sys.exit(f"{POINTS} is missing: benchmarks/published_forms.py says what it is")
    REFITS.write_text(json.dumps(measured(), indent=1) + "\n")
    print(REFITS)


if __name__ == "__main__":
    main()
