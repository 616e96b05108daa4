"""A finished model out of its folder: record, weights and tokenizer, ready to be used."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.address import finished, read_generator
from pipelines.place import Place
from pipelines.store import drift, refuse
from var_scaling.class_names import names_of
from var_scaling.config import ImportedModel, Trial
from var_scaling.disk import DONE, is_done, read_json

if TYPE_CHECKING:
    from var_scaling.models.var import VAR
    from var_scaling.tokenizer.model import MultiScaleVQVAE


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer on the place's device, frozen, and the hashes of their weights."""

    address: str
    folder: Path
    record: Trial | ImportedModel
    model: "VAR"
    tokenizer: "MultiScaleVQVAE"
    weights_sha256: str
    tokenizer_sha256: str

    @property
    def names(self) -> tuple[str, ...] | None:
        """Of the classes, by number; None where they are not known."""
        return names_of(self.folder, self.record.classes)


def load_generator(place: Place, address: str) -> Loaded:
    """The model at `address` (SWEEP/TRIAL or imported/NAME). Raises ValueError, Drift.

    Both files of weights are read whole for their hashes first: what is made with them is recorded
    as theirs.
    """
    folder = finished(place.home, address)
    record = read_generator(folder)
    home = place.home.tokenizer(record.tokenizer.name)
    if not is_done(home):
        raise ValueError(f"{address}: its tokenizer {record.tokenizer.name} is not in {home}")
    path = home / "tokenizer.json"
    refuse(path, drift(path, record.tokenizer))

    from var_scaling.models.var import VAR
    from var_scaling.tokenizer.model import load_tokenizer
    from var_scaling.weights import load_weights

    hashes = [_checked(weights) for weights in (folder, home)]
    device = place.device()
    model = VAR(record.model, record.tokenizer, record.classes, seed=0)
    load_weights(model, folder / "weights.safetensors")
    return Loaded(
        address,
        folder,
        record,
        model.to(device).eval().requires_grad_(False),
        load_tokenizer(record.tokenizer, home / "weights.safetensors").to(device),
        *hashes,
    )


def _checked(folder: Path) -> str:
    """The SHA-256 of the weights in `folder`. Raises WeightsError if it is not the one noted."""
    from var_scaling.weights import WeightsError, file_sha256

    path = folder / "weights.safetensors"
    noted, found = str(read_json(folder / DONE)["weights_sha256"]), file_sha256(path)
    if found != noted:
        raise WeightsError(
            f"{path} is not the file that was trained or imported here: {DONE} notes SHA-256 "
            f"{noted[:12]}…, it has {found[:12]}…. Bring that file back, or make the folder anew"
        )
    return found
