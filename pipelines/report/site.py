"""The page over all sweeps of a home."""

from pathlib import Path

from pipelines.report.publish import LAWS_FORMAT
from pipelines.workspace.damage import is_complete
from pipelines.workspace.store import Home, natural_key
from var_scaling.disk import read_json

_TRIAL = "trial.json"


def write_home_page(home: Home) -> Path:
    """Write HOME/index.html from what the sweeps have on disk: nothing is fitted or drawn again."""
    from analysis.report.site import SweepCard, write_site

    cards = []
    for folder in _sweep_folders(home):
        trials = [record.parent for record in folder.glob(f"*/{_TRIAL}")]
        report = folder / "report"
        laws = read_json(path) if (path := folder / "laws.json").exists() else None
        outdated = laws is not None and laws.get("format") != LAWS_FORMAT
        cards.append(
            SweepCard(
                folder.name,
                sum(map(is_complete, trials)),
                len(trials),
                None if outdated else laws,
                report if (report / "index.html").exists() else None,
                outdated,
            )
        )
    path = home.root / "index.html"
    write_site(path, cards)
    return path


def _sweep_folders(home: Home) -> list[Path]:
    """The folders of the sweeps: those with a trial, or with laws of imported models."""
    folders = {path.parents[1] for path in home.root.glob(f"*/*/{_TRIAL}")}
    folders |= {path.parent for path in home.root.glob("*/laws.json")}
    return sorted(folders, key=lambda folder: natural_key(folder.name))
