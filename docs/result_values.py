"""Values and tables of results, computed from docs/tables and benchmarks by the toolkit itself.

`values()` has the text of each number by name, as the pages write it; docs/tables/quotes.toml says
where each stands. `computed_tables()` has whole tables of Markdown.
"""

import re
from functools import cache

import numpy as np
from comparison_values import comparison_tables, comparison_values
from published_laws import BESIROGLU, NAMES, chinchilla, short, span
from published_sizes import (
    IMAGES,
    by_name,
    count_rows,
    encoding_share,
    figure_rows,
    flops_text,
    plan_of,
    sampling_text,
)
from quickstart_values import quality_table, quickstart_tables, quickstart_values
from results import Table, recorded_tables
from speed_values import sampling_tables, speed_values
from sweep_values import sweep_tables, sweep_values

from analysis.comparison.dit_paper import PRINTED_R, printed_r, refits
from analysis.format import SYMBOLS
from pipelines.workspace.settings import Cluster
from sweeps.families import sweep as families_sweep
from var_scaling.models.registry import family_of


@cache
def values() -> dict[str, str]:
    """Every named number, as text."""
    return (
        quickstart_values() | speed_values() | _published_values() | _dit_values()
        | _size_values() | _plan_values() | _recorded_values()
        | comparison_values() | sweep_values()
    )  # fmt: skip


@cache
def computed_tables() -> list[Table]:
    return [
        *quickstart_tables(), *comparison_tables(), *sweep_tables(), *sampling_tables(),
        _chinchilla_table(), _forms_table(), _dit_table(),
        Table("docs/families.md", tuple(count_rows()), "docs/published_sizes.py"),
        Table("docs/families.md", tuple(figure_rows()), "docs/published_sizes.py"),
    ]  # fmt: skip


# What was recorded, or is the result of other commands.


@cache
def recorded(name: str) -> dict[str, dict[str, str]]:
    """Cells of a recorded table by first cell of the row and by header."""
    head, *rows = next(table.rows for table in recorded_tables() if table.name == name)
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def numbers_in(cell: str) -> list[str]:
    return re.findall(r"\d[\d,]*\.?\d*|\.\d+", cell)


def _recorded_values() -> dict[str, str]:
    """Numbers of sentences that stand in a recorded table."""
    gaps = {
        row["trial"]: float(row["held-out loss, with the class"]) - float(row["last training loss"])
        for row in recorded("own_images").values()
    }
    timed = recorded("sampling_with_cache").values()
    cache_ratios = [float(row["without a cache"]) for row in timed]
    return {
        **{f"photos.gap.{trial}": f"{gap:.2f}" for trial, gap in gaps.items()},
        "cache.least": f"{min(cache_ratios):.1f}",
        "cache.most": f"{max(cache_ratios):.1f}",
        **_quality_values(),
    }  # fmt: skip


def _quality_values() -> dict[str, str]:
    """By how much the PSNR rises when the tokenizer's steps double."""
    computed = quality_table()
    rows = computed[0].rows[1:] if computed else recorded("tokenizer_quality").values()
    psnr = [float(row["PSNR, dB"] if isinstance(row, dict) else row[1]) for row in rows]
    rises = np.diff(psnr)
    return {"quality.psnr.least": f"{min(rises):.0f}", "quality.psnr.most": f"{max(rises):.0f}"}


# Published laws.

_FORMS = ("surface", "tied", "interaction")


def _published_values() -> dict[str, str]:
    known = chinchilla()
    fit = known["fits"]["huber"]["values"]
    distance = max(abs(fit[name] - value) / error for name, (value, error) in BESIROGLU.items())
    found = {
        "chinchilla.distance": short(np.ceil(100 * distance) / 100, 2),
        "chinchilla.r": short(known["r_in_N_alone"], 2),
        "chinchilla.gamma": short(known["interaction"]["values"]["gamma"]),
        "chinchilla.E.interaction": short(known["interaction"]["values"]["E"], 2),
        "chinchilla.E.short": short(fit["E"], 2),
    }
    criteria = known["forms"]["aicc"]
    gains = [criteria[f"{law} huber:L"] - criteria[f"{law} huber"] for law in _FORMS]
    found |= {
        "chinchilla.tied.aicc": short(criteria["tied huber"], 1),
        "chinchilla.logs.least": f"{min(gains):.1f}",
        "chinchilla.logs.most": f"{max(gains):.1f}",
    }
    for way, ends in known["gamma"].items():
        found |= _named(f"chinchilla.gamma.{way}", ends, 3)
    for name in NAMES:
        digits = {"E": 4, "A": 1, "B": 0}.get(name, 4)
        found[f"chinchilla.{name}"] = short(fit[name], digits)
        digits = {"E": 3, "A": 0, "B": 0}.get(name, 3)
        found |= _named(f"chinchilla.{name}", known["intervals"][name], digits)
    for one in known["approaches"]:
        name = f"chinchilla.approach{one['number']}"
        found[name] = short(one["a"])
        if one["a_interval"] is not None:
            found |= _named(name, one["a_interval"], 3)
    return found


def _forms_table() -> Table:
    rows = tuple(tuple(row) for row in chinchilla()["forms"]["rows"])
    return Table("docs/laws.md", rows, "docs/tables/chinchilla.json")


def _named(name: str, ends: list[float], digits: int) -> dict[str, str]:
    return {f"{name}.{end}": short(x, digits) for end, x in zip(("low", "high"), ends, strict=True)}


def _chinchilla_table() -> Table:
    known = chinchilla()
    header = ("Chinchilla's table, 240 runs", *(SYMBOLS.get(name, name) for name in NAMES))
    rows = [(*header, "objective")]
    digits = {"E": 5, "A": 2, "B": 2}
    forms = {"huber": "1.0182740178e-3", "absolute": "1.1294947", "squares": "1.14619e-2"}
    for name, shown in forms.items():
        fit = known["fits"][name]
        cells = [short(fit["values"][each], digits.get(each, 6)) for each in NAMES]
        rows.append((f"`{name}`", *cells, _like(shown, fit["objective"])))
    errors = known["standard_errors"]
    digits = {"A": 0, "B": 0}
    cells = [
        "–".join(
            short(end([draw[each] for draw in errors]), digits.get(each, 4)) for end in (min, max)
        )
        for each in NAMES
    ]
    rows.append(("standard error, `huber`, 4,000 resamples, three seeds", *cells, ""))
    return Table("docs/laws.md", tuple(rows), "docs/tables/chinchilla.json")


def _like(shown: str, value: float) -> str:
    """With as many digits as shown: 1.01827e-3."""
    digits, _, power = shown.partition("e")
    scaled = value / 10.0 ** int(power or 0)
    return f"{scaled:.{len(digits.split('.')[1])}f}" + (f"e{power}" if power else "")


def _dit_values() -> dict[str, str]:
    return {"dit.printed": short(PRINTED_R, 2), "dit.r": short(printed_r())}


def _dit_table() -> Table:
    rows = [("models", "α", "95 %", "r of the logarithms", "points")]
    for one in refits():
        ends = span([one.alpha.low, one.alpha.high])
        alpha, r = short(one.fit.alpha), short(one.fit.r, 4)
        rows.append((one.models, alpha, f"[{ends}]", r, str(one.fit.points)))
    return Table("docs/laws.md", tuple(rows), "analysis/comparison/dit_paper.py")


def _size_values() -> dict[str, str]:
    """FLOPs of published models, and their FID as published."""
    models = {
        "d16": "VAR-d16", "d24": "VAR-d24", "d30": "VAR-d30", "llamagen-l": "LlamaGen-L",
        "llamagen-xl": "LlamaGen-XL,", "dit-xl": "DiT-XL",
    }  # fmt: skip
    found = {name: by_name(start) for name, start in models.items()}
    ratio = found["dit-xl"].sampling_flops / found["d30"].sampling_flops
    return {
        **{f"{name}.train": flops_text(one.train_flops) for name, one in found.items()},
        **{
            f"{name}.sampling": sampling_text(one.sampling_flops).removesuffix(" T")
            for name, one in found.items()
        },
        **{f"{name}.fid": one.fid for name, one in found.items()},
        "dit-xl.by.d30": f"{ratio:.0f}",
    }


def _plan_values() -> dict[str, str]:
    """What planned sweeps cost, and counts of tiny models."""
    families, slower = (
        plan_of("imagenet256_families", *options) for options in (("--tflops", "400"), ())
    )
    encoding = plan_of("imagenet256")["before"][1]
    h100 = Cluster(partition="any")
    at_half, crops = encoding["flops"] / h100.sustained_flops / 3600, 16
    hours, tokenizers = families["gpu_hours"], [step["flops"] for step in families["before"][:3]]
    tiny = {name: _tiny(name) for name in ("var-d6-s0", "ar-d6-s0")}
    return {
        "plan.families.hours": f"{hours:,.0f}",
        "plan.families.flops": flops_text(hours * 3600 * 400e12 / 10).replace("e21", "e22"),
        "plan.families.tokenizers": flops_text(sum(tokenizers) / 10).replace("e20", "e21"),
        "plan.families.price": f"{round(2.5 * hours, -2):,.0f}",
        "plan.families.slower": f"{round(slower['gpu_hours'], -2):,.0f}",
        "plan.encoding.fp32": f"{encoding['gpu_hours']:.0f}",
        "plan.encoding.half": f"{at_half:.0f}",
        "plan.crop.hours": f"{at_half / crops:.1f}",
        "plan.crop.gb": f"{IMAGES * 680 * 2 / 1e9:.1f}",  # tokens are uint16
        "encoder.d6": f"{100 * encoding_share(6):.0f}",
        "encoder.d16": f"{100 * encoding_share(16):.0f}",
        "tiny.var": f"{sum(tiny['var-d6-s0'].values()) / 1e6:.2f}",
        "tiny.ar": f"{sum(tiny['ar-d6-s0'].values()) / 1e6:.2f}",
        "tiny.ar.head": f"{tiny['ar-d6-s0']['head'] / 1e6:.2f}",
    }


def _tiny(name: str) -> dict[str, int]:
    """Parameters of a trial of the sweep `families`."""
    spec = next(trial.spec for trial in families_sweep.trials if trial.name == name)
    return dict(family_of(spec.config).parameters(spec))
