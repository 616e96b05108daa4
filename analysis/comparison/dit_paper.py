"""DiT's FID against the cost of its network, refitted (arXiv 2212.09748, Table 4)."""

from dataclasses import dataclass

import numpy as np

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import PURE
from analysis.uncertainty.intervals import Interval, interval

# Pearson's r of FID and the logarithm of the Gflops, as printed (Fig. 8).
PRINTED_R = -0.93


@dataclass(frozen=True)
class DitRun:
    """One model after 400,000 steps, 256 px, without guidance."""

    size: str
    patch: int
    gflops: float  # of a forward pass; a multiply-add is one
    fid: float  # FID-50K


DIT_RUNS = tuple(
    DitRun(size, patch, gflops, fid)
    for size, *rows in (
        ("S", (8, 0.36, 153.60), (4, 1.41, 100.41), (2, 6.06, 68.40)),
        ("B", (8, 1.42, 122.74), (4, 5.56, 68.38), (2, 23.01, 43.47)),
        ("L", (8, 5.01, 118.87), (4, 19.70, 45.64), (2, 80.71, 23.33)),
        ("XL", (8, 7.39, 106.41), (4, 29.05, 43.01), (2, 118.64, 19.47)),
    )
    for patch, gflops, fid in rows
)


@dataclass(frozen=True)
class Refit:
    """FID = A G^-α of some of the models; G in Gflops of a forward pass."""

    models: str
    fit: Fit
    alpha: Interval


def printed_r() -> float:
    """Pearson's r of FID and log G over the twelve models; the paper prints PRINTED_R."""
    fid, gflops = ([getattr(run, name) for run in DIT_RUNS] for name in ("fid", "gflops"))
    return float(np.corrcoef(np.log(gflops), fid)[0, 1])


def refits() -> tuple[Refit, ...]:
    """All twelve models, and the four sizes of each patch side."""
    groups = {"all": DIT_RUNS} | {
        f"patch {patch}": tuple(run for run in DIT_RUNS if run.patch == patch)
        for patch in (2, 4, 8)
    }
    return tuple(_refit(name, runs) for name, runs in groups.items())


def _refit(models: str, runs: tuple[DitRun, ...]) -> Refit:
    gflops, fid = [run.gflops for run in runs], [run.fid for run in runs]
    fit = fit_law(PURE, gflops, fid, "squares")
    return Refit(models, fit, interval(fit, "alpha"))
