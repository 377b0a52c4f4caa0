"""Renders the report as one HTML page without scripts or external resources.

Every number on the page is read from the report's JSON by its path and is in an element
``<data value data-path>``, so that page and JSON cannot differ.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import resources
from typing import Any, Final

from jinja2 import Environment
from markupsafe import Markup, escape

from evaluation.report.page import figures
from evaluation.report.values import Report, to_json
from replay.plain import plain

_SPARK_WIDTH: Final = 110
_SPARK_HEIGHT: Final = 24
_NONE: Final = Markup('<span class="none" title="not computed">–</span>')


def render(report: Report) -> str:
    """Return the page.  Untrusted text (names, labels) is escaped."""
    data = to_json(report)
    values = json.loads(data)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = (resources.files("evaluation.report.page") / "page.html").read_text(encoding="utf-8")
    environment.finalize = _readable
    environment.filters |= {"date": _date, "span": _span, "row": "{:,}".format}
    return environment.from_string(source).render(
        r=values,
        report=report,
        num=_numbers(values),
        spark=_spark,
        bar=_bar,
        fig={name: Markup(plain(svg, keep="\n\t")) for name, svg in _figures(report).items()},
        embedded=Markup(data.decode().replace("<", "\\u003c").replace("&", "\\u0026")),
        download=base64.b64encode(data).decode(),
    )


def _readable(value: Any) -> Any:
    """Escape control characters in untrusted text; markup of our own is left unchanged."""
    return plain(value) if type(value) is str else value


def _figures(report: Report) -> dict[str, str]:
    windows = report.performance.windows
    drawn = {}
    if len(windows) > 1:  # a line needs two points
        for name, wide in (("wide", True), ("narrow", False)):
            drawn[name] = figures.timeline(report.performance, report.alarms, name, wide=wide)
    for one in report.comparison or ():
        if len(one.steps) > 1:
            drawn[one.baseline] = figures.comparison(one, one.baseline)
    if report.calibration is not None:
        drawn["reliability"] = figures.reliability(report.calibration, "reliability")
        if len(windows) > 1:
            drawn["ece"] = figures.series(windows, lambda w: w.scores.ece, "ECE by window", "ece")
    predictions = report.prediction_drift
    if predictions is not None:
        if predictions.histogram is not None:
            drawn["scores"] = figures.histogram(
                predictions.histogram, f"Then and now: {predictions.of}", "scores"
            )
        if len(windows) > 1 and any(w.positive_rate is not None for w in windows):
            drawn["rate"] = figures.series(
                windows, lambda w: w.positive_rate, "Positive answers by window", "rate"
            )
    if report.feature_drift is not None:
        for i, feature in enumerate(report.feature_drift.features):
            if feature.histogram is not None:
                drawn[f"feature{i}"] = figures.histogram(
                    feature.histogram, f"Then and now: {feature.name}", f"feature{i}", small=True
                )
        drawn["quadrant"] = figures.quadrant(report.feature_drift, "quadrant")
    if report.multivariate is not None:
        drawn["multivariate"] = figures.multivariate(report.multivariate, "multivariate")
    return {name: _escaped_title(svg) for name, svg in drawn.items()}


def _escaped_title(svg: str) -> str:
    begin, end = svg.find("<title>") + 7, svg.find("</title>")
    return svg if begin < 7 else svg[:begin] + str(escape(svg[begin:end])) + svg[end:]


# -- numbers -------------------------------------------------------------------------------------


def _numbers(values: dict[str, Any]) -> Callable[[str, str], Markup]:
    """Return a function that formats the number at a path of the JSON."""

    def num(path: str, form: str = "count") -> Markup:
        value: Any = values
        for part in path.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        if value is None:
            return _NONE
        return Markup('<data value="{}" data-path="{}">{}</data>').format(
            json.dumps(value), path, FORMS[form](value)
        )

    return num


def _significant(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:.2e}"


def _p(value: float) -> str:
    return "< .0001" if value < 1e-4 else f"{value:.4f}".lstrip("0") if value < 1 else "1"


def _date(seconds: float | None) -> str:
    """Format a time in UTC, to the minute."""
    if seconds is None:
        return "–"
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.6g} s"


def _span(seconds: float | None) -> str:
    """Format a duration in a suitable unit."""
    if seconds is None:
        return "–"
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


FORMS: Final[dict[str, Callable[[Any], str]]] = {
    "count": "{:,}".format,
    "percent": lambda v: f"{100 * v:.1f} %",
    "percent2": lambda v: f"{100 * v:.2f} %",
    "points": lambda v: f"{100 * v:+.1f}",
    "three": lambda v: f"{v:.3f}".replace("-", "−"),
    "two": lambda v: f"{v:.2f}".replace("-", "−"),
    "figure": lambda v: _significant(v).replace("-", "−"),
    "p": _p,
    "span": _span,
    "date": _date,
}
"""Formatting functions by name."""


# -- small drawings ------------------------------------------------------------------------------


def _spark(values: list[float | None]) -> Markup:
    """Draw a sparkline for a table row, with gaps for missing values."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if len(known) < 2:
        return Markup("")
    low, high = min(known), max(known)
    reach = (high - low) or 1.0
    step = (_SPARK_WIDTH - 4) / max(len(values) - 1, 1)
    path, pen = [], "M"
    for i, value in enumerate(values):
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        y = 2 + (_SPARK_HEIGHT - 4) * (1 - (value - low) / reach) if high > low else 12
        path.append(f"{pen}{2 + i * step:.1f} {y:.1f}")
        pen = "L"
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" aria-hidden="true"><path d="{}"/></svg>'
    ).format(_SPARK_WIDTH, _SPARK_HEIGHT, " ".join(path))


def _bar(low: float, middle: float, high: float) -> Markup:
    """Draw an interval within [0, 1] and its middle."""
    return Markup(
        '<svg class="bar" viewBox="0 0 110 16" aria-hidden="true"><path class="base" d="M5 8H105"/>'
        '<path d="M{} 8H{}"/><circle cx="{}" cy="8" r="4"/></svg>'
    ).format(*(round(5 + 100 * v, 1) for v in (low, high, middle)))
