"""Fixtures of several tests: a tiny tokenizer, its tokens, and one finished run of `smoke`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # two test workers on two cores: one thread each (LOG.md)

import numpy as np
import pytest
from filelock import FileLock

from pipelines.workspace import job_log as jobs
from var_scaling.config import ImportedTokenizer, TrainedTokenizer
from var_scaling.datasets import DeadLeaves
from var_scaling.disk import read_json, write_json
from var_scaling.experiment import Trial
from var_scaling.ladder import tiny_optimiser
from var_scaling.metrics import read_metrics
from var_scaling.models.base import ModelSpec
from var_scaling.models.var.config import VarModel
from var_scaling.pyramid import Pyramid
from var_scaling.recipe import Codebook, Optimiser

pytest_plugins = ["slurm_site"]  # its fixtures
TIMES = ("time_ms", "seconds", "images_per_second", "flops_per_second")
COMMAND = [sys.executable, "-m", "pipelines.cli.main"]


def images(**changes) -> DeadLeaves:
    settings = {"name": "leaves", "side": 16, "train_images": 600, "validation_images": 100}
    return DeadLeaves(**{**settings, **changes})


def tokenizer(**changes) -> TrainedTokenizer:
    settings = {
        "name": "t",
        "data": images(),
        "pyramid": Pyramid(patch_nums=(1, 2, 4)),
        "codebook_size": 32,
        "code_channels": 4,
        "channels": 8,
        "multipliers": (1, 2, 2),
        "residual_blocks": 1,
        "norm_groups": 1,
        "codebook": Codebook(starts_at=2, decay=0.9, k_means_images=64, restart_every=3),
        "optimiser": Optimiser(learning_rate=3e-3),
        "batch_size": 8,
        "steps": 10,
    }
    return TrainedTokenizer(**{**settings, **changes})


def trial(**changes) -> Trial:
    settings = {
        "name": "d2",
        "tokenizer": tokenizer(),
        "data": images(),
        "model": VarModel(depth=2, width_per_depth=8, gamma_init=1e-1, drop_path_per_depth=0.1),
        "optimiser": tiny_optimiser(16),
        "batch_size": 8,
        "steps": 12,
        "evaluations": 2,
    }
    return Trial(**{**settings, **changes})


@pytest.fixture(autouse=True)
def _settings_of_the_test_alone(monkeypatch, tmp_path):
    """Tests do not read the settings, data or home of the user who runs them."""
    for name in ("VAR_SCALING_SETTINGS", "VAR_SCALING_DATA", "VAR_SCALING_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def one_thread():
    """One thread: the rounding of a matrix product depends on the number of threads (LOG.md)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_cache(images: int, seed: int = 0, t: TrainedTokenizer | None = None):
    """A cache of random tokens in the format of an encoder."""
    from var_scaling.tokenizer.cache import TokenCache

    t = t or tokenizer()
    generator = np.random.default_rng(seed)
    tokens = generator.integers(t.codebook_size, size=(images, t.pyramid.length)).astype(np.uint16)
    return TokenCache(tokens, np.arange(images) % 8, 1, {})


@pytest.fixture(scope="session")
def token_cache():
    return random_cache


@pytest.fixture(scope="module")
def quantizer():
    from var_scaling.tokenizer.model import MultiScaleVQVAE

    return MultiScaleVQVAE(tokenizer()).quantize.requires_grad_(False)


@pytest.fixture(scope="session")
def vgg():
    """LPIPS with random weights: its distances do not follow human judgement."""
    import torch

    from var_scaling.tokenizer.perceptual import Perceptual

    torch.manual_seed(0)
    return Perceptual().requires_grad_(False)


def var_scaling(*words: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a separate process, as a user runs it."""
    return subprocess.run(
        [*COMMAND, *words, "--home", str(home)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=240,
    )


def call_command(monkeypatch, capsys, *words: object) -> tuple[int, str, str]:
    """The command line in this process: exit code, stdout, stderr."""
    from pipelines.cli.main import main

    monkeypatch.setattr(sys, "argv", ["var-scaling", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.fixture
def command(monkeypatch, capsys):
    """The command line in this process, without MLflow: exit code, stdout, stderr on one line."""
    monkeypatch.setattr("pipelines.tracking.sync.mirror_model", lambda *words: None)

    def call(*words: object) -> tuple[int, str, str]:
        code, out, err = call_command(monkeypatch, capsys, *words)
        return code, out, " ".join(err.split())

    return call


def in_processes(program: str, home: Path, count: int) -> None:
    """Run `program`, Python code, in `count` processes with the arguments `home` and the rank."""
    tests = Path(__file__).parent
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(home), str(rank)],
            env={**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    messages = [worker.communicate(timeout=200)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * count, messages


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """A home in which `run smoke` finished without interruption.

    One test worker runs it; each worker has its own copy.
    """
    workers = tmp_path_factory.getbasetemp()
    shared = workers.parent if "PYTEST_XDIST_WORKER" in os.environ else workers
    first = shared / "smoke-first"
    with FileLock(shared / "smoke.lock"):
        if not first.exists():
            done = var_scaling("run", "smoke", home=shared / "smoke-run")
            assert done.returncode == 0, done.stdout + done.stderr
            (shared / "smoke-run").rename(first)
    home = tmp_path_factory.mktemp("smoke")
    shutil.copytree(first, home, dirs_exist_ok=True, symlinks=True)
    mirrored = home / "smoke" / "mirrored.json"  # MLflow identifies its database by inode
    known = {**read_json(mirrored), "database": (home / "mlflow.db").stat().st_ino}
    write_json(mirrored, known)
    return home


def cluster(root: Path, **options):
    """A private Slurm for the duration of a test; skipped if Slurm is not installed."""
    from slurm_box import Box

    programs = ["slurmctld", *(["slurmdbd", "mariadbd"] if options.get("accounting") else [])]
    for program in programs:
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            assert "VAR_SCALING_REQUIRE_SLURM" not in os.environ, f"there is no {program}"
            pytest.skip(f"no {program} on this machine")
    box = Box(root, **options)
    box.up()
    try:
        yield box
    finally:
        box.down()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A cluster without accounting: its sacct fails."""
    yield from cluster(tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="session")
def slurm_with_accounts(tmp_path_factory):
    yield from cluster(tmp_path_factory.mktemp("slurm"), accounting=True)


def numbers(path: Path) -> list[dict]:
    """Metrics without times."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(path)]


def submitting(folder: Path, submission: str = "s", cluster: str = "box", index=None) -> None:
    jobs.note(
        folder, "submitting", submission=submission, cluster=cluster, index=index, code="c",
        resources={},
    )  # fmt: skip


def stops_after(count: int):
    """STOP from the `count`-th look on, counted from 0; before it GO_ON."""
    from var_scaling.training.loop import Signal

    looks = iter(range(10**9))
    return lambda done: Signal.STOP if next(looks) >= count else Signal.CONTINUE


def goes_on(done: int):
    from var_scaling.training.loop import Signal

    return Signal.CONTINUE


# Released checkpoints in miniature: the released names and shapes, random weights ----------------

SMALL = ImportedTokenizer(
    name="small", sha256="0" * 64, codebook_size=16, code_channels=4, channels=32,
    pyramid=Pyramid(patch_nums=(1, 2)),
)  # fmt: skip
CLASSES = 3


def var_state(model: VarModel, t: ImportedTokenizer = SMALL) -> dict:
    from var_scaling.models.var.model import VAR
    from var_scaling.models.var.published import ReleasedVar

    state = VAR(model, t, CLASSES, seed=0).state_dict()
    return ReleasedVar().export(ModelSpec(model, t, CLASSES), state)[0]


@pytest.fixture(scope="session")
def vqvae_state() -> dict:
    from var_scaling.models.var import published
    from var_scaling.tokenizer.model import MultiScaleVQVAE

    return published.released_tokenizer_state(SMALL, MultiScaleVQVAE(SMALL, seed=1).state_dict())


@pytest.fixture
def files(tmp_path, vqvae_state) -> tuple[Path, Path]:
    """A VQVAE's file and that of a VAR over it."""
    import torch

    paths = tmp_path / "vqvae.pth", tmp_path / "var.pth"
    torch.save(vqvae_state, paths[0])
    torch.save(var_state(VarModel(depth=2, width_per_depth=8)), paths[1])
    return paths


def bring(home: Path, *paths: Path, name: str = "it", patch_nums=None):
    from pipelines.checkpoints.convert import import_released
    from pipelines.workspace.store import Home

    return import_released(Home(home), list(paths), name, patch_nums, lambda text: None)
