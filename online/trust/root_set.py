"""A root set: trusted rows of an operator, with whose gradients those of feedback are compared."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from online.errors import RequestError, StartRefused
from online.models.base import Model
from online.models.gradients import HasGradient
from online.rows.validator import Validator
from online.settings.config import Settings
from online.settings.model import ModelSettings
from paramserver.filters.base import Gradient
from paramserver.filters.reference import Reference
from refusals import reason
from replay.example import Features, Label, label_text

_LABEL: Final = "label"
_ROWS_A_DRAW: Final = 64
_BYTES_A_ROW: Final = 65_536


class RootSet:
    """The trusted rows of a file, and the reference gradients made from them.

    ``together`` is the number of rows behind each compared gradient: 1 for feedback, many for
    deltas of devices.

    Attributes:
        reference: Reference gradients and null distributions from these rows.
        problem: Why gradients can't be compared with it; None if they can.
    """

    def __init__(
        self,
        path: Path,
        rows: list[tuple[Features, Label]],
        model: Callable[[], Model],
        *,
        together: int = 1,
    ) -> None:
        self._path, self._rows, self._model = path, rows, model
        labels = [label_text(label) for _, label in rows]
        self._classes = Counter(labels)
        self.reference = Reference(labels, self._gradient, rows=together)
        self.problem = self.reference.problem
        if not isinstance(model(), HasGradient):
            self.problem = "the model tells no gradient; directions are not scored"

    def _gradient(self, at: npt.NDArray[np.intp]) -> Gradient:
        most = max(_ROWS_A_DRAW // max(len(self._classes), 1), 2)
        rows = [self._rows[i] for i in at[:: max(len(at) // most, 1)][:most]]
        model = self._model()
        assert isinstance(model, HasGradient)
        return model.mean_slope(rows)

    def summary(self) -> dict[str, Any]:
        """Return a summary for operators, as plain data."""
        counts = dict(self._classes.most_common(20))
        return {
            "file": self._path.name, "rows": len(self._rows), "classes": counts,
            "problem": self.problem,
        }  # fmt: skip


def root_rows(
    model: ModelSettings, settings: Settings, *, numeric_only: bool
) -> list[tuple[Features, Label]]:
    """Read the rows of the model's root set; empty without one.  Raises StartRefused."""
    if model.root_set is None:
        return []
    validator = Validator(model, settings.limits, numeric_only=numeric_only)
    return read(settings.base_dir / model.root_set, validator, settings.limits.root_rows_max)


def read(path: Path, validator: Validator, rows_max: int) -> list[tuple[Features, Label]]:
    """Read and check the rows of a CSV file with a column ``label``, or of JSON lines.

    A line of JSON is ``{"features": {…}, "label": …}``.  Raises StartRefused, with the row's
    number, for a row that feedback would be refused for, for more than ``rows_max`` rows, and for a
    file without rows.
    """
    rows: list[tuple[Features, Label]] = []
    try:
        if path.stat().st_size > rows_max * _BYTES_A_ROW:
            raise _refused(path, f"{path.stat().st_size} bytes", f"Give at most {rows_max} rows")
        with path.open(encoding="utf-8-sig", newline="") as lines:
            for n, (features, label) in enumerate(_parsed(path, lines), 1):
                if n > rows_max:
                    remedy = "Give fewer, or raise limits.root_rows_max"
                    raise _refused(path, f"more than {rows_max} rows", remedy)
                where = f"row {n}"
                rows.append((validator.features(features, where), validator.label(label, where)))
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "not text"
        raise _refused(path, problem, "Name a CSV file or JSON lines") from None
    except RequestError as error:
        raise _refused(path, f"{error.field}: {error.message}", "Mend the row named") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(path, reason(error), "Mend the row named") from None
    if not rows:
        raise _refused(path, "no rows", "Give ten of each class, which you vouch for")
    return rows


def _parsed(path: Path, lines: Any) -> Any:
    if path.suffix == ".csv":
        for row in csv.DictReader(lines):
            label = _value(row.pop(_LABEL))
            yield {name: _value(text) for name, text in row.items() if text != ""}, label
        return
    for line in lines:
        if line.strip():
            given = json.loads(line)
            yield given["features"], given[_LABEL]


def _value(text: str) -> Any:
    """Convert a CSV cell to a number or boolean if possible; otherwise it stays text."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)


def _refused(path: Path, problem: str, remedy: str) -> StartRefused:
    return StartRefused(f"root set {path}: {problem}", remedy)
