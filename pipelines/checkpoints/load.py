"""A finished model out of its folder: record, weights and tokenizer, ready to be used."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stages.context import ProcessContext, RunContext, StopFile
from pipelines.workspace.address import finished, read_generator
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home, drift, refuse, weights_of
from var_scaling.class_names import names_of
from var_scaling.disk import is_done
from var_scaling.experiment import ImportedModel, Trial

if TYPE_CHECKING:
    import torch
    from torch import nn

    from var_scaling.tokenizer.model import MultiScaleVQVAE


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer on the place's device, frozen, and the hashes of their weights."""

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
        """Of the classes, by number; None where they are not known."""
        return names_of(self.folder, self.record.classes)


def load_generator(context: RunContext, address: str, raw: bool = False) -> Loaded:
    """The model at `address` (SWEEP/TRIAL or imported/NAME), `raw`: with the last weights where its
    own are an average. Raises ValueError, Drift, and
    WeightsError if a file of weights is not the one that was recorded.
    """
    folder = finished(context.home, address)
    record = read_generator(folder)
    home = context.home.tokenizer(record.tokenizer.name)
    if not is_done(home):
        raise ValueError(f"{address}: its tokenizer {record.tokenizer.name} is not in {home}")
    path = home / "tokenizer.json"
    refuse(path, drift(path, record.tokenizer))

    from var_scaling.tokenizer.model import load_tokenizer
    from var_scaling.weights import load_weights

    device = context.device()
    weights, tokenizer_weights = weights_of(folder, raw), weights_of(home)
    model = record.family.build(record.spec, seed=0)
    load_weights(model, *weights)
    return Loaded(
        address,
        folder,
        record,
        model.to(device).eval().requires_grad_(False),
        load_tokenizer(record.tokenizer, *tokenizer_weights).to(device),
        weights[1],
        tokenizer_weights[1],
    )


def load_model(address: str, home: str | Path = "runs", device: str = "cpu") -> Loaded:
    """The finished model at `address` for use in Python: `load_model("quickstart/d6").model`.

    `device` is "cpu" or "cuda". Raises what `load_generator` raises.
    """
    at = Home(Path(home))
    process = ProcessContext(device=device)
    return load_generator(RunContext(at, Settings(), StopFile(at.root / "stop"), process), address)
