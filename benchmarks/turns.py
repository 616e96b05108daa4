"""Time implementations and versions of the code in turns, each in a process of its own.

A benchmark defines its cases and calls `main`. Every implementation of a case is an iterator that
does one unit of work for each `next`. "ours" is also timed in other checkouts (`--code`). All
processes compute with one thread; time is CPU time, so that other work on the machine counts less.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
OURS = "ours"


@dataclass(frozen=True)
class Case:
    """One row of the table: work that several implementations do."""

    name: str
    unit: str  # of work, such as "step"
    implementations: dict[str, Callable[[], Iterator[Any]]]
    flops: int = 0  # of a unit, by the accounting
    bytes: float = 0  # of the activations of a unit, by the accounting


def main(file: str, doc: str, cases: list[Case]) -> None:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(
        "--code", type=Path, nargs="+", default=[HERE.parent], metavar="DIR",
        help="checkouts whose code is timed; the last one is compared with the others",
    )  # fmt: skip
    parser.add_argument("--cases", nargs="+", metavar="TEXT", help="only cases with these texts")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each entry of the table")
    parser.add_argument("--serve", metavar="IMPLEMENTATION", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve(cases, options.serve)
        return
    chosen = [
        case for case in cases
        if not options.cases or any(text in case.name for text in options.cases)
    ]  # fmt: skip
    _compare(Path(file).resolve(), chosen, [code.resolve() for code in options.code], options)


# A process that works -----------------------------------------------------------------------------


def _serve(cases: list[Case], implementation: str) -> None:
    """Answer lines of JSON [case, units] with the CPU-seconds of each unit."""
    import torch

    torch.set_num_threads(1)
    if implementation == OURS:  # as the pipeline does; versions before it have no such function
        with suppress(ImportError):
            from var_scaling.process import prepare_process

            prepare_process(1)
    by_name, running = {case.name: case for case in cases}, dict[str, Iterator[Any]]()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of the code go to the terminal
    for line in sys.stdin:
        name, units = json.loads(line)
        if name not in running:
            running.clear()  # the memory of the last case
            running[name] = by_name[name].implementations[implementation]()
        seconds = []
        for _ in range(units):
            began = time.process_time()
            next(running[name])
            seconds.append(time.process_time() - began)
        print(json.dumps(seconds), file=answers, flush=True)


class _Worker:
    """A process that times one implementation of one checkout."""

    def __init__(self, file: Path, code: Path, implementation: str):
        self.implementation = implementation
        command = [sys.executable, str(file), "--serve", implementation]
        environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, cwd=code, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def time(self, case: str, units: int) -> list[float]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([case, units]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.implementation}: the process has ended, see its error")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


# The table ----------------------------------------------------------------------------------------


def _compare(file: Path, cases: list[Case], codes: list[Path], options: Any) -> None:
    peak = matmul_peak()
    print(f"{file.stem}: {processor()}, one thread, CPU time; matmul peak {peak / 1e9:.0f} GFLOP/s")
    workers, current = dict[tuple[Path, str], _Worker](), codes[-1]
    rows = []
    try:
        for case in cases:
            entries = [(code, OURS) for code in codes]
            entries += [(current, name) for name in case.implementations if name != OURS]
            for entry in entries:
                if entry not in workers:
                    workers[entry] = _Worker(file, *entry)
            seconds = _take_turns(case, {entry: workers[entry] for entry in entries}, options)
            rows += _show(case, seconds, current, peak)
    finally:
        for worker in workers.values():
            worker.close()
    append(file.stem, rows)


def _take_turns(
    case: Case, workers: dict[tuple[Path, str], _Worker], options: Any
) -> dict[tuple[Path, str], list[float]]:
    first = {entry: worker.time(case.name, 2)[-1] for entry, worker in workers.items()}  # warm-up
    seconds: dict[tuple[Path, str], list[float]] = {entry: [] for entry in workers}
    turns = 6
    for turn in range(turns):
        entries = list(workers) if turn % 2 else list(workers)[::-1]
        for entry in entries:
            units = max(1, round(options.seconds / turns / first[entry]))
            seconds[entry] += workers[entry].time(case.name, units)
    return seconds


def _show(
    case: Case, seconds: dict[tuple[Path, str], list[float]], current: Path, peak: float
) -> list[dict[str, Any]]:
    ours = median(seconds[current, OURS])
    facts = [f"{case.flops / 1e9:.3g} GFLOP"] * bool(case.flops)
    facts += [f"{case.bytes / 1e6:.3g} MB of activations"] * bool(case.bytes)
    print(f"\n{case.name}: a {case.unit}" + "".join(f", {fact}" for fact in facts), flush=True)
    rows = []
    for (code, implementation), values in seconds.items():
        typical = median(values)
        low, _, high = quantiles(values, n=4) if len(values) > 1 else (typical,) * 3
        row = {
            "case": case.name, "implementation": implementation, "commit": commit_of(code),
            "median_seconds": typical, "spread": (high - low) / 2 / typical, "units": len(values),
            "by_ours": typical / ours, "peak_share": case.flops / typical / peak,
            "flops": case.flops, "bytes": case.bytes,
        }  # fmt: skip
        share = f"{row['peak_share']:7.0%} of peak" if case.flops else ""
        print(
            f"  {row['implementation']:22} {row['commit']:12} {1e3 * typical:10.2f} ms"
            f" ± {row['spread']:3.0%} {row['by_ours']:7.2f} × ours {share}",
            flush=True,
        )
        rows.append(row)
    return rows


def append(name: str, rows: list[dict[str, Any]]) -> None:
    """Append the rows, with machine and date, to results/<name>.jsonl; a row has its commit."""
    from importlib.metadata import version

    record = {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "machine": processor(),
        "cores": os.cpu_count(), "load": os.getloadavg()[0], "torch": version("torch"),
        "rows": rows,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def matmul_peak() -> float:
    """The highest FLOP rate of a float32 matrix product with one thread, by MKL or by oneDNN."""
    import torch

    torch.set_num_threads(1)
    side, best = 1024, float("inf")
    left, right = torch.randn(side, side), torch.randn(side, side)
    product = torch.ops.mkldnn._linear_pointwise
    for _ in range(15):
        for multiply in (torch.mm, lambda a, b: product(a, b, None, "none", [], "")):
            began = time.process_time()
            multiply(left, right)
            best = min(best, time.process_time() - began)
    return 2 * side**3 / best


def commit_of(code: Path) -> str:
    """The commit of a checkout, with + if files are changed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(code), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
    return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
