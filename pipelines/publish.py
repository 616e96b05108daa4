"""From results to what people look at: laws.json, figures, report, the law run in MLflow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.store import Home
from var_scaling.config import ImportedTokenizer, Sweep
from var_scaling.disk import read_json, write_json
from var_scaling.metrics import last_of, read_metrics

_FORMAT = 2  # of laws.json, as analysis.export writes it


def publish(
    home: Home,
    sweep: Sweep,
    results_fingerprint: str,
    again: bool,
    objective: str = "squares",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """The laws of `sweep`, fitted and drawn; what stands for these results is kept, unless `again`.

    Returns what laws.json holds. Raises TableError where there is nothing to fit.
    """
    folder = home.sweep(sweep.name)
    wanted = {
        "format": _FORMAT, "results_fingerprint": results_fingerprint, "objective": objective,
    }  # fmt: skip
    if not again and (folder / "laws.json").exists() and report_path(home, sweep).exists():
        laws: dict[str, Any] = read_json(folder / "laws.json")
        if all(laws.get(key) == value for key, value in wanted.items()):
            return laws
    from analysis.export import laws_of
    from analysis.figures import draw_all
    from analysis.report import write_report
    from analysis.study import study
    from analysis.table import load_results
    from pipelines.forecasts import graded

    table = load_results(folder / "results.parquet")
    found = study(table, objective, tuple(graded(home, sweep)), progress)
    # PDFs take as long as all the rest: who asks for laws or report gets them, a run does not.
    kinds = ("svg", "png", "pdf") if again else ("svg", "png")
    figures = draw_all(found, report_path(home, sweep).parent, kinds)
    write_report(report_path(home, sweep), found, figures, _facts(home, sweep))
    laws = {**laws_of(found), **wanted, "sweep": sweep.name}
    write_json(folder / "laws.json", laws)
    return laws


def report_path(home: Home, sweep: Sweep) -> Path:
    return home.sweep(sweep.name) / "report" / "index.html"


def paths(home: Home, sweep: Sweep) -> dict[str, Path]:
    """What a person would open."""
    report = report_path(home, sweep)
    shown = {
        "report": report,
        "figure": report.with_name("laws_in_parameters.png"),
        "results": home.sweep(sweep.name) / "results.parquet",
    }
    return {what: path for what, path in shown.items() if path.exists()}


def law_scalars(laws: dict[str, Any]) -> dict[str, float]:
    """The numbers of the laws by name, as MLflow metrics."""
    scalars: dict[str, float | None] = {}
    for law in laws["laws"]:
        fit = law["fit"]
        base = f"law/{law['symbol']}_of_{law['variable_symbol']}/{fit['law']}"
        interval = law["intervals"]["alpha"]
        scalars |= {
            f"{base}/alpha": fit["values"]["alpha"],
            f"{base}/alpha_low": interval["low"],
            f"{base}/alpha_high": interval["high"],
            f"{base}/E": fit["values"].get("E", 0.0),
            f"{base}/r": fit["r"],
            f"{base}/r2": fit["r2"],
            f"{base}/beta": fit["paper_beta"],
        }
    return {name: value for name, value in scalars.items() if value is not None}


def law_columns(laws: dict[str, Any]) -> dict[str, list[Any]]:
    """The laws as a table, one column a list."""
    found = laws["laws"]
    return {
        "law": [law["label"] for law in found],
        "form": [law["fit"]["formula"] for law in found],
        "alpha": [law["fit"]["values"]["alpha"] for law in found],
        "alpha_low": [law["intervals"]["alpha"]["low"] for law in found],
        "alpha_high": [law["intervals"]["alpha"]["high"] for law in found],
        "beta": [law["fit"]["paper_beta"] for law in found],
        "E": [law["fit"]["values"].get("E", 0.0) for law in found],
        "r": [law["fit"]["r"] for law in found],
        "r2": [law["fit"]["r2"] for law in found],
        "points": [law["fit"]["points"] for law in found],
    }


def mirrored(home: Home, sweep: Sweep, laws: dict[str, Any]) -> bool:
    """Whether MLflow already shows these results."""
    path, database = home.sweep(sweep.name) / "mirrored.json", home.root / "mlflow.db"
    return path.exists() and database.exists() and read_json(path) == _mirrored_as(database, laws)


def note_mirrored(home: Home, sweep: Sweep, laws: dict[str, Any]) -> None:
    path = home.sweep(sweep.name) / "mirrored.json"
    write_json(path, _mirrored_as(home.root / "mlflow.db", laws))


def _mirrored_as(database: Path, laws: dict[str, Any]) -> dict[str, Any]:
    """These results in this very database: one made anew holds nothing yet."""
    return {"results": laws["results_fingerprint"], "database": database.stat().st_ino}


def _facts(home: Home, sweep: Sweep) -> Any:
    from analysis.report import Facts

    tokenizers, pictures = [], {}
    for t in sweep.tokenizers:
        folder = home.tokenizer(t.name)
        scores = last_of(read_metrics(folder / "metrics.jsonl"), "validation")
        if scores:
            tokenizers.append({
                "tokenizer": t.name,
                "images": "imported" if isinstance(t, ImportedTokenizer) else t.data.name,
                "scales": " ".join(map(str, t.pyramid.sides)),
                "codes": f"{t.codes:,}",
                "PSNR (dB)": f"{scores['psnr_db']:.2f}",
                "SSIM": "–" if scores.get("ssim") is None else f"{scores['ssim']:.3f}",
                "LPIPS": "–" if scores.get("lpips") is None else f"{scores['lpips']:.4f}",
                "codes used": f"{scores['codes_used_all']:.0%}",
                "used by scale": " ".join(f"{share:.0%}" for share in scores["used_per_scale"]),
                "perplexity by scale": " ".join(f"{p:.0f}" for p in scores["perplexity_per_scale"]),
            })  # fmt: skip
        if (folder / "reconstructions.png").exists():
            caption = f"{t.name}: held-out images, each over its reconstruction"
            pictures[caption] = folder / "reconstructions.png"
    return Facts(
        title=sweep.name,
        question=sweep.question,
        settings=_settings(sweep),
        provenance=_provenance(home, sweep),
        tokenizers=tokenizers,
        pictures=pictures,
        trials=tuple(trial.name for trial in sweep.trials),
    )


def _settings(sweep: Sweep) -> dict[str, str]:
    method = {"scored on": "held-out tokens, labels kept, at the end of each trial; no smoothing"}
    elsewhere = {
        f"imported {model.name}": f"SHA-256 {model.sha256}; how it was trained is not known here"
        for model in sweep.imported
    }
    if not sweep.trials:
        return {**elsewhere, **method}
    first = sweep.trials[0]
    rates = sorted({trial.optimiser.learning_rate for trial in sweep.trials})
    return {
        "trials": str(len(sweep.trials)),
        "images": json.dumps(first.data.model_dump(mode="json")),
        "global batch": ", ".join(sorted({str(trial.batch) for trial in sweep.trials})),
        "precision": ", ".join(sorted({trial.precision for trial in sweep.trials})),
        "peak learning rate": f"{rates[0]:.3g} to {rates[-1]:.3g}",
        "optimiser (first trial)": json.dumps(first.optimiser.model_dump(mode="json")),
        **elsewhere,
        **method,
    }


def _provenance(home: Home, sweep: Sweep) -> dict[str, str]:
    attempts: list[dict[str, Any]] = []
    for trial in sweep.trials:
        path = home.trial(sweep.name, trial.name) / "provenance.json"
        attempts += read_json(path)["attempts"] if path.exists() else []
    if not attempts:
        return {}
    packages = {json.dumps(attempt["packages"]) for attempt in attempts}
    return {
        "code": ", ".join(sorted({str(attempt["commit"]) for attempt in attempts})),
        "machines": ", ".join(sorted({f"{a['host']} ({a['platform']})" for a in attempts})),
        "attempts": f"{len(attempts)} over {len(sweep.trials)} trials",
        "packages": "; ".join(sorted(packages)),
        "sweep fingerprint": sweep.fingerprint(),
    }
