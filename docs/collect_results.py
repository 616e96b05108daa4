"""Take the rows of finished sweeps into docs/tables: `python docs/collect_results.py HOME`.

The home must have `quickstart`, `quickstart_again` and the sweeps `seed_2`, `seed_3` and `seed_4`,
which are `grid(name, seed)` of `sweeps/quickstart.py`; `tokenizer_quality` is optional. Of
`quickstart`, 256 images of each class of all six trials (`var-scaling sample quickstart/d6 --count
256`), of d6 also those with guidance 0, 0.5, 3 and 6 (`--guidance 3 --name g3`), and the tokenizer
must have been scored with `var-scaling fidelity`. Run `make docs` afterwards.

    python docs/collect_results.py --comparison HOME SWEEP

takes the scored samples of a finished sweep that compares families, and its tokenizers;
`--trials HOME SWEEP` the last evaluation of each trial.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

TABLES = Path(__file__).parent / "tables"
SWEEPS = ("quickstart", "quickstart_again", "seed_2", "seed_3", "seed_4")
# Of the machine or the attempt, and what no law uses.
_LEFT_OUT = {
    "seconds", "images_per_second", "attempts", "lost_seconds", "lost_flops", "damage",
    "val_loss_parts", "val_error_parts", "evaluation_flops", "encoding_flops", "decoding_flops",
}  # fmt: skip


def finals(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.step == rows.steps]


def validation_of(home: Path, tokenizer: str) -> dict[str, Any]:
    """The scores of the held-out images at the end of the tokenizer's training."""
    lines = (home / "tokenizers" / tokenizer / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    found: dict[str, Any] = [one for one in entries if one.get("kind") == "validation"][-1]
    return found


def psnr_of(home: Path, tokenizer: str) -> float:
    """PSNR of the held-out images at the end of the tokenizer's training, in dB."""
    return float(validation_of(home, tokenizer)["psnr_db"])


def collect(home: Path) -> None:
    """Every evaluation of `quickstart`, the last ones of the other sweeps, and the tokenizers."""
    read = {name: pd.read_parquet(home / name / "results.parquet") for name in SWEEPS}
    parts = [read["quickstart"], *(finals(read[name]) for name in SWEEPS[1:])]
    write(pd.concat(parts), "quickstart")
    tokenizers = [(seed, psnr_of(home, f"tiny-{seed}")) for seed in range(len(SWEEPS))]
    table = pd.DataFrame(tokenizers, columns=["seed", "psnr_db"])
    table.to_csv(TABLES / "quickstart_tokenizers.csv", index=False)
    if (home / "tokenizer_quality/results.parquet").exists():
        rows = finals(pd.read_parquet(home / "tokenizer_quality/results.parquet"))
        psnr = {name: psnr_of(home, name) for name in rows.tokenizer.unique()}
        write(rows.assign(psnr_db=rows.tokenizer.map(psnr)), "tokenizer_quality")


def collect_distances(home: Path) -> None:
    """The scores of the samples of `quickstart`, and of its tokenizer's reconstructions."""
    rows = []
    for path in sorted(home.glob("quickstart/*/samples/*/fidelity.json")):
        scored = json.loads(path.read_text())["measured"][-1]
        sampling = json.loads((path.parent / "sampling.json").read_text())["sampling"]
        rows.append((path.parts[-4], sampling["guidance"], *_scores(scored)))
    of_tokenizer = json.loads((home / "tokenizers/tiny-0/fidelity.json").read_text())["measured"]
    rows.append(("reconstructions", None, *_scores(of_tokenizer[-1])))
    names = ["images", "guidance", "samples", "references", "fd_seeded", "fd_seeded_stderr"]
    table = pd.DataFrame(rows, columns=names)
    table.to_csv(TABLES / "quickstart_distances.csv", index=False)


def collect_comparison(home: Path, sweep: str) -> None:
    """The scored samples of a sweep, one row per trial, set of samples and network; its tokenizers;
    and when it ran.
    """
    images = pd.read_parquet(home / sweep / "images.parquet")
    trials = finals(pd.read_parquet(home / sweep / "results.parquet")).set_index("trial")
    of_row = trials.loc[images.trial].reset_index()
    images = images.assign(
        above=images.distance - images.floor,
        steps=of_row.steps,
        val_loss=of_row.val_loss.where(~images.raw, of_row.val_loss_raw),
        commit=of_row.commit,
    )
    write(images, sweep)
    # Of the largest sets: a distance depends on the number of images.
    largest = images.sort_values("samples", ascending=False, kind="stable")
    floors = largest.drop_duplicates(["tokenizer", "extractor"]).set_index("tokenizer")
    tokenizers = [_tokenizer_row(home, name, floors.loc[name]) for name in floors.index.unique()]
    pd.DataFrame(tokenizers).to_csv(TABLES / f"{sweep}_tokenizers.csv", index=False)
    data = images.data.iloc[0]
    started = [
        json.loads((home / "tokenizers" / name / "provenance.json").read_text())["attempts"][0]
        for name in floors.index.unique()
    ]
    scored = [
        one["time"]
        for path in home.glob(f"{sweep}/*/samples/*/fidelity.json")
        for one in json.loads(path.read_text())["measured"]
    ]
    run = {
        "commit": " ".join(images.commit.unique()),
        "first_tokenizer_started": min(one["started"] for one in started),
        "last_set_scored": max(scored),
        "classifier_accuracy": _done(home / "networks" / data)["accuracy"],
    }
    (TABLES / f"{sweep}.json").write_text(json.dumps(run, indent=1) + "\n")


def _tokenizer_row(home: Path, name: str, floors: pd.DataFrame) -> dict[str, Any]:
    """`floors`: a row for each network, with the distance of the reconstructions."""
    config = json.loads((home / "tokenizers" / name / "tokenizer.json").read_text())
    end, sides = validation_of(home, name), config["pyramid"]["patch_nums"]
    row = {
        "tokenizer": name,
        "patch_nums": " ".join(map(str, sides)),
        "codes": config["codebook_size"],
        "tokens_per_image": sum(side * side for side in sides),
        "bits_per_image": floors.bits_per_image.iloc[0],
        "steps": config["steps"],
        "psnr_db": end["psnr_db"],
        "codes_used": end["codes_used_all"],
        "seconds": _done(home / "tokenizers" / name)["seconds"],
    }
    for floor in floors.itertuples():
        row |= {f"fd_{floor.extractor}": floor.floor}
        row |= {f"fd_{floor.extractor}_stderr": floor.floor_stderr}
    return row


def _done(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "done.json").read_text())
    return found


def _scores(scored: dict[str, Any]) -> tuple[float, ...]:
    found = scored["scores"]
    return (
        scored["samples"], scored["references"], found["fd_seeded"], found["fd_seeded_stderr"],
    )  # fmt: skip


def write(rows: pd.DataFrame, name: str) -> None:
    """The columns that have values and belong to no machine."""
    known = [one for one in rows if one not in _LEFT_OUT and rows[one].notna().any()]
    rows[known].to_csv(TABLES / f"{name}.csv", index=False)


if __name__ == "__main__":
    if sys.argv[1] == "--comparison":
        collect_comparison(Path(sys.argv[2]), sys.argv[3])
    elif sys.argv[1] == "--trials":
        path = Path(sys.argv[2]) / sys.argv[3] / "results.parquet"
        write(finals(pd.read_parquet(path)), sys.argv[3])
    else:
        collect(Path(sys.argv[1]))
        collect_distances(Path(sys.argv[1]))
