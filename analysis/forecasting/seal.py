"""A forecast as it lies in a file: whole, and with the digest that shows if it was changed."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from analysis.forecasting.forecast import (
    FORMAT,
    Forecast,
    ForecastError,
    MetricPrediction,
    Prediction,
    Run,
    Target,
)


class ChecksumError(ForecastError):
    """The content is not what was frozen."""


def save_with_checksum(forecast: Forecast) -> dict[str, Any]:
    """As it goes into a file, plain JSON.

    The digest shows a change, not who made it: a change of both is noticed only where the
    digest was published elsewhere before.
    """
    content: dict[str, Any] = json.loads(json.dumps(asdict(forecast)))
    return {"sha256": digest(content), "forecast": content}


def read_with_checksum(content: Any) -> Forecast:
    """The forecast in `content`. Raises Tampered, or ForecastError for another format."""
    if not isinstance(content, dict) or {"sha256", "forecast"} - content.keys():
        raise ChecksumError("it is no sealed forecast")
    inside = content["forecast"]
    if not isinstance(inside, dict) or digest(inside) != content["sha256"]:
        raise ChecksumError(f"its content is not that of SHA-256 {str(content['sha256'])[:12]}…")
    if inside.get("format") != FORMAT:
        raise ForecastError(f"format {inside.get('format')}: this version reads {FORMAT}")
    try:
        return _forecast(inside)
    except (TypeError, KeyError) as error:
        raise ChecksumError(f"it lacks what a forecast has: {error}") from error


def _forecast(inside: dict[str, Any]) -> Forecast:
    return Forecast(
        **{
            **inside,
            "target": Target(**inside["target"]),
            "runs": tuple(Run(**run) for run in inside["runs"]),
            "metrics": tuple(_metric(metric) for metric in inside["metrics"]),
            "caveats": tuple(inside["caveats"]),
        }
    )


def digest(content: Any) -> str:
    """SHA-256 of JSON, whatever the order of its keys and its spaces."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _metric(inside: dict[str, Any]) -> MetricPrediction:
    predictions = tuple(
        Prediction(**{**one, "flags": tuple(one["flags"])}) for one in inside["predictions"]
    )
    return MetricPrediction(
        **{**inside, "predictions": predictions, "refused": tuple(inside["refused"])}
    )
