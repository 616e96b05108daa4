"""Every law of a results table, in one object that figures and report are made from."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from analysis.fit import Fit, FitError, fit_law
from analysis.frontier import frontier
from analysis.holdout import HeldOut, leave_largest_out
from analysis.laws import FLOOR, PURE
from analysis.table import Table
from analysis.uncertainty import Bootstrap, Interval, bootstrap, floor_profile

# Column: (symbol, what, unit). The paper's four (VAR, Eq. 3-4 and Fig. 5-6).
METRICS = {
    "val_loss": ("L_mean", "loss, all scales", "nats/token"),
    "val_loss_last": ("L_last", "loss, last scale", "nats/token"),
    "val_error": ("Err_mean", "token error, all scales", "share"),
    "val_error_last": ("Err_last", "token error, last scale", "share"),
}
VARIABLES = {
    "params_blocks": ("N", "weights of the blocks"),
    "params_total": ("N_total", "all parameters"),
    "train_flops": ("C", "training FLOPs, along the frontier"),
}


@dataclass(frozen=True)
class Finding:
    """One law of one metric in one variable, with everything that speaks for or against it."""

    metric: str
    variable: str
    fit: Fit
    bootstrap: Bootstrap | None
    floor_interval: Interval | None
    held_out: HeldOut | None
    x: tuple[float, ...]
    y: tuple[float, ...]
    trials: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, β and the hold-out error spelled out."""
        held = self.held_out
        return _plain(
            {
                **asdict(self),
                "beta": self.fit.beta,
                "held_out": {**asdict(held), "relative_error": held.relative_error}
                if held
                else None,
            }
        )


def _plain(value: Any) -> Any:
    """JSON knows no NaN: what is not a number is absent."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Study:
    """All findings on one table."""

    table: Table
    findings: tuple[Finding, ...]
    refused: tuple[str, ...]  # laws that could not be fitted, with the reason

    def get(self, metric: str, variable: str, law: str) -> Finding | None:
        for finding in self.findings:
            if (finding.metric, finding.variable, finding.fit.law.name) == (metric, variable, law):
                return finding
        return None


def study(table: Table) -> Study:
    """Fit each metric against N and along the compute frontier, without and with a floor."""
    findings: list[Finding] = []
    refused: list[str] = []
    for variable in VARIABLES:
        for metric in METRICS:
            points = _points(table, metric, variable)
            for law in (PURE, FLOOR):
                try:
                    findings.append(_finding(metric, variable, law, points))
                except FitError as error:
                    refused.append(
                        f"{METRICS[metric][0]}({VARIABLES[variable][0]}), {law.name}: {error}"
                    )
    return Study(table, tuple(findings), tuple(refused))


def _points(table: Table, metric: str, variable: str) -> pd.DataFrame:
    return frontier(table.finals, metric) if variable == "train_flops" else table.finals


def _finding(metric: str, variable: str, law: Any, points: pd.DataFrame) -> Finding:
    x = points[variable].to_numpy(dtype=float)
    y = points[metric].to_numpy(dtype=float)
    fit = fit_law(law, x, y)
    profile = floor_profile(x, y, fit.E, fit.certificate.objective) if law.floor else None
    return Finding(
        metric=metric,
        variable=variable,
        fit=fit,
        bootstrap=bootstrap(law, x, y),
        floor_interval=profile,
        held_out=leave_largest_out(law, x, y),
        x=tuple(x.tolist()),
        y=tuple(y.tolist()),
        trials=tuple(points.trial.astype(str)),
    )
