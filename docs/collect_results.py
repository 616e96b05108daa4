"""Take the rows of finished sweeps into docs/tables: `python docs/collect_results.py HOME`.

The home must have `quickstart`, `quickstart_again` and the sweeps `seed_2`, `seed_3` and `seed_4`,
which are `grid(name, seed)` of `sweeps/quickstart.py`; `tokenizer_quality` is optional. Of
`quickstart`, 256 images of each class of all six trials (`var-scaling sample quickstart/d6 --count
256`), of d6 also those with guidance 0, 0.5, 3 and 6 (`--guidance 3 --name g3`), and the tokenizer
must have been scored with `var-scaling fidelity`. Run `make docs` afterwards.
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


def psnr_of(home: Path, tokenizer: str) -> float:
    """PSNR of the held-out images at the end of the tokenizer's training, in dB."""
    lines = (home / "tokenizers" / tokenizer / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [one["psnr_db"] for one in entries if one.get("kind") == "validation"][-1]


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
    collect(Path(sys.argv[1]))
    collect_distances(Path(sys.argv[1]))
