"""Simulate the coverage of every interval of a report and write docs/coverage.md.

    python benchmarks/coverage.py [--simulations 1000] [--other 50] [--cores 2]

The shares are written to docs/tables/coverage.json, and the page from them; `--page` writes the
page alone.

`--simulations` tables of runs of each design are simulated under the true law, `--other` under each
of the other laws, where the coverage is only stated, a fifth of --simulations of a Huber loss. With
the defaults this takes about 15 minutes on two idle cores.
"""

# ruff: noqa: E402 - the number of threads is set before numpy is imported

import argparse
import datetime
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[threads] = "1"  # BLAS reads them once, when numpy is imported

from analysis.coverage import (
    COMMON,
    MANY_RUNS,
    RICHER,
    TRUE,
    World,
    coverage_of_forms,
    designs,
    simulated_coverage,
)
from analysis.format import SYMBOLS
from analysis.uncertainty.coverage import Coverage

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
TITLES = {design.name: title for design, title in zip(
    designs(), ("isoFLOP", "curves", "grid", "one length", "6 curves"), strict=True
)} | {MANY_RUNS: "grid of 120"}  # fmt: skip
NAMES = {**SYMBOLS, "L(target)": "the law there", "new run": "a new run there"}
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
- 6 curves: 6 sizes, one run each, otherwise as one length.

How an interval is computed:

- L(C) has the exponent αβ / (α + β) and the floor E of the surface. Without E, the truth is the
  slope of the line closest to the true frontier. Value and interval come from the surface. With one
  length, it is the surface of the points inside runs. Whole runs are drawn, and widened by
  Student's t; of fewer than 12 runs, each is left out once (jackknife, Student's t).
- a and b are the exponents of N* and D*, C the largest budget.
- Approach 1 has no interval, nor has L(C) of curves without a surface.
- Approach 2 widens its interval by Student's t, and by the scatter of the budgets where it exceeds
  the noise of the parabolas.
- The parameters of the surface and L* are by profile: L* is the law at N* and D*. N*, D* and their
  exponents are percentiles of the bootstrap. Where the surface misses the means of cells (runs of
  equal N and D; F test, p < .2), the bootstrap draws cells, and is widened by Student's t and by
  sqrt(g / (g - p)) of g cells and p parameters.
- N* and L* of the third budget are those of its parabola.

"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--other", type=int, default=50)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "coverage.md")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--page", action="store_true", help="simulate nothing")
    parser.add_argument(
        "--design", choices=list(TITLES.values())[: len(designs())],
        help="simulate this design alone, and keep the other columns of the table",
    )  # fmt: skip
    options = parser.parse_args()
    if not options.page:
        known = json.loads(options.table.read_text()) if options.design else None
        found = simulated(options.simulations, options.other, options.cores, options.design, known)
        options.table.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    options.out.write_text(page(options.table))


def simulated(
    simulations: int, other: int, cores: int, only: str | None, known: dict[str, Any] | None
) -> dict[str, Any]:
    """The shares by world, design and quantity, and how and when they were made.

    `only`: the title of the one design that is simulated; the rest is that of the table `known`.
    """
    start = time.monotonic()
    of_huber = max(1, simulations // 5)
    counts = {world: simulations if world is TRUE else other for world in WORLDS}
    chosen = [
        index for index, design in enumerate(designs()) if only in (None, TITLES[design.name])
    ]
    tasks = [(world, index, count) for world, count in counts.items() for index in chosen]
    worlds: dict[str, Any] = {
        world.name: {"simulations": count, "designs": {}} for world, count in counts.items()
    }
    if known is not None:
        worlds = known["worlds"]
    with ProcessPoolExecutor(cores) as pool:
        of_forms = None if known else pool.submit(coverage_of_forms, simulations, of_huber)
        for (world, index, _), column in zip(tasks, pool.map(shares, tasks), strict=True):
            name = designs()[index].name
            worlds[world.name]["designs"][name] = column
            text = ", ".join(f"{quantity} {cell(one)}" for quantity, one in column.items())
            seconds = time.monotonic() - start
            print(f"{seconds:.0f} s  {world.name}, {name}: {text}", file=sys.stderr, flush=True)
        of_designs = of_forms.result() if of_forms else {}
    forms = {
        design: {
            f"{law}: {NAMES.get(each.quantity, each.quantity)}": share(each)
            for law, found in laws.items()
            for each in found
        }
        for design, laws in of_designs.items()
    }
    minutes = (time.monotonic() - start) / 60
    today = datetime.datetime.now(tz=datetime.UTC).date()
    options = f"--simulations {simulations} --other {other} --cores {cores}"
    options += f" --design '{only}'" if only else ""
    command = f"`python benchmarks/coverage.py {options}`"
    made = f"{today}, {command}: {minutes:.0f} minutes on the project's test machine."
    if known is not None:
        return known | {"made": f"{known['made']} The column “{only}”: {made}"}
    of_laws = {"simulations": simulations, "of_huber": of_huber, "designs": forms}
    return {"made": made, "worlds": worlds, "forms": of_laws}


def shares(task: tuple[World, int, int]) -> dict[str, Any]:
    """By quantity: the share that covers, and the number of refused intervals."""
    world, index, simulations = task
    found = simulated_coverage(designs()[index], world, simulations)
    return {each.quantity: share(each) for each in found}


def share(found: Coverage) -> dict[str, Any]:
    return {
        "covered": found.covered if found.simulations else None,  # without any interval: no share
        "refused": found.failed,
    }


# The page ----------------------------------------------------------------------------------------


def page(table: Path = TABLE) -> str:
    """docs/coverage.md, from the table of shares."""
    known = json.loads(table.read_text())
    worlds = known["worlds"]
    parts = [INTRODUCTION, *true_law(worlds[TRUE.name]), *forms_of(known["forms"])]
    for world in WORLDS:
        if world is not TRUE:
            columns = worlds[world.name]["designs"]
            parts += [heading(world, worlds[world.name]), rows_of(columns)]
    return "\n".join(parts) + "\n" + known["made"] + "\n"


def true_law(known: dict[str, Any]) -> list[str]:
    """The tables of the true law."""
    columns = known["designs"]
    return [
        heading(TRUE, known),
        rows_of(columns, without_E=False),
        "A law without E is never the true law here: whether its interval contains the closest "
        "line is only stated. Under itself see [laws.md](laws.md).\n",
        rows_of(columns, without_E=True),
    ]


def forms_of(known: dict[str, Any]) -> list[str]:
    """The table of each law in N and D under itself."""
    columns = known["designs"]
    text = (
        "## Laws in N and D, each under itself\n\nIntervals by profile, of the parameters, and at "
        "the largest N and D of the law and of a new run; normal errors of .005. "
        f"{known['simulations']} simulations ({error_of(known['simulations'])}), of a Huber loss "
        f"{known['of_huber']} ({error_of(known['of_huber'])}); for more than 100 runs a Huber loss "
        "has percentiles of the bootstrap.\n"
    )
    return [text, rows_of(columns)]


def heading(world: World, known: dict[str, Any]) -> str:
    simulations = known["simulations"]
    return (
        f"## {world.name[0].upper()}{world.name[1:]}\n\n{WORLDS[world]} {simulations} simulations "
        f"of each design; {error_of(simulations)}.\n"
    )


def error_of(simulations: int) -> str:
    return f"one standard error at 95 % is {100 * (0.95 * 0.05 / simulations) ** 0.5:.1f}"


def rows_of(columns: dict[str, dict[str, Any]], without_E: bool | None = None) -> str:
    """A row for each quantity; a column for each design. `without_E`: of the laws without E alone,
    or of the others alone.
    """
    quantities = dict.fromkeys(name for column in columns.values() for name in column)
    lines = [
        f"| interval of | {' | '.join(TITLES[name] for name in columns)} |",
        "|---" * (1 + len(columns)) + "|",
        *(
            f"| {name} | {' | '.join(cell(column.get(name)) for column in columns.values())} |"
            for name in quantities
            if without_E in (None, "without E" in name)
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
