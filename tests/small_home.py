"""A home with a model that is marked as finished but untrained; built in about a second."""

from pathlib import Path

import torch
from conftest import tokenizer, trial

from pipelines.stages.context import RunContext, StopFile
from pipelines.workspace.damage import mark_done
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home
from var_scaling.disk import file_sha256
from var_scaling.experiment import Trial
from var_scaling.models.var.model import VAR
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.weights import save_weights

ADDRESS = "grid/d2"


def small_home(root: Path, expected: Trial | None = None) -> Home:
    """`root` with tokenizers/t and grid/d2."""
    home = Home(root)
    expected = expected or trial(tokenizer=tokenizer())
    t = expected.tokenizer
    _finish(home.tokenizer(t.name), "tokenizer.json", t, MultiScaleVQVAE(t, seed=0))
    model = VAR(expected.model, t, expected.classes, seed=0)
    _finish(home.trial("grid", expected.name), "trial.json", expected, model)
    return home


def context_in(home: Home, settings: Settings | None = None) -> RunContext:
    return RunContext(home, settings or Settings(), StopFile(home.root / "stop"))


def _finish(folder: Path, file: str, record, module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():  # at initialisation gammas, head and codes are near zero
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    folder.mkdir(parents=True)
    (folder / file).write_text(record.model_dump_json())
    save_weights(module, folder / "weights.safetensors")
    sha256 = file_sha256(folder / "weights.safetensors")
    mark_done(folder, {"status": "done", "weights_sha256": sha256}, (file, "weights.safetensors"))
