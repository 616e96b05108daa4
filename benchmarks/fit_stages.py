"""Time the stages of `var-scaling fit TABLE` in this process, and print them as JSON.

    PYTHONPATH=CODE python benchmarks/fit_stages.py TABLE OUT

`benchmarks/fit.py --report` runs it, with the code of this or of an earlier version. Each stage has
seconds of wall time and of CPU time; the CPU time of forked processes is included. "bootstrap" is
part of "fit", and its CPU time is summed over the processes. "memory" is the largest resident set
of one process, in MB; forked processes share most of it.
"""

import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def cpu_seconds() -> float:
    """CPU time of this process and of the processes that it has waited for."""
    return sum(os.times()[:4])


def main(table: str, out: str) -> None:
    from pipelines.report.external_table import fit_table
    from pipelines.workspace.store import Home

    # `analysis.study` is also a function, which hides the module of that name.
    tables, study, pages = (
        import_module(f"analysis.{name}") for name in ("table.table", "study", "report.pages")
    )
    stages = {"start": (time.perf_counter() - STARTED, cpu_seconds())}
    bootstrap_cpu = multiprocessing.Value("d", 0.0)

    def timed(module: Any, name: str, stage: str) -> None:
        function: Callable[..., Any] = getattr(module, name)

        @wraps(function)
        def inside(*args: Any, **options: Any) -> Any:
            began = (time.perf_counter(), cpu_seconds())
            result = function(*args, **options)
            stages[stage] = (time.perf_counter() - began[0], cpu_seconds() - began[1])
            return result

        setattr(module, name, inside)

    def add_bootstrap(*args: Any, **options: Any) -> Any:
        began = time.process_time()
        result = bootstrap(*args, **options)
        with bootstrap_cpu.get_lock():
            bootstrap_cpu.value += time.process_time() - began
        return result

    laws = study if hasattr(study, "bootstrap") else import_module("analysis.law_result")
    bootstrap, laws.bootstrap = laws.bootstrap, add_bootstrap
    timed(tables, "load_table", "read")
    timed(study, "studies", "fit")
    timed(pages, "draw_all", "figures")
    timed(pages, "write_pages", "pages")
    fit_table(table, Home(Path(out)), "squares", [], None, Path(out), lambda *_: None)
    whole = (time.perf_counter() - STARTED, cpu_seconds())
    figures = stages["figures"]
    stages["pages"] = (stages["pages"][0] - figures[0], stages["pages"][1] - figures[1])
    stages["all"] = whole
    seconds = {stage: {"wall": wall, "cpu": cpu} for stage, (wall, cpu) in stages.items()}
    memory = max(resource.getrusage(who).ru_maxrss for who in _PROCESSES) / 1024
    others = {"bootstrap": {"cpu": bootstrap_cpu.value}, "memory": {"MB": memory}}
    print(json.dumps({**seconds, **others}))


if __name__ == "__main__":
    main(*sys.argv[1:])
