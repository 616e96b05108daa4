"""Where things lie and how much of this machine to use: var-scaling.toml and the environment."""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from var_scaling.record import explain

FILE = "var-scaling.toml"


class SettingsError(ValueError):
    """var-scaling.toml cannot be used; the message names file, key and what is allowed."""


class Local(BaseModel):
    """`--on local`: this machine.

    More threads a stage gain little at tiny sizes (1.3 times from 2) and lose much where cores are
    shared: two such stages on two busy cores ran 70 times slower than with a thread each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: Annotated[int, Field(ge=1)] = os.cpu_count() or 1
    threads_per_stage: Annotated[int, Field(ge=1)] = 1
    save_every_seconds: Annotated[float, Field(gt=0)] = 20.0
    device: Literal["cpu", "cuda"] = "cpu"


class Weights(BaseModel):
    """Files of other people's weights that some losses need; never downloaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lpips: tuple[Path, ...] = ()  # VGG-16 and its calibration: one file, or one of each


class Settings(BaseModel):
    """What var-scaling.toml may say. Nothing here can change a trial's numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: dict[str, Path] = {}
    local: Local = Local()
    weights: Weights = Weights()

    def data_root(self, name: str) -> Path | None:
        """The folder of data `name`: [data] of the file, else that name under VAR_SCALING_DATA."""
        if name in self.data:
            return self.data[name].expanduser()
        under = os.environ.get("VAR_SCALING_DATA")
        if under and (Path(under).expanduser() / name).exists():
            return Path(under).expanduser().absolute() / name
        return None


def load_settings(path: Path | None = None) -> Settings:
    """The settings in `path`, VAR_SCALING_SETTINGS or ./var-scaling.toml; defaults where none is.

    Raises SettingsError. Relative data paths count from the file.
    """
    named = path or (
        Path(os.environ["VAR_SCALING_SETTINGS"]) if "VAR_SCALING_SETTINGS" in os.environ else None
    )
    file = named or Path(FILE)
    if not file.exists():
        if named:
            raise SettingsError(f"{file}: no such settings file")
        return Settings()
    try:
        settings = Settings.model_validate(tomllib.loads(file.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{file}: not TOML: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"{file}: {explain(error, Settings)}") from error
    base = file.absolute().parent
    paths = {name: base / root.expanduser() for name, root in settings.data.items()}
    lpips = tuple(base / file.expanduser() for file in settings.weights.lpips)
    return settings.model_copy(update={"data": paths, "weights": Weights(lpips=lpips)})
