"""Load a finished model with its record, weights and tokenizer."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stages.context import ProcessContext, RunContext, StopFile
from pipelines.workspace.address import finished_folder, read_generator
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home, raise_if_mismatch, record_differences, weights_of
from var_scaling.class_names import load_names
from var_scaling.disk import is_done
from var_scaling.experiment import ImportedModel, Trial

if TYPE_CHECKING:
    import torch
    from torch import nn

    from var_scaling.tokenizer.model import MultiScaleVQVAE


@dataclass(frozen=True)
class LoadedModel:
    """A model and its tokenizer, frozen, on the device, and the hashes of their weights."""

    address: str
    folder: Path
    record: Trial | ImportedModel
    model: "nn.Module"
    tokenizer: "MultiScaleVQVAE"
    weights_sha256: str
    tokenizer_sha256: str

    @property
    def device(self) -> "torch.device":
        return self.tokenizer.quantize.embedding.weight.device

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the classes, by number; None if they are not known."""
        return load_names(self.folder, self.record.classes)


def load_generator(context: RunContext, address: str, raw: bool = False) -> LoadedModel:
    """Load the model at `address` (SWEEP/TRIAL or imported/NAME).

    `raw`: use the last weights if the model's weights are an average. Raises ValueError,
    ConfigMismatchError, and WeightsError if a weights file does not have its recorded hash.
    """
    folder = finished_folder(context.home, address)
    record = read_generator(folder)
    tokenizer_folder = context.home.tokenizer(record.tokenizer.name)
    if not is_done(tokenizer_folder):
        raise ValueError(
            f"{address}: its tokenizer {record.tokenizer.name} is not in {tokenizer_folder}"
        )
    # The folder may hold another tokenizer of that name by now, whose tokens mean something else.
    path = tokenizer_folder / "tokenizer.json"
    raise_if_mismatch(path, record_differences(path, record.tokenizer))

    # Imported late: modules that only read results import this one, and they need no torch.
    from var_scaling.tokenizer.model import load_tokenizer
    from var_scaling.weights import load_weights

    device = context.device()
    weights, tokenizer_weights = weights_of(folder, raw), weights_of(tokenizer_folder)
    model = record.family.build(record.spec, seed=0)  # all weights are replaced
    load_weights(model, *weights)
    return LoadedModel(
        address,
        folder,
        record,
        model.to(device).eval().requires_grad_(False),
        load_tokenizer(record.tokenizer, *tokenizer_weights).to(device),
        weights[1],
        tokenizer_weights[1],
    )


def load_model(address: str, home: str | Path | None = None, device: str = "cpu") -> LoadedModel:
    """Load the finished model at `address` in Python: `load_model("quickstart/d6").model`.

    `home` is by default VAR_SCALING_HOME, else runs/, as for the commands. `device` is "cpu" or
    "cuda". Raises what `load_generator` raises.
    """
    folders = Home(Path(home or os.environ.get("VAR_SCALING_HOME", "runs")))
    process = ProcessContext(device=device)
    stop = StopFile(folders.root / "stop")  # required, not used for loading
    return load_generator(RunContext(folders, Settings(), stop, process), address)
