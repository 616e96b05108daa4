"""The kinds of stages: where each lies, what it needs, whether its directory is another's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.workspace.damage import damage_in
from pipelines.workspace.store import Home, drift
from var_scaling.config import AnyTokenizer, CacheKind, ImportedTokenizer, TrainedTokenizer
from var_scaling.datasets import Data
from var_scaling.disk import read_json
from var_scaling.experiment import ImportedModel, Trial
from var_scaling.experiment.scoring import FeatureNetwork, ReconstructionFloor, ScoredSet
from var_scaling.record import Record, difference

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


class TokenSet(Record):
    """The tokens of one split of some images, or the features that they are made of: the config
    of a stage that encodes them.
    """

    tokenizer: AnyTokenizer
    data: Data
    split: Split
    cache: CacheKind = "tokens"


@dataclass(frozen=True)
class StageKind:
    """What stages of a kind have in common. `display` is unique within the kind."""

    name: str
    configs: tuple[type[Record], ...]
    display: Callable[[Any], str]
    directory: Callable[[Home, str, Any], Path]  # of the sweep of that name
    requires: Callable[[Any], tuple[tuple[Record, int | None], ...]]  # at a step; None: finished
    config_file: str  # records what the directory belongs to
    mismatch: Callable[[Path, Any], list[str]]  # how that file differs from the config
    module: str = "pipelines.stages.stages"  # whose `run` does it


def kind_of(config: Record) -> StageKind:
    """The kind of the stage that `config` describes. Raises TypeError for anything else."""
    for kind in KINDS:
        if isinstance(config, kind.configs):
            return kind
    raise TypeError(f"{type(config).__name__} describes no stage")


def how_to_import(t: ImportedTokenizer) -> str:
    return (
        f"tokenizer {t.name} is to be imported, not trained, and is not here yet: "
        f"var-scaling import VQVAE.pth --as {t.name} (SHA-256 {t.sha256})"
    )


def is_damaged(path: Path) -> bool:
    """Whether a finished stage's file is not what it was: then its state says so, no mismatch."""
    found = damage_in(path.parent)
    return found is not None and path.name in found.files


def _by_name(config: Any) -> str:
    return str(config.name)


def _needs_nothing(config: Any) -> tuple[tuple[Record, int | None], ...]:
    return ()


def _tokenizer_directory(home: Home, sweep: str, t: Any) -> Path:
    return home.tokenizer(t.name)


def _tokens_name(tokens: TokenSet) -> str:
    return Home.cache_name(tokens.tokenizer.name, tokens.data.name, tokens.split, tokens.cache)


def _tokens_directory(home: Home, sweep: str, tokens: TokenSet) -> Path:
    return home.tokens(tokens.tokenizer.name, tokens.data.name, tokens.split, tokens.cache)


def _needs_tokenizer(config: Any) -> tuple[tuple[Record, int | None], ...]:
    return ((config.tokenizer, None),)


def _tokens_mismatch(path: Path, tokens: TokenSet) -> list[str]:
    """Only what the images of this split depend on counts: validation images are never cropped."""
    if not path.exists():
        return []
    wanted = tokens.data.as_seen(tokens.split).model_dump(mode="json")
    return difference(read_json(path)["data"], wanted)


def _trial_directory(home: Home, sweep: str, trial: Any) -> Path:
    return home.trial(sweep, trial.name)


def _trial_needs(trial: Trial) -> tuple[tuple[Record, int | None], ...]:
    """Its tokens, and the checkpoint that it starts from."""
    tokens = [
        TokenSet(
            tokenizer=trial.tokenizer,
            data=trial.data,
            split=split,
            cache=trial.family.reads(trial.model),
        )
        for split in SPLITS
    ]
    start = [(trial.start.trial, trial.start.step)] if trial.start is not None else []
    return ((trial.tokenizer, None), *((one, None) for one in tokens), *start)


def _imported_directory(home: Home, sweep: str, model: Any) -> Path:
    return home.imported(model.name)


def _floor_directory(home: Home, sweep: str, floor: ReconstructionFloor) -> Path:
    return home.tokenizer(floor.tokenizer.name) / "floors" / floor.of_tokenizer


def _floor_needs(floor: ReconstructionFloor) -> tuple[tuple[Record, int | None], ...]:
    return (*_needs_tokenizer(floor), *_network(floor.extractor, floor.data))


def _score_directory(home: Home, sweep: str, score: ScoredSet) -> Path:
    name = f"{score.scoring.name}-{score.extractor}"
    return home.trial(sweep, score.trial.name) / "scores" / name


def _score_needs(score: ScoredSet) -> tuple[tuple[Record, int | None], ...]:
    return ((score.trial, None), *_network(score.extractor, score.trial.data))


def _network(extractor: str, data: Any) -> tuple[tuple[Record, int | None], ...]:
    return ((FeatureNetwork(data=data), None),) if extractor == "classifier" else ()


def _network_directory(home: Home, sweep: str, network: FeatureNetwork) -> Path:
    return home.network(network.data.name)


TOKENIZER = StageKind(
    "tokenizer", (TrainedTokenizer, ImportedTokenizer), _by_name, _tokenizer_directory,
    _needs_nothing, "tokenizer.json", drift,
)  # fmt: skip
TOKENS = StageKind(
    "tokens", (TokenSet,), _tokens_name, _tokens_directory, _needs_tokenizer, "manifest.json",
    _tokens_mismatch,
)  # fmt: skip
TRIAL = StageKind("trial", (Trial,), _by_name, _trial_directory, _trial_needs, "trial.json", drift)
IMPORTED = StageKind(
    "imported", (ImportedModel,), _by_name, _imported_directory, _needs_tokenizer, "model.json",
    drift,
)  # fmt: skip
_SCORING = "pipelines.evaluation.scoring"
NETWORK = StageKind(
    "network", (FeatureNetwork,), _by_name, _network_directory, _needs_nothing, "network.json",
    drift, _SCORING,
)  # fmt: skip
FLOOR = StageKind(
    "floor",
    (ReconstructionFloor,),
    _by_name,
    _floor_directory,
    _floor_needs,
    "floor.json",
    drift,
    _SCORING,
)
SCORE = StageKind(
    "score", (ScoredSet,), _by_name, _score_directory, _score_needs, "score.json", drift, _SCORING
)
KINDS = (TOKENIZER, TOKENS, TRIAL, IMPORTED, NETWORK, FLOOR, SCORE)  # in the order of need
