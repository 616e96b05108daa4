"""Fit every form of a surface to Chinchilla's published table, and print the table of docs/laws.md.

    python benchmarks/published_forms.py

The points are those of Hoffmann et al. 2022 (arXiv 2203.15556), Figure 4, as Besiroglu et al. 2024
(arXiv 2404.10102) read them: `../shared/data/laws/chinchilla_fig4.csv`, without the five highest
losses, with D = C / (6 N). The surface is fitted as in their refit: a sum of Huber losses with
δ = 1e-3 of log residuals.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import INTERACTION, SURFACE, TIED, VARYING
from analysis.selection.select import aicc

Array = NDArray[np.float64]

TABLE = Path(__file__).parents[2] / "shared/data/laws/chinchilla_fig4.csv"
FORMS = (
    (SURFACE, "huber"), (TIED, "huber"), (INTERACTION, "huber"), (VARYING, "huber"),
    (SURFACE, "huber:L"), (TIED, "huber:L"), (INTERACTION, "huber:L"),
    (SURFACE, "huber:above=0.5"),
)  # fmt: skip
# Besiroglu et al. 2024, the parameters of their refit and their standard errors.
PUBLISHED = {
    "E": (1.8172, 0.03), "A": (482.01, 124.58), "B": (2085.43, 1293.23),
    "alpha": (0.3478, 0.02), "beta": (0.3658, 0.02),
}  # fmt: skip


def points() -> tuple[tuple[Array, Array], Array]:
    """((N, D), L) of the 240 runs."""
    table = pd.read_csv(TABLE).nsmallest(240, "loss")
    N = table["Model Size"].to_numpy()
    return (N, table["Training FLOP"].to_numpy() / (6 * N)), table["loss"].to_numpy()


def row(fit: Fit, reference: float) -> str:
    """A fit as a row of the table; `reference`: the AICc of the first row."""
    values = {name: f"{value:.4g}" for name, value in fit.values.items()}
    values |= {name: f"{fit[name]:.1f}" for name in ("A", "B") if fit[name] < 1e6}
    criterion, certificate = aicc(fit), fit.certificate
    assert criterion is not None
    cells = [
        f"`{fit.law.name}`", f"`{fit.objective.name}`",
        *(values.get(name, "") for name in ("E", "A", "B", "alpha")),
        values.get("beta", "= α"),
        *(values.get(name, "") for name in ("gamma", "delta")),
        f"{criterion - reference:+.1f}",
        f"{certificate.agreed:.0%} of {certificate.starts}",
        "< 1e-8" if certificate.gradient < 1e-8 else f"{certificate.gradient:.0e}",
        f"{certificate.condition:.0f}", "; ".join(fit.flags) or "none",
    ]  # fmt: skip
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def table_of_forms() -> str:
    """The table of docs/laws.md, in Markdown."""
    x, y = points()
    fits = [fit_law(law, x, y, objective) for law, objective in FORMS]
    reference = aicc(fits[0])
    assert reference is not None
    header = "| law | objective | E | A | B | α | β | γ | δ | AICc | starts that agree | gradient "
    return "\n".join(
        [header + "| condition | flags |", "|---" * 14 + "|", *(row(f, reference) for f in fits)]
    )


def distances() -> str:
    """How far the fitted surface is from the published refit, in its standard errors."""
    fit = fit_law(SURFACE, *points(), "huber")
    return ", ".join(
        f"{name} {fit[name]:.6g} ({(fit[name] - value) / error:+.3f} standard errors)"
        for name, (value, error) in PUBLISHED.items()
    )


def main() -> None:
    if not TABLE.exists():
        sys.exit(f"{TABLE} is missing: put Chinchilla's points there (see the docstring)")
    print(table_of_forms(), f"\nThe surface and the published refit: {distances()}", sep="\n")


if __name__ == "__main__":
    main()
