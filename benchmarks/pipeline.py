"""Time the commands and the driver on a sweep of many finished trials.

    python benchmarks/pipeline.py [--trials 100 300 1000] [--code DIR DIR] [--only status plan ...]

For each number of trials, a home of finished trials is written with the pipeline's own functions:
records, 200 training and 6 validation lines per trial, provenance, weights (random bytes of the
true length) and done markers with their hashes. The losses follow a law with noise. Then each item
is measured in a process of its own, from the start of the interpreter on:

status, plan, rows: `var-scaling status`, `var-scaling plan`, and the rows of the results table.
mirror: the first copy to MLflow, with `var-scaling mirror`. mirror-all: the same with all points.
follow: `var-scaling mirror --follow` with nothing new, CPU-seconds per minute.
fit: `var-scaling fit`: laws, figures, report and the copy to MLflow.
again: `var-scaling run` with nothing to do.
driver: the loop of a driver while two of the trials train: views, terminal and MLflow,
    CPU-seconds per minute. The two trials write a line four times a second.

To compare with an earlier version, give two checkouts: `--code ../before .`
One JSON line for each run is appended to benchmarks/results/pipeline.jsonl.
"""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from turns import append, commit_of

HERE = Path(__file__).resolve()
ITEMS = (
    "status", "plan", "rows", "mirror", "mirror-all", "follow", "fit", "again", "driver",
)  # fmt: skip
DEFAULT = tuple(item for item in ITEMS if item != "mirror-all")
LINES = 200  # training lines of a trial
RUNNING = 2  # trials that train while `driver` is measured
FIRST_SECONDS, DRIVER_SECONDS, FOLLOW_LOOKS = 12.0, 20.0, 6
SWEEP = '''"""{trials} trials over depth, length and seed."""

from itertools import islice, product

from var_scaling.datasets import DeadLeaves
from var_scaling.experiment import Sweep, Trial
from var_scaling.ladder import tiny_optimiser, tiny_tokenizer
from var_scaling.models.var.config import tiny_var

images = DeadLeaves(name="leaves", side=16, train_images=80_000, validation_images=4_096)
tokenizer = tiny_tokenizer("tiny", images, patch_nums=(1, 2, 3, 4), codebook_size=128, steps=900)
trials = tuple(
    Trial(
        name=f"d{{depth}}-{{steps}}-s{{seed}}", tokenizer=tokenizer, data=images,
        model=tiny_var(depth), optimiser=tiny_optimiser(8 * depth), batch_size=32, steps=steps,
        seed=seed,
    )
    for seed, steps, depth in islice(
        product(range(10**6), (400, 800, 1600, 3200), range(1, 6)), {trials}
    )
)
sweep = Sweep(name="grid{trials}", question="How fast are many trials?", trials=trials)
'''


class Cost(NamedTuple):
    """What an item took."""

    seconds: float  # wall time; of `follow` and `driver`: CPU-seconds per minute
    cpu: float | None = None  # CPU-seconds
    peak_mb: float | None = None


# A home of finished trials ------------------------------------------------------------------------


def build_home(root: Path, count: int) -> None:
    """Write `root` with a sweep of `count` finished trials, its tokenizer and its tokens."""
    import numpy as np

    from pipelines.stages.graph import sweep_stages
    from pipelines.workspace.provenance import record_attempt
    from pipelines.workspace.store import Home
    from pipelines.workspace.sweeps import find_sweep

    root.mkdir(parents=True)
    file = root / f"grid{count}.py"
    file.write_text(SWEEP.format(trials=count))
    home, noise = Home(root), np.random.default_rng(0)
    stages = sweep_stages(home, find_sweep(str(file)))
    for stage in stages:
        folder = stage.directory
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        write = {"tokenizer": _write_tokenizer, "tokens": _write_tokens, "trial": _write_trial}
        write[stage.kind.name](stage, noise)
        record_attempt(folder, threads=1)
    for stage in stages:
        _mark_done(stage)


def _write_tokenizer(stage: Any, noise: Any) -> None:
    folder, t = stage.directory, stage.config
    (folder / "tokenizer.json").write_text(t.model_dump_json(indent=1) + "\n")
    (folder / "weights.safetensors").write_bytes(noise.bytes(2**20 + 1))
    line = {
        "psnr_db": 21.0, "mse": 0.03, "ssim": 0.7, "images_scored": 4096, "codes_used_all": 0.9,
        "codes_dead": 12, "perplexity_all": 60.0, "used_per_scale": [0.9] * 4,
        "perplexity_per_scale": [30.0] * 4, "images_seen": 28800, "train_flops": 10**12,
        "seconds": 60.0, "images_per_second": 500.0,
    }  # fmt: skip
    _write_lines(folder, [{"kind": "validation", "step": t.steps, "time_ms": 1, **line}])


def _write_tokens(stage: Any, noise: Any) -> None:
    folder, tokens = stage.directory, stage.config
    images = tokens.data.train_images if tokens.split == "train" else 4_096
    manifest = {
        "format": 1, "tokenizer": tokens.tokenizer.name, "split": tokens.split, "images": images,
        "data": tokens.data.for_split(tokens.split).model_dump(mode="json"), "shards_crc32": [0],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for name in ("tokens.npy", "labels.npy"):
        (folder / name).write_bytes(noise.bytes(2**20 + 1))


def _write_trial(stage: Any, noise: Any) -> None:
    from var_scaling.experiment.ledger import trial_ledger

    folder, trial, ledger = stage.directory, stage.config, trial_ledger(stage.config)
    (folder / "trial.json").write_text(trial.model_dump_json(indent=1) + "\n")
    (folder / "weights.safetensors").write_bytes(noise.bytes(4 * ledger["params_total"]))
    for file in ("attempt.json", "heartbeat.json"):
        (folder / file).write_text(json.dumps({"number": 1, "step": trial.steps, "time": 0.0}))
    _write_lines(folder, list(_lines(trial, ledger, float(noise.normal(0, 0.003)), noise)))


def _lines(trial: Any, ledger: dict[str, int], error: float, noise: Any) -> Iterator[dict]:
    """The lines of a training whose loss is E + (N₀ / N)^0.3 + (D₀ / D)^0.3, times e^error."""
    logged = {round(trial.steps * k / LINES) for k in range(1, LINES + 1)}
    for step in sorted(logged | set(trial.evaluation_steps)):
        done = step / trial.steps
        loss = 1.0 + (3e3 / ledger["params_blocks"]) ** 0.3
        loss = (loss + (3e4 / (ledger["tokens_seen"] * done)) ** 0.3) * 2.718281828**error
        progress = {
            "images_seen": step * trial.batch_size, "tokens_seen": ledger["tokens_seen"] * done,
            "train_flops": int(ledger["train_flops"] * done), "seconds": 0.01 * step,
            "images_per_second": 3200.0 + float(noise.normal(0, 20)), "flops_per_second": 6e9,
        }  # fmt: skip
        time_ms = 1_795_836_235_634 + 10 * step
        if step in logged:
            stats = {
                "loss": loss + float(noise.normal(0, 0.05)), "grad_norm": 0.5, "learning_rate": 1e-3
            }  # fmt: skip
            yield {"kind": "train", "step": step, "time_ms": time_ms, **stats, **progress}
        if step in trial.evaluation_steps:
            yield {"kind": "validation", "step": step, "time_ms": time_ms + 5, **_scores(loss),
                   "images_scored": 4096, "evaluation_flops": 10**9, **progress}  # fmt: skip


def _scores(loss: float) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for suffix, value in (("", loss), ("_no_label", loss + 0.05)):
        scores |= {
            f"loss{suffix}": value, f"loss{suffix}_last": value, f"loss{suffix}_stderr": 0.003,
            f"loss{suffix}_parts": [value] * 4, f"error{suffix}": value / 6,
            f"error{suffix}_last": value / 6, f"error{suffix}_stderr": 0.002,
            f"error{suffix}_parts": [value / 6] * 4,
        }  # fmt: skip
    return scores


def _write_lines(folder: Path, lines: list[dict[str, Any]]) -> None:
    # Not with MetricsLog, which waits for the disk after each line.
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def _mark_done(stage: Any) -> None:
    from pipelines.workspace.damage import mark_done
    from var_scaling.disk import file_sha256

    if stage.kind.name == "tokens":
        mark_done(stage.directory, {"status": "done"}, ("manifest.json", "tokens.npy"))
        return
    files = ("weights.safetensors", stage.kind.config_file, "metrics.jsonl")
    sha256 = file_sha256(stage.directory / files[0])
    mark_done(stage.directory, {"status": "done", "weights_sha256": sha256, "seconds": 9.0}, files)


# What runs in the measured processes --------------------------------------------------------------


def count_rows(home: Path, sweep: str) -> None:
    from pipelines.results.table import rows_of
    from pipelines.workspace.store import Home
    from pipelines.workspace.sweeps import find_sweep

    print(len(rows_of(Home(home), find_sweep(sweep))))


def follow(home: Path, sweep: str) -> None:
    """Print the CPU-seconds per minute of `mirror --follow`, which never ends by itself here."""
    from pipelines.tracking import sync
    from pipelines.workspace.settings import load_settings
    from pipelines.workspace.store import Home
    from pipelines.workspace.sweeps import find_sweep

    per_minute, sync._FOLLOW_EVERY = 60 / sync._FOLLOW_EVERY, 0.1
    at: list[float] = []

    def print_line(text: str) -> None:
        assert "all mirrored" in text, text
        at.append(time.process_time())
        if len(at) > FOLLOW_LOOKS:
            print((at[-1] - at[0]) / FOLLOW_LOOKS * per_minute)
            sys.exit()

    sync.mirror(Home(home), find_sweep(sweep), load_settings(), True, print_line)


def drive(home: Path, sweep: str) -> None:
    """Print the CPU-seconds per minute of a driver's loop."""
    from pipelines.cli.terminal import console as screen
    from pipelines.execution.status import SweepState
    from pipelines.stages.graph import sweep_stages
    from pipelines.tracking.sync import mirroring
    from pipelines.workspace.settings import load_settings
    from pipelines.workspace.store import Home
    from pipelines.workspace.sweeps import find_sweep

    workspace, chosen = Home(home), find_sweep(sweep)
    state = SweepState(sweep_stages(workspace, chosen))
    began, cpu, measured = time.monotonic(), 0.0, 0.0
    with (
        open(os.devnull, "w") as terminal,
        mirroring(workspace, chosen, load_settings(), print),
        screen.progress(
            screen.LiteralConsole(file=terminal, force_terminal=True, width=120, height=50)
        ) as observe,
    ):
        # The first seconds, in which each finished trial is looked at once, are not counted.
        while (now := time.monotonic() - began) < FIRST_SECONDS + DRIVER_SECONDS:
            if now > FIRST_SECONDS and not measured:
                cpu, measured = time.process_time(), now
            time.sleep(0.5)  # as long as the driver waits for a stage to end
            observe(state.poll())
        used = (time.process_time() - cpu) / (time.monotonic() - began - measured)
    print(60 * used)


# Measuring ----------------------------------------------------------------------------------------


def measure(command: list[str], home: Path, code: Path, **environment: str) -> tuple[Cost, str]:
    """Run `command` with the code in `code`: its cost with that of its children, and its output."""
    variables = {**os.environ, "PYTHONPATH": str(code), "COLUMNS": "120", **environment}
    with tempfile.TemporaryFile() as out:
        began = time.perf_counter()
        # In the home, because Python imports packages from the working directory first.
        process = subprocess.Popen(command, cwd=home, env=variables, stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        out.seek(0)
        text = out.read().decode()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} in {code}:\n{text}")
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024), text


def measure_item(item: str, home: Path, count: int, code: Path) -> Cost:
    sweep = str(home / f"grid{count}.py")
    cli, this = [sys.executable, "-m", "pipelines.cli.main"], [sys.executable, str(HERE), "--inner"]
    at = ["--home", str(home)]
    if item in ("status", "plan", "fit"):
        return measure([*cli, item, sweep, *at], home, code)[0]
    if item == "again":
        return measure([*cli, "run", sweep, *at], home, code)[0]
    if item == "rows":
        return measure([*this, "rows", str(home), sweep], home, code)[0]
    if item in ("mirror", "mirror-all"):
        _forget_mlflow(home)
        (home / "all.toml").write_text('[tracking]\npoints = "all"\n')
        settings = {"VAR_SCALING_SETTINGS": str(home / "all.toml")}
        if item == "mirror" or not (code / "pipelines/tracking/curves.py").exists():
            settings = {}  # earlier versions always copied all points
        return measure([*cli, "mirror", sweep, *at], home, code, **settings)[0]
    with _two_training(home, count, write=item == "driver"):
        cost, text = measure([*this, item, str(home), sweep], home, code)
    return Cost(float(text.split()[-1]), None, cost.peak_mb)


def _forget_mlflow(home: Path) -> None:
    (home / "mlflow.db").unlink(missing_ok=True)
    shutil.rmtree(home / "mlartifacts", ignore_errors=True)


@contextmanager
def _two_training(home: Path, count: int, write: bool) -> Iterator[None]:
    """During the block, the last trials have no done marker and are locked; with `write`, lines are
    appended to their logs four times a second.
    """
    folders = sorted((home / f"grid{count}").glob("*/trial.json"))[-RUNNING:]
    trials = [path.parent for path in folders]
    logs = {trial / "metrics.jsonl": (trial / "metrics.jsonl").read_bytes() for trial in trials}
    ended = threading.Event()

    def write_lines() -> None:
        for number in range(10**6):
            for path, text in logs.items():
                line = json.loads(text.splitlines()[0])
                line["step"] = 10_000 + number
                with open(path, "a") as file:
                    file.write(json.dumps(line) + "\n")
            if ended.wait(0.25):
                return

    writer = threading.Thread(target=write_lines)
    with ExitStack() as locks:
        for trial in trials:
            (trial / "done.json").rename(trial / "done.kept")
            fcntl.flock(locks.enter_context(open(trial / "lock", "a+")), fcntl.LOCK_EX)
        if write:
            writer.start()
        yield
        ended.set()
        if write:
            writer.join()
    for path, text in logs.items():
        path.write_bytes(text)
        (path.parent / "done.kept").rename(path.parent / "done.json")


def show(trials: int, costs: dict[str, dict[str, Cost]]) -> None:
    """The costs by item and commit."""
    print(f"\n{trials} trials")
    commits = list(next(iter(costs.values())))
    print(f"{'':12}" + "".join(f"{commit:>34}" for commit in commits))
    print(f"{'':12}" + f"{'wall':>14}{'CPU':>10}{'peak':>10}" * len(commits))
    for item, by_commit in costs.items():
        cells = ""
        for cost in by_commit.values():
            rate = item in ("follow", "driver")
            cpu = "" if cost.cpu is None else f"{cost.cpu:.2f} s"
            unit = "s/min CPU" if rate else "s"
            cells += f"{f'{cost.seconds:.2f} {unit}':>14}{cpu:>10}{f'{cost.peak_mb:.0f} MB':>10}"
        print(f"{item:12}{cells}", flush=True)


def compare(trials: int, items: list[str], codes: list[Path], keep: Path | None) -> None:
    """Measure `items` with each of `codes`, print them and append them to the results."""
    with tempfile.TemporaryDirectory(dir=keep) as folder:
        home, costs = Path(folder) / "home", dict[str, dict[str, Cost]]()
        build = [sys.executable, str(HERE), "--inner", "build", str(home), str(trials)]
        measure(build, Path(folder), HERE.parents[1])
        for code in codes:
            _forget_mlflow(home)
            for item in items:
                cost = measure_item(item, home, trials, code)
                costs.setdefault(item, {})[commit_of(code)] = cost
                print(f"{trials} trials, {commit_of(code)}, {item}: {cost}", flush=True)
        show(trials, costs)
    rows = [
        {"trials": trials, "commit": commit, "item": item, **cost._asdict()}
        for item, by_commit in costs.items() for commit, cost in by_commit.items()
    ]  # fmt: skip
    append("pipeline", rows)


def main() -> None:
    if sys.argv[1:2] == ["--inner"]:
        inner: dict[str, Callable[..., None]] = {
            "rows": count_rows, "follow": follow, "driver": drive,
            "build": lambda root, count: build_home(root, int(count)),
        }  # fmt: skip
        inner[sys.argv[2]](Path(sys.argv[3]), sys.argv[4])
        return
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[100])
    parser.add_argument("--only", nargs="+", choices=ITEMS, default=list(DEFAULT))
    parser.add_argument(
        "--code", type=Path, nargs="+", default=[HERE.parents[1]],
        help="checkouts to measure, in this order. Default: this one",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where to write the homes; default: TMPDIR")
    options = parser.parse_args()
    for trials in options.trials:
        codes = [path.resolve() for path in options.code]
        compare(trials, options.only, codes, options.folder)


if __name__ == "__main__":
    main()
