"""Time the fit and the bootstrap refits of a loss surface, against SciPy; one core.

    python benchmarks/fit.py [--starts 9] [--resamples 400] [--grid 0]
    python benchmarks/fit.py --report [--code DIR] [--rounds 3]

The baseline is the best use of SciPy: L-BFGS-B with the analytic gradient of the objective, from
nine starts, and for each resample from one start, the fit of all rows. The objective is the sum of
Huber losses (δ = 1e-3) of log residuals. The published procedure (arXiv 2203.15556) runs L-BFGS-B
without gradients from 4,500 starts; `--grid` times that number of them, a random subset, and
extrapolates.

`--report` times the command `var-scaling fit` with its report instead: a table of the size of
quickstart, one of 2,000 runs and two of 20,000 (once), seconds by stage, and the peak of memory.
`--code DIR` adds the code in DIR, such as a git worktree of an earlier commit; the two take turns.
A line for each table and code is appended to benchmarks/results/fit.jsonl.
"""

# ruff: noqa: E402 - the number of threads is set before numpy is imported

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[threads] = "1"  # BLAS reads them once, when numpy is imported

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls
from turns import append, commit_of

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import SURFACE
from analysis.fitting.search import solve
from analysis.uncertainty.bootstrap import bootstrap

Array = NDArray[np.float64]

HERE = Path(__file__).parent
STAGES = ("start", "read", "fit", "bootstrap", "figures", "pages", "all", "memory")
_LARGE = 10_000  # rows of a table that is fitted only once
TABLE = Path(__file__).parents[2] / "shared/data/laws/chinchilla_fig4.csv"
DELTA = 1e-3
GRID = (
    np.arange(0, 26, 5.0), np.arange(0, 2.1, 0.5),  # a = log A, α
    np.arange(0, 26, 5.0), np.arange(0, 2.1, 0.5),  # b = log B, β
    np.arange(-1, 1.1, 0.5),  # e = log E
)  # fmt: skip


def points() -> tuple[str, Array, Array, Array]:
    """The source of the points; N, D and L of 240 runs."""
    if TABLE.exists():
        table = pd.read_csv(TABLE).nsmallest(240, "loss")
        N = table["Model Size"].to_numpy()
        D = table["Training FLOP"].to_numpy() / (6 * N)
        return "published (shared/data/laws)", N, D, table["loss"].to_numpy()
    generator = np.random.default_rng(0)
    N, D = 10 ** generator.uniform(7.7, 10.2, 240), 10 ** generator.uniform(8.5, 11.5, 240)
    law = {"A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37, "E": 1.8}
    L = SURFACE.predict((N, D), law) * np.exp(generator.normal(0, 0.01, 240))
    return "SYNTHETIC (the published table is missing)", N, D, L


def huber_sum(
    N: Array, D: Array, L: Array, weights: Array
) -> Callable[[Array], tuple[float, Array]]:
    """The sum of Huber losses of (a, α, b, β, e), and its gradient."""
    log_N, log_D, log_L = np.log(N), np.log(D), np.log(L)

    def objective(theta: Array) -> tuple[float, Array]:
        a, alpha, b, beta, e = theta
        terms = np.stack([a - alpha * log_N, b - beta * log_D, np.full_like(log_N, e)])
        largest = terms.max(0)  # subtracted in the log-sum-exp, against overflow
        scaled_terms = np.exp(terms - largest)
        total = scaled_terms.sum(0)
        r = largest + np.log(total) - log_L
        clipped = np.clip(r, -DELTA, DELTA)  # the derivative of the Huber loss
        value = (weights * (np.abs(r) * np.abs(clipped) - clipped**2 / 2)).sum()
        by_a, by_b, by_e = weights * clipped * scaled_terms / total
        gradient = [by_a.sum(), -by_a @ log_N, by_b.sum(), -by_b @ log_D, by_e.sum()]
        return float(value), np.array(gradient)

    return objective


def nine_starts(N: Array, D: Array, L: Array) -> list[Array]:
    """α and β from .2, .35 and .5 each; A, B and E by linear least squares for given α and β."""
    starts = []
    for alpha, beta in itertools.product((0.2, 0.35, 0.5), repeat=2):
        columns = np.stack([N**-alpha, D**-beta, np.ones_like(N)], axis=1)
        A, B, E = nnls(columns / L[:, None], np.ones_like(L))[0]
        # Each coefficient may be 0, whose logarithm is not finite.
        offset = 1e-3 * L.min()
        starts.append(np.array([np.log(A + 1), alpha, np.log(B + 1), beta, np.log(E + offset)]))
    return starts


def best_of(objective: Callable[[Array], tuple[float, Array]], starts: list[Array]) -> float:
    """The smallest objective that L-BFGS-B reaches from `starts`, to about 1e-6 of the optimum."""
    tolerances = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-10, "gtol": 1e-8}

    # The objective is about 1e-3, but the tolerances of L-BFGS-B assume about 1.
    def scaled(theta: Array) -> tuple[float, Array]:
        value, gradient = objective(theta)
        return value / DELTA, gradient / DELTA

    ends = [
        minimize(scaled, start, jac=True, method="L-BFGS-B", options=tolerances).fun
        for start in starts
    ]
    return DELTA * float(min(ends))


def grid_fit(objective: Callable[[Array], tuple[float, Array]], count: int) -> tuple[float, float]:
    """Smallest objective from `count` random starts of the grid, and the seconds of all."""
    grid = list(itertools.product(*GRID))
    chosen = np.random.default_rng(0).permutation(len(grid))[:count]
    began, smallest = time.perf_counter(), np.inf
    with np.errstate(all="ignore"):
        for index in chosen:
            end = minimize(lambda theta: objective(theta)[0], grid[index], method="L-BFGS-B")
            smallest = min(smallest, end.fun)
    return smallest, time.perf_counter() - began


def timed(job: Callable[[], object], times: int) -> float:
    """Median seconds of `times` runs of `job`."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def best_known(fit: Fit) -> float:
    """The smallest objective from 200 more starts, normally distributed around our optimum."""
    data, start = fit.data, np.random.default_rng(1).normal(fit.theta, 1.0, (200, 5))
    more = solve(data.points, data.weights[None], start[:, None], fit.objective)
    return float(more.objective[0]) * DELTA  # the solver divides by δ


def show(job: str, seconds: float, excess: float, ratio: float | None = None) -> None:
    ratio_text = "" if ratio is None else f"{ratio:,.1f} ×"
    print(f"{job:<66}{1e3 * seconds:>10.1f} ms{excess:>10.0e}{ratio_text:>11}")


def compare_fits(fit: Fit, N: Array, D: Array, L: Array, starts: int, grid: int) -> None:
    """One fit: ours, SciPy with gradients from `starts` starts, and `grid` starts as published."""
    objective = huber_sum(N, D, L, np.ones(len(L)))
    chosen = nine_starts(N, D, L)[:starts]
    ours, theirs = [], []
    for _ in range(7):  # the two take turns, because other load on the machine varies
        ours.append(timed(lambda: fit_law(SURFACE, (N, D), L), 3))
        theirs.append(timed(lambda: best_of(objective, chosen), 3))
    reached, smallest = fit.certificate.objective, best_of(objective, chosen)
    best = min(best_known(fit), smallest, reached)
    our_seconds, their_seconds = statistics.median(ours), statistics.median(theirs)
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    show("surface fit, ours", our_seconds, reached / best - 1)
    name = f"surface fit, L-BFGS-B with gradient, {len(chosen)} starts"
    show(name, their_seconds, smallest / best - 1, statistics.median(ratios))
    print(f"{'':<66}ratios over seven rounds: {ratios[0]:.2f} to {ratios[-1]:.2f}")
    if grid:
        total = int(np.prod([len(axis) for axis in GRID]))
        grid = min(grid, total)
        smallest, seconds = grid_fit(objective, grid)
        note = "" if grid == total else f", EXTRAPOLATED from {grid}"
        all_seconds = seconds * total / grid
        name = f"surface fit, {total} starts without gradients{note}"
        show(name, all_seconds, smallest / best - 1, all_seconds / our_seconds)


def compare_resamples(fit: Fit, N: Array, D: Array, L: Array, resamples: int) -> None:
    """Refits of resampled rows: ours, and SciPy with gradients from the full fit."""
    began = time.perf_counter()
    bootstrap(fit, resamples)
    ours = time.perf_counter() - began
    generator, checked = np.random.default_rng(2), 10  # excess is computed for the first 10
    start = np.array([np.log(fit["A"]), fit["alpha"], np.log(fit["B"]), fit["beta"], np.log(fit.E)])
    theirs, excesses = 0.0, {"ours": 0.0, "theirs": 0.0}
    for number in range(resamples):
        weights = generator.multinomial(len(L), np.full(len(L), 1 / len(L))).astype(float)
        began = time.perf_counter()
        end = best_of(huber_sum(N, D, L, weights), [start])
        theirs += time.perf_counter() - began
        if number >= checked:
            continue
        refit = solve(
            fit.data.points, weights[None], fit.theta[None, None], fit.objective,
            tolerance=1e-8, near_optimum=True,
        ).objective[0] * DELTA  # fmt: skip
        kept = weights > 0
        thorough = fit_law(SURFACE, (N[kept], D[kept]), L[kept], weights=weights[kept])
        best = min(thorough.certificate.objective * weights[kept].mean(), end, refit)
        excesses["ours"] = max(excesses["ours"], refit / best - 1)
        excesses["theirs"] = max(excesses["theirs"], end / best - 1)
    show(f"{resamples} refits, ours", ours, excesses["ours"])
    name = f"{resamples} refits, L-BFGS-B with gradient, one start each"
    show(name, theirs, excesses["theirs"], theirs / ours)


def runs_table(
    depths: int, budgets: int, seeds: int, evaluations: int, spread: float = 0.0
) -> pd.DataFrame:
    """A simulated table of runs of the four metrics: sizes x budgets x seeds, all finished.

    `spread`: D differs from its budget by up to this factor's log, so no two runs have the same.
    """
    generator, rows = np.random.default_rng(0), []
    for depth, budget, seed in itertools.product(range(depths), range(budgets), range(seeds)):
        N, D = 12 * (depth + 2) * (64.0 * (depth + 2)) ** 2, 1e9 * 2**budget
        D *= np.exp(generator.uniform(-spread, spread)) if spread else 1.0
        for evaluation in range(1, evaluations + 1):
            seen = D * evaluation / evaluations
            loss = 1.6 + (N / 3e3) ** -0.25 + (seen / 2e5) ** -0.22
            last, loss = loss * np.exp(generator.normal([0.02, 0], 0.004))
            rows.append({
                "trial": f"d{depth + 2}-b{budget}-s{seed}", "seed": seed, "status": "done",
                "step": evaluation, "steps": evaluations, "params_blocks": int(N),
                "params_total": int(N) + 500_000 * (depth + 2), "tokens_seen": int(seen),
                "train_flops": 6 * N * seen, "val_loss": loss, "val_loss_last": last,
                "val_error": 0.9 * (1 - np.exp(-loss / 3)),
                "val_error_last": 0.9 * (1 - np.exp(-last / 3)),
            })  # fmt: skip
    return pd.DataFrame(rows)


def compare_reports(codes: list[Path], rounds: int) -> None:
    """Print the seconds of each stage of `var-scaling fit TABLE`, by code, and append them."""
    tables = {
        "quickstart": runs_table(6, 1, 1, 20), "2,000 runs": runs_table(25, 8, 10, 1),
        "20,000 runs": runs_table(50, 20, 20, 1),
        "20,000 runs, no two of equal D": runs_table(50, 20, 20, 1, spread=0.3),
    }  # fmt: skip
    names = [commit_of(code) for code in codes]
    with tempfile.TemporaryDirectory() as folder:
        for title, table in tables.items():
            path = Path(folder) / "runs.csv"
            table.to_csv(path, index=False)
            measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            repeats = rounds if len(table) < _LARGE else 1
            for number in range(repeats):  # the codes take turns: other load on the machine varies
                for name, code in zip(names, codes, strict=True):
                    out = Path(folder) / f"{name}-{len(table)}-{number}"
                    measured[name].append(stages_of(code, path, out))
            print(
                f"\n{title}: {len(table)} rows; median of {repeats}, seconds of wall and CPU time"
            )
            print("memory: peak of the largest process, MB")
            print(f"{'stage':<12}" + "".join(f"{name:>22}" for name in names))
            for stage in STAGES:
                cells = [median_of(measured[name], stage) for name in names]
                texts = [" / ".join(f"{each:.2f}" for each in cell.values()) for cell in cells]
                print(f"{stage:<12}" + "".join(f"{text:>22}" for text in texts))
            rows = [
                {"table": title, "rows": len(table), "commit": name, "rounds": repeats,
                 "seconds": {stage: median_of(measured[name], stage) for stage in STAGES}}
                for name in names
            ]  # fmt: skip
            append("fit", rows)


def stages_of(code: Path, table: Path, out: Path) -> dict[str, Any]:
    """The seconds of one `fit` in a new process, from benchmarks/fit_stages.py."""
    command = [sys.executable, str(HERE / "fit_stages.py"), str(table), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    done = subprocess.run(
        command, env=environment, cwd=code, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def median_of(measured: list[dict[str, Any]], stage: str) -> dict[str, float]:
    """The medians of wall and CPU time of a stage; a stage inside another has only CPU time."""
    return {
        kind: statistics.median(each[stage][kind] for each in measured)
        for kind in measured[0][stage]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--starts", type=int, default=9, help="starts with gradients, at most 9")
    parser.add_argument(
        "--grid",
        type=int,
        default=0,
        help="how many of the published 4,500 starts without gradients to time",
    )
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--report", action="store_true", help="time the command `fit` instead")
    parser.add_argument(
        "--code", type=Path, nargs="+", default=[HERE.parent], metavar="DIR",
        help="with --report: the checkouts to time",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="with --report")
    options = parser.parse_args()
    if options.report:
        compare_reports([code.resolve() for code in options.code], options.rounds)
        return
    source, N, D, L = points()
    print(f"240 rows, {source}; one core; Huber(δ = 1e-3), summed")
    print("excess: objective / best known objective - 1 (refits: the largest of 10)\n")
    print(f"{'job':<66}{'time':>13}{'excess':>10}{'ratio':>11}")
    fit = fit_law(SURFACE, (N, D), L)
    compare_fits(fit, N, D, L, options.starts, options.grid)
    compare_resamples(fit, N, D, L, options.resamples)


if __name__ == "__main__":
    main()
