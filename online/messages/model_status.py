"""The status of a model as notebooks and terminals show it: its score beside baselines."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any, Final

_FEW: Final = 10  # no score is shown for fewer answers
_BARS: Final = "▁▂▃▄▅▆▇█"
_SCORES: Final = (
    ("accuracy", "accuracy"), ("majority", "majority"), ("no_change", "no change"),
    ("kappa_m", "kappa-M"), ("mae", "MAE"), ("mean_mae", "MAE of the mean so far"),
    ("last_mae", "MAE of the newest"), ("reward", "reward"), ("constant", "best single action"),
    ("evenly", "actions evenly"),
)  # fmt: skip


class Status(dict[str, Any]):
    """The status of a model as the service reports it (docs/monitoring.md), with a short repr."""

    def __repr__(self) -> str:
        text = ", ".join(f"{name} {value}" for name, value in self.lines())
        return f"<{self.get('model', 'model')}: {text}>"

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield names and values of the most important entries."""
        yield "version", str(self.get("version"))
        yield "learned", f"{self.get('learned', 0):,.0f}"
        quality = self.get("quality") or {}
        if (n := quality.get("n", _FEW)) < _FEW:
            yield "score", f"too few answers ({n:g})"
        for name, shown in _SCORES if n >= _FEW else ():
            if (value := quality.get(name)) is not None:
                yield shown, f"{value:.4f}"
        if drawn := self.course():
            yield "by version", drawn
        drift = self.get("drift") or {}
        if state := drift.get("state"):
            yield "drift", str(state)
        if (incident := self.get("incident")) is not None:
            yield "incident", str(incident)

    def course(self) -> str:
        """Draw the scores of the newest epochs as a small bar chart, oldest first; or empty."""
        known = [row.get("accuracy", row.get("mae")) for row in self.get("versions") or ()][::-1]
        values = [value for value in known if value is not None]
        if len(values) < 2:
            return ""
        low, high = min(values), max(values)
        steps = len(_BARS) - 1
        return "".join(_BARS[round((v - low) / ((high - low) or 1.0) * steps)] for v in values)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows: a small table."""
        rows = "".join(
            f'<tr><td style="text-align:left">{escape(name)}</td>'
            f'<td style="text-align:right">{escape(value)}</td></tr>'
            for name, value in self.lines()
        )
        title = f"{self.get('model', 'model')} ({self.get('task', '')})"
        return f"<table><caption>{escape(title)}</caption>{rows}</table>"


def short(value: float | None) -> str:
    """Format a score in a few characters."""
    if value is None:
        return "  –  "
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"
