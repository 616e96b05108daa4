"""Every command of README and docs, run page by page on a sweep that takes seconds.

The pages use the sweep `quickstart`; here that is a sweep of six tiny trials in a file of that
name. Commands that need a cluster, released checkpoints or hours are listed with their reason.
"""

import os
import re
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import var_scaling
from PIL import Image
from test_language import DOCS, ROOT, commands_of

QUICKSTART = """
from conftest import trial
from var_scaling.experiment import Sweep
from var_scaling.ladder import tiny_optimiser
from var_scaling.models.var.config import tiny_var

def grid(name, seed):
    trials = tuple(
        trial(name=f"d{d}", model=tiny_var(d), optimiser=tiny_optimiser(8 * d), seed=seed, steps=40)
        for d in range(1, 7)
    )
    return Sweep(name=name, question="?", trials=trials)

sweep = grid("quickstart", 0)
"""
AGAIN = 'from quickstart import grid\n\nsweep = grid("quickstart_again", 1)\n'
# The first page of these in which a command stands runs it; the order is that of a new user.
PAGES = (
    "quickstart.md", "README.md", "laws.md", "images.md", "python.md", "paper.md",
    "another_machine.md", "own_images.md",
)  # fmt: skip
# Commands that are not run here, and why: (pattern, reason).
NOT_RUN = (
    (r"--on h100|^(status|logs|mirror|ui|forecast|score) imagenet256", "a cluster"),
    (
        r"^(import|evaluate|sample|fit|export) .*\b(imported|VQVAE|vae_ch160\w*|mine)\b",
        "released files",
    ),
    (r"families_rates/", "hours"),
    (r"--encode-precision", "test_encode_precision.py"),
    (r"^ui ", "a server that runs until Ctrl-C: test_tracking.py"),
    (r"^status .*--watch", "a screen: test_options.py"),
    (r"deeper\.py", "hours: the same command as ./my_sweep.py"),
    (r"^coverage ", "minutes: test_fit_commands.py"),
)


def reason_not_to_run(words: str) -> str | None:
    return next((why for pattern, why in NOT_RUN if re.search(pattern, words)), None)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A directory with the files that the pages take as given."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "quickstart.py").write_text(QUICKSTART)
    (folder / "quickstart_again.py").write_text(AGAIN)
    (folder / "my_sweep.py").write_text(AGAIN.replace("_again", "_mine").replace("1)", "2)"))
    half_rate = python_block("quickstart.md").replace("from sweeps.quickstart", "from quickstart")
    (folder / "half_rate.py").write_text(half_rate)
    sizes = np.geomspace(1e6, 1e9, 8)
    loss = 1.7 + 400 / sizes**0.34
    table = pd.DataFrame({"params_total": sizes, "train_flops": 120 * sizes**2, "val_loss": loss})
    table.to_csv(folder / "my_runs.csv", index=False)
    names = {"params_total": "Model Size", "train_flops": "Training FLOP", "val_loss": "loss"}
    table.rename(columns=names).to_csv(folder / "runs.csv", index=False)
    generator = np.random.default_rng(0)
    for number in range(300):
        split = "train" if number < 240 else "val"
        path = folder / "pets" / split / ("cat", "dog")[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return folder


def run(line: str, desk: Path) -> None:
    # Sweeps of the desk are given by their file; results of them are addressed by name.
    words = []
    for word in shlex.split(line, comments=True)[1:]:
        is_sweep = word in ("quickstart", "quickstart_again") and words[-1:] != ["--against"]
        words.append(f"./{word}.py" if is_sweep else word)
    home = desk / "runs"
    if "--home" in words:
        home = desk / "moved"
        at = words.index("--home")
        del words[at : at + 2]
    path = os.pathsep.join(map(str, (desk, ROOT / "tests", ROOT)))
    done = var_scaling(*words, home=home, VAR_SCALING_DATA=str(desk), PYTHONPATH=path)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def python_block(page: str) -> str:
    """The code of the only Python block of a page."""
    text = (ROOT / "docs" / page).read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return code


def own_sweep() -> str:
    """The sweep of own_images.md, with fewer steps."""
    code = python_block("own_images.md")
    short = code.replace("steps=2_400", "steps=310").replace("steps=600", "steps=6")
    assert short.count("steps=310") == short.count("steps=6") == 1
    return short


@pytest.mark.thorough
@pytest.mark.timeout(1500)
def test_the_commands_of_readme_and_docs_succeed(desk, monkeypatch):
    monkeypatch.chdir(desk)
    (desk / "pets.py").write_text(own_sweep())
    pets, pets2 = (f'name="{name}",\n    question' for name in ("pets", "pets2"))
    (desk / "pets2.py").write_text(own_sweep().replace(pets, pets2))
    done: set[str] = set()
    run("var-scaling run quickstart_again", desk)
    for name in PAGES:
        if name == "another_machine.md":
            shutil.copytree(desk / "runs", desk / "moved", symlinks=True)
        if name == "own_images.md":
            run("var-scaling run ./pets2.py", desk)
        for line in commands_of(ROOT / name if name == "README.md" else ROOT / "docs" / name):
            words = shlex.join(shlex.split(line, comments=True)[1:])
            if words not in done and reason_not_to_run(words) is None:
                start = time.monotonic()
                run(line, desk)
                print(f"{time.monotonic() - start:6.1f} s  {words}")
                done.add(words)
    every = {
        shlex.join(shlex.split(line, comments=True)[1:])
        for path in DOCS
        for line in commands_of(path)
    }
    assert {words for words in every if reason_not_to_run(words) is None} == done
