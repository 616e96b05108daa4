"""The report's content besides the laws: settings, provenance, tokenizers and images."""

import json
from typing import Any

from analysis.report.html import Facts
from pipelines.report.images import report_images
from pipelines.results.health import failed_checks
from pipelines.stages.graph import Stages, of_kind
from pipelines.stages.registry import TOKENIZER, TRIAL
from var_scaling.config import ImportedTokenizer
from var_scaling.disk import read_json
from var_scaling.experiment import Sweep
from var_scaling.metrics import Line, read_metrics


def facts_of(sweep: Sweep, stages: Stages) -> Facts:
    """The facts of `sweep` as they are on disk now."""
    tokenizers, pictures = [], {}
    for stage in of_kind(stages, TOKENIZER):
        t, folder = stage.config, stage.directory
        lines = read_metrics(folder / "metrics.jsonl")
        evaluations = [line for line in lines if line["kind"] == "validation"]
        if evaluations:
            scores = evaluations[-1]
            tokenizers.append({
                "tokenizer": t.name,
                "images": "imported" if isinstance(t, ImportedTokenizer) else t.data.name,
                "scales": " ".join(map(str, t.pyramid.patch_nums)),
                "codes": f"{t.codebook_size:,}",
                "PSNR (dB)": f"{scores['psnr_db']:.2f}",
                "its last rise": _last_rise(evaluations),
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
        provenance=_provenance(sweep, stages),
        tokenizers=tokenizers,
        pictures=pictures,
        trials=tuple(trial.name for trial in sweep.trials),
        failures=failed_checks(stages),
        **report_images(stages)._asdict(),
    )


def _last_rise(evaluations: list[Line]) -> str:
    """How much the PSNR changed between the last two evaluations of a tokenizer's training."""
    if len(evaluations) < 2:
        return "–"
    before, last = evaluations[-2:]
    steps = last["step"] - before["step"]
    return f"{last['psnr_db'] - before['psnr_db']:+.2f} dB in the last {steps:,} steps"


def _settings(sweep: Sweep) -> dict[str, str]:
    method = {
        "scored on": "held-out tokens, with class labels, at the end of each trial; no smoothing"
    }
    imported = {
        f"imported {model.name}": f"SHA-256 {model.sha256}; its training is not recorded"
        for model in sweep.imported
    }
    if not sweep.trials:
        return {**imported, **method}
    first = sweep.trials[0]
    rates = sorted({trial.optimiser.learning_rate for trial in sweep.trials})
    return {
        "trials": str(len(sweep.trials)),
        "images": json.dumps(first.data.model_dump(mode="json")),
        "global batch": ", ".join(sorted({str(trial.batch_size) for trial in sweep.trials})),
        "precision": ", ".join(sorted({trial.precision for trial in sweep.trials})),
        "peak learning rate": f"{rates[0]:.3g} to {rates[-1]:.3g}",
        "optimiser (first trial)": json.dumps(first.optimiser.model_dump(mode="json")),
        **imported,
        **method,
    }


def _provenance(sweep: Sweep, stages: Stages) -> dict[str, str]:
    attempts: list[dict[str, Any]] = []
    for stage in of_kind(stages, TRIAL):
        path = stage.directory / "provenance.json"
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
