"""How fast a surface is fitted and refitted, beside the usual grid of L-BFGS-B starts; one core.

    python benchmarks/fit.py [--starts 4500] [--resamples 4000]

The usual way: scipy's L-BFGS-B without gradients, from each of 4,500 starts, on the sum of Huber
losses (δ = 1e-3) of log residuals. Fewer `--starts` are spread over the grid and extrapolated.
"""

# ruff: noqa: E402 - one thread, said before numpy is imported

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[threads] = "1"  # before numpy is imported

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize

from analysis.fit import Fit, fit_law
from analysis.laws import SURFACE
from analysis.search import solve
from analysis.uncertainty import bootstrap

Array = NDArray[np.float64]

TABLE = Path(__file__).parents[2] / "shared/data/laws/chinchilla_fig4.csv"
DELTA = 1e-3
GRID = (
    np.arange(0, 26, 5.0), np.arange(0, 2.1, 0.5),  # a = log A, α
    np.arange(0, 26, 5.0), np.arange(0, 2.1, 0.5),  # b = log B, β
    np.arange(-1, 1.1, 0.5),  # e = log E
)  # fmt: skip


def points() -> tuple[str, Array, Array, Array]:
    """Where they come from, N, D and L of 240 runs."""
    if TABLE.exists():
        table = pd.read_csv(TABLE).nsmallest(240, "loss")
        N = table["Model Size"].to_numpy()
        D = table["Training FLOP"].to_numpy() / (6 * N)
        return "published (shared/data/laws)", N, D, table["loss"].to_numpy()
    generator = np.random.default_rng(0)
    N, D = 10 ** generator.uniform(7.7, 10.2, 240), 10 ** generator.uniform(8.5, 11.5, 240)
    law = {"A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37, "E": 1.8}
    L = SURFACE.predict((N, D), law) * np.exp(generator.normal(0, 0.01, 240))
    return "SYNTHETIC (the published table is not here)", N, D, L


def usual_objective(N: Array, D: Array, L: Array, weights: Array) -> Callable[[Array], float]:
    """The sum of Huber losses of (a, α, b, β, e), as it is commonly written."""
    log_N, log_D, log_L = np.log(N), np.log(D), np.log(L)

    def objective(theta: Array) -> float:
        a, alpha, b, beta, e = theta
        terms = np.stack([a - alpha * log_N, b - beta * log_D, np.full_like(log_N, e)])
        most = terms.max(0)
        r = np.abs(most + np.log(np.exp(terms - most).sum(0)) - log_L)
        return float((weights * np.where(r < DELTA, r**2 / 2, DELTA * (r - DELTA / 2))).sum())

    return objective


def usual_fit(objective: Callable[[Array], float], count: int) -> tuple[float, float]:
    """Least objective of `count` starts spread evenly over the grid, and the seconds they took."""
    grid = list(itertools.product(*GRID))
    chosen = np.random.default_rng(0).permutation(len(grid))[:count]
    began, least = time.perf_counter(), np.inf
    with np.errstate(all="ignore"):
        for index in chosen:
            end = minimize(objective, np.array(grid[index]), method="L-BFGS-B")
            least = min(least, end.fun)
    return least, time.perf_counter() - began


def timed(job: Callable[[], object], times: int) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def best_known(fit: Fit) -> float:
    """The least objective from 200 more starts, scattered widely about our optimum."""
    given, start = fit.given, np.random.default_rng(1).normal(fit.theta, 1.0, (200, 5))
    more = solve(given.points, given.weights[None], start[:, None], fit.objective)
    return float(more.objective[0]) * DELTA  # the solver divides by δ


def show(job: str, seconds: float, excess: float, ratio: float | None = None) -> None:
    beside = "" if ratio is None else f"{ratio:,.0f} ×"
    print(f"{job:<64}{seconds:>9.3f} s{excess:>10.0e}{beside:>11}")


def compare_fits(fit: Fit, N: Array, D: Array, L: Array, starts: int) -> None:
    """One fit: ours, and the grid of starts or as many of them as were asked for."""
    whole = int(np.prod([len(axis) for axis in GRID]))
    starts = min(starts, whole)
    ours = timed(lambda: fit_law(SURFACE, (N, D), L), 15)
    least, seconds = usual_fit(usual_objective(N, D, L, np.ones(len(L))), starts)
    reached = fit.certificate.objective
    best = min(best_known(fit), least, reached)
    how = "" if starts == whole else f", EXTRAPOLATED from {starts}"
    theirs = seconds * whole / starts
    show("surface fit, ours (median of 15)", ours, reached / best - 1)
    show(f"surface fit, {whole} starts{how}", theirs, least / best - 1, theirs / ours)


def compare_resamples(fit: Fit, N: Array, D: Array, L: Array, resamples: int) -> None:
    """Refits of resampled rows: ours, and one start each, at the fit, of the usual way."""
    began = time.perf_counter()
    bootstrap(fit, resamples)
    ours = time.perf_counter() - began
    generator, few = np.random.default_rng(2), 10
    start = np.array([np.log(fit["A"]), fit["alpha"], np.log(fit["B"]), fit["beta"], np.log(fit.E)])
    theirs, excesses = 0.0, {"ours": 0.0, "theirs": 0.0}
    for _ in range(few):
        weights = generator.multinomial(len(L), np.full(len(L), 1 / len(L))).astype(float)
        began = time.perf_counter()
        end = minimize(usual_objective(N, D, L, weights), start, method="L-BFGS-B")
        theirs += time.perf_counter() - began
        refit = solve(
            fit.given.points, weights[None], fit.theta[None, None], fit.objective,
            tolerance=1e-8, near=True,
        ).objective[0] * DELTA  # fmt: skip
        kept = weights > 0
        sure = fit_law(SURFACE, (N[kept], D[kept]), L[kept], weights=weights[kept])
        best = sure.certificate.objective * weights[kept].mean()
        excesses["ours"] = max(excesses["ours"], refit / best - 1)
        excesses["theirs"] = max(excesses["theirs"], end.fun / best - 1)
    theirs *= resamples / few
    show(f"{resamples} refits, ours", ours, excesses["ours"])
    how = f"{resamples} refits, one L-BFGS-B start each, EXTRAPOLATED from {few}"
    show(how, theirs, excesses["theirs"], theirs / ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--starts", type=int, default=4500, help="of the usual grid's 4,500")
    parser.add_argument("--resamples", type=int, default=4000)
    chosen = parser.parse_args()
    source, N, D, L = points()
    print(f"240 rows, {source}; one core; Huber(δ = 1e-3), summed")
    print("excess: of the objective over the best known (of refits: the worst of 10)\n")
    print(f"{'job':<64}{'time':>11}{'excess':>10}{'ratio':>11}")
    fit = fit_law(SURFACE, (N, D), L)
    compare_fits(fit, N, D, L, chosen.starts)
    compare_resamples(fit, N, D, L, chosen.resamples)


if __name__ == "__main__":
    main()
