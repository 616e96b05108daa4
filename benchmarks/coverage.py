"""Simulate the coverage of every interval of a report and write docs/coverage.md; one core.

    python benchmarks/coverage.py [--simulations 200] [--other 50] [--out PAGE] [--table JSON]

The shares are written to docs/tables/coverage.json, and the page from them; `--page` writes the
page alone.

`--simulations` tables of runs of each design are simulated under the true law, `--other` under each
of the other laws, where the coverage is only stated. With the defaults this takes about 10
minutes on an idle core.
"""

# ruff: noqa: E402 - the number of threads is set before numpy is imported

import argparse
import datetime
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[threads] = "1"  # BLAS reads them once, when numpy is imported

from analysis.coverage import COMMON, RICHER, TRUE, World, designs, simulated_coverage

HERE = Path(__file__).parent
TABLE = HERE.parent / "docs/tables/coverage.json"
LOW, HIGH = 0.92, 0.97  # outside these, the coverage is marked
WORLDS = {
    TRUE: "The true law, L = E + A N^-α + B D^-β with Chinchilla's published parameters. The log "
    "losses of runs have normal errors with a standard deviation of .005.",
    RICHER: "A law one form richer: with the term 100 N^(-α/2) D^(-β/2), which the fitted surface "
    "lacks. Here α and β of the surface are those of the true terms, and the coverage is only "
    "stated.",
    COMMON: "The true law, but with an error that the runs of a size have in common (standard "
    "deviation .005), and for isoFLOPs the runs of a budget: a tilt of log L by .005 for a factor "
    "of 4 in N. The coverage is only stated.",
}
INTRODUCTION = """# Do the intervals cover the truth?

Simulated tables of runs go through the same analysis as a table of `var-scaling fit`: the frontier,
the surface and the three approaches. A number is the share of 95 % intervals, in per cent, that
contain the true value. Numbers outside 92 to 97 are in bold. A dash: the result does not exist for
this design, or was refused. The coverage of laws in one variable is in [laws.md](laws.md).

- isoFLOP: 6 budgets of 1e18 to 1e21 FLOPs, 7 sizes each within a factor of 4, centred on 20 tokens
  a weight. Only the ends of runs are known.
- curves: 8 sizes of 3e7 to 3e9, each run for 10, 40 and 160 tokens a weight under a constant
  learning rate, with 30 evaluations.
- grid: 6 sizes × 5 numbers of tokens (1e9 to 1e11) × 3 seeds, ends only.
- one length: 8 sizes × 3 seeds, 3e10 tokens, a constant learning rate, with 30 evaluations.

How an interval is computed:

- L(C) has the exponent αβ / (α + β) and the floor E of the surface. Without E, the truth is the
  slope of the line closest to the true frontier. Value and interval come from the surface
  where there is one. With one length, it is the surface of the points inside runs; whole runs are
  drawn, and widened by Student's t.
- a and b are the exponents of N* and D*, C the largest budget.
- Approach 1 resamples runs. A resample lacks a third of the runs, and sometimes a whole size. Its
  intervals do not reach their level, and the report says so: "not calibrated". The same holds for
  L(C) of fewer than 12 runs of one length.
- Approach 2 widens its interval by Student's t, and by the scatter of the budgets where it exceeds
  the noise of the parabolas.
- The parameters of the surface are given twice: percentiles of the bootstrap, and profile. Where
  the surface misses the means of cells (runs of equal N and D; F test, p < .2), the bootstrap draws
  cells, and is widened by Student's t and by sqrt(g / (g - p)) of g cells and p parameters.

"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--other", type=int, default=50)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "coverage.md")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--page", action="store_true", help="simulate nothing")
    options = parser.parse_args()
    if not options.page:
        found = simulated(options.simulations, options.other)
        options.table.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    options.out.write_text(page(options.table))


def simulated(simulations: int, other: int) -> dict[str, Any]:
    """The shares by world, design and quantity, and how and when they were made."""
    start = time.monotonic()
    worlds = {}
    for world in WORLDS:
        count = simulations if world is TRUE else other
        worlds[world.name] = {"simulations": count, "designs": shares(world, count, start)}
        print(section(world, worlds[world.name]), flush=True)
    minutes = (time.monotonic() - start) / 60
    today = datetime.datetime.now(tz=datetime.UTC).date()
    counts = f"--simulations {simulations} --other {other}"
    command = f"`make coverage` (`python benchmarks/coverage.py {counts}`)"
    date = f"{today}, {command}: {minutes:.0f} minutes on one core of the project's test machine."
    return {"made": date, "worlds": worlds}


def shares(world: World, simulations: int, start: float) -> dict[str, Any]:
    """By design and quantity: the share that covers, and the number of refused intervals."""
    by_design = {}
    for design in designs():
        by_design[design.name] = {
            # Without any interval there is no share.
            each.quantity: {
                "covered": each.covered if each.simulations else None,
                "refused": each.failed,
            }
            for each in simulated_coverage(design, world, simulations)
        }
        text = ", ".join(f"{name} {cell(one)}" for name, one in by_design[design.name].items())
        seconds = time.monotonic() - start
        print(f"{seconds:.0f} s  {world.name}, {design.name}: {text}", file=sys.stderr, flush=True)
    return by_design


def page(table: Path = TABLE) -> str:
    """docs/coverage.md, from the table of shares."""
    known = json.loads(table.read_text())
    parts = [section(world, known["worlds"][world.name]) for world in WORLDS]
    return INTRODUCTION + "\n".join(parts) + "\n" + known["made"] + "\n"


def section(world: World, known: dict[str, Any]) -> str:
    """The table of one world: a row for each quantity, a column for each design."""
    simulations, columns = known["simulations"], list(known["designs"].values())
    error = 100 * (0.95 * 0.05 / simulations) ** 0.5
    quantities = dict.fromkeys(name for column in columns for name in column)
    lines = [
        f"## {world.name[0].upper()}{world.name[1:]}\n",
        f"{WORLDS[world]} {simulations} simulations of each design; one standard error at 95 % is "
        f"{error:.1f}.\n",
        "| interval of | isoFLOP | curves | grid | one length |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {' | '.join(cell(column.get(name)) for column in columns)} |"
            for name in quantities
        ),
    ]
    return "\n".join(lines) + "\n"


def cell(found: dict[str, Any] | None) -> str:
    """The coverage in per cent; with the number of tables where the interval was refused."""
    if found is None or found["covered"] is None:
        return "–"
    text = f"{100 * found['covered']:.1f}"
    text = text if LOW <= found["covered"] <= HIGH else f"**{text}**"
    return text + (f" ({found['refused']} refused)" if found["refused"] else "")


if __name__ == "__main__":
    main()
