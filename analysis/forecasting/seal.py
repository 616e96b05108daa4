"""The file format of a forecast: its content and a SHA-256 digest that reveals later changes."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from analysis.forecasting.forecast import FORMAT, Forecast, ForecastError, Run, Target
from analysis.forecasting.prediction import MetricPrediction, Prediction


class ChecksumError(ForecastError):
    """The content of a forecast file does not match its SHA-256 digest, or is incomplete."""


def save_with_checksum(forecast: Forecast) -> dict[str, Any]:
    """The content of a forecast file: JSON values only.

    The digest reveals a change of the forecast alone. A change of both the forecast and the digest
    is noticed only if the digest was published elsewhere before.
    """
    # Through JSON and back, so that the digest is of what a reader will load: lists, not tuples.
    content: dict[str, Any] = json.loads(json.dumps(asdict(forecast)))
    return {"sha256": digest(content), "forecast": content}


def read_with_checksum(content: Any) -> Forecast:
    """The forecast in `content`. Raises ChecksumError, or ForecastError for another format."""
    if not isinstance(content, dict) or {"sha256", "forecast"} - content.keys():
        raise ChecksumError("not a forecast file: it needs the fields sha256 and forecast")
    fields = content["forecast"]
    if not isinstance(fields, dict) or digest(fields) != content["sha256"]:
        raise ChecksumError(
            f"the content does not match its SHA-256 {str(content['sha256'])[:12]}…: it was changed"
        )
    # After the digest: a changed file is reported as changed, not as another format.
    if fields.get("format") != FORMAT:
        raise ForecastError(f"format {fields.get('format')}: this version reads {FORMAT}")
    try:
        return _forecast(fields)
    except (TypeError, KeyError) as error:
        raise ChecksumError(f"fields of a forecast are missing or unknown: {error}") from error


def _forecast(fields: dict[str, Any]) -> Forecast:
    # Lists of JSON become the tuples of the frozen dataclasses, so that a loaded forecast equals
    # the saved one.
    return Forecast(
        **{
            **fields,
            "target": Target(**fields["target"]),
            "runs": tuple(Run(**run) for run in fields["runs"]),
            "metrics": tuple(_metric(metric) for metric in fields["metrics"]),
            "caveats": tuple(fields["caveats"]),
        }
    )


def digest(content: Any) -> str:
    """SHA-256 of `content` as JSON with sorted keys and no spaces."""
    # A canonical text: the layout of the file and the order of its keys do not matter.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _metric(fields: dict[str, Any]) -> MetricPrediction:
    predictions = tuple(
        Prediction(**{**prediction, "flags": tuple(prediction["flags"])})
        for prediction in fields["predictions"]
    )
    return MetricPrediction(
        **{**fields, "predictions": predictions, "refused": tuple(fields["refused"])}
    )
