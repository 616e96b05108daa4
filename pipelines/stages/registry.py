"""The kinds of stages: the directory of each, what it needs, and how its config is compared."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pipelines.workspace.damage import damage_in
from pipelines.workspace.store import Home, record_differences
from var_scaling.config import (
    AnyTokenizer,
    CacheKind,
    ImportedTokenizer,
    SomeTokenizer,
    TrainedTokenizer,
)
from var_scaling.datasets import Data
from var_scaling.disk import read_json
from var_scaling.experiment import ImportedModel, Trial
from var_scaling.experiment.scoring import FeatureNetwork, ReconstructionFloor, ScoredSet
from var_scaling.record import Record, difference

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


class TokenSet(Record):
    """The config of a stage that encodes one split of a data set, to tokens or, with another
    `cache`, to the features that tokens are quantized from.
    """

    tokenizer: AnyTokenizer
    data: Data
    split: Split
    cache: CacheKind = "tokens"


@dataclass(frozen=True)
class StageKind:
    """What all stages of a kind have in common."""

    name: str
    configs: tuple[type[Record], ...]
    display: Callable[[Any], str]  # config -> name, unique within the kind
    directory: Callable[[Home, str, Any], Path]  # (home, sweep name, config) -> directory
    # config -> (config that must come first, its step); step None: it must be finished
    requires: Callable[[Any], tuple[tuple[Record, int | None], ...]]
    config_file: str  # name of the file that records the config of the directory
    mismatch: Callable[[Path, Any], list[str]]  # how that file differs from the config
    module: str = "pipelines.stages.stages"  # its `run` executes the stage


def kind_of(config: Record) -> StageKind:
    """The kind of the stage that `config` describes. Raises TypeError for anything else."""
    for kind in KINDS:
        if isinstance(config, kind.configs):
            return kind
    kinds = ", ".join(known.__name__ for kind in KINDS for known in kind.configs)
    raise TypeError(f"{type(config).__name__} is not the config of a stage; allowed are {kinds}")


def how_to_import(t: ImportedTokenizer) -> str:
    return (
        f"tokenizer {t.name} must be imported, not trained, and has not been imported yet. Run "
        f"var-scaling import VQVAE.pth --as {t.name} (SHA-256 {t.sha256})"
    )


def is_damaged(path: Path) -> bool:
    """Whether this file of a finished stage has changed. `status` reports that as damage, so that
    it must not be reported as a config mismatch too.
    """
    damage = damage_in(path.parent)
    return damage is not None and path.name in damage.files


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
    """Compare only the fields that the images of this split depend on: validation images, for
    example, are never cropped.
    """
    if not path.exists():
        return []
    expected = tokens.data.for_split(tokens.split).model_dump(mode="json")
    return difference(read_json(path)["data"], expected)


def _trial_directory(home: Home, sweep: str, trial: Any) -> Path:
    return home.trial(sweep, trial.name)


def _trial_needs(trial: Trial) -> tuple[tuple[Record, int | None], ...]:
    """The tokenizer and tokens of `trial`, and the checkpoint that it starts from."""
    tokens = _token_sets(trial.tokenizer, trial.data, trial.family.cache_kind(trial.model))
    start = [(trial.start.trial, trial.start.step)] if trial.start is not None else []
    return ((trial.tokenizer, None), *((token_set, None) for token_set in tokens), *start)


@lru_cache(maxsize=64)  # the trials of a sweep share them
def _token_sets(t: SomeTokenizer, data: Data, cache: CacheKind) -> tuple[TokenSet, ...]:
    return tuple(TokenSet(tokenizer=t, data=data, split=split, cache=cache) for split in SPLITS)


def _imported_directory(home: Home, sweep: str, model: Any) -> Path:
    return home.imported(model.name)


def _floor_directory(home: Home, sweep: str, floor: ReconstructionFloor) -> Path:
    # Beside the tokenizer, because its floor does not depend on a trial or a sweep.
    return home.tokenizer(floor.tokenizer.name) / "floors" / floor.of_tokenizer


def _floor_needs(floor: ReconstructionFloor) -> tuple[tuple[Record, int | None], ...]:
    return (*_needs_tokenizer(floor), *_network_need(floor.extractor, floor.data))


def _score_directory(home: Home, sweep: str, score: ScoredSet) -> Path:
    name = f"{score.scoring.name}-{score.extractor}"
    return home.trial(sweep, score.trial.name) / "scores" / name


def _score_needs(score: ScoredSet) -> tuple[tuple[Record, int | None], ...]:
    return ((score.trial, None), *_network_need(score.extractor, score.trial.data))


def _network_need(extractor: str, data: Any) -> tuple[tuple[Record, int | None], ...]:
    # Only this network is trained here: the others have random or third-party weights.
    return ((FeatureNetwork(data=data), None),) if extractor == "classifier" else ()


def _network_directory(home: Home, sweep: str, network: FeatureNetwork) -> Path:
    # One network for each data set, which all sweeps share: distances are comparable only if they
    # are measured by the same weights.
    return home.network(network.data.name)


TOKENIZER = StageKind(
    "tokenizer", (TrainedTokenizer, ImportedTokenizer), _by_name, _tokenizer_directory,
    _needs_nothing, "tokenizer.json", record_differences,
)  # fmt: skip
TOKENS = StageKind(
    "tokens", (TokenSet,), _tokens_name, _tokens_directory, _needs_tokenizer, "manifest.json",
    _tokens_mismatch,
)  # fmt: skip
TRIAL = StageKind(
    "trial", (Trial,), _by_name, _trial_directory, _trial_needs, "trial.json", record_differences
)
IMPORTED = StageKind(
    "imported", (ImportedModel,), _by_name, _imported_directory, _needs_tokenizer, "model.json",
    record_differences,
)  # fmt: skip
_SCORING = "pipelines.evaluation.scoring"
NETWORK = StageKind(
    "network", (FeatureNetwork,), _by_name, _network_directory, _needs_nothing, "network.json",
    record_differences, _SCORING,
)  # fmt: skip
FLOOR = StageKind(
    "floor",
    (ReconstructionFloor,),
    _by_name,
    _floor_directory,
    _floor_needs,
    "floor.json",
    record_differences,
    _SCORING,
)
SCORE = StageKind(
    "score", (ScoredSet,), _by_name, _score_directory, _score_needs, "score.json",
    record_differences, _SCORING,
)  # fmt: skip
KINDS = (TOKENIZER, TOKENS, TRIAL, IMPORTED, NETWORK, FLOOR, SCORE)  # each after what it may need
