"""Reports on a model: scores, drift, a verdict, and what to do.

One pass over the rows (:mod:`tally`, in bounded memory) gives one value (:class:`values.Report`)
with one verdict (:mod:`verdict`).  The page, the JSON, the exit code and the gauges are views of
that value, so each number is computed once.  :func:`of` makes a report from a table of predictions
and labels.
"""

from __future__ import annotations

import re
import time as clock
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from evaluation.metrics import Task
    from evaluation.report.values import Report

NEEDED: Final = ("jinja2", "matplotlib", "pyarrow")


def lacking() -> str | None:
    """Return the first package of the extra `report` that is not installed, or None."""
    return next((name for name in NEEDED if find_spec(name) is None), None)


def of(
    table: Any,
    *,
    label: str | None = None,
    prediction: str | None = None,
    score: str | None = None,
    time: str | None = None,
    label_time: str | None = None,
    version: str | None = None,
    source: str | None = None,
    features: Sequence[str] | None = None,
    task: Task | None = None,
    positive: str | None = None,
    delay: int = 0,
) -> Report:
    """Make a report on a table of predictions and labels; a notebook displays its page.

    It needs the packages of the extra ``report``.

    Parameters:
        table: The path of a CSV or Parquet file, or a data frame (pandas, polars, pyarrow), in the
            order of events.
        label, prediction, score, time, label_time, version, source: Names of the columns, if they
            cannot be guessed; ``"none"``: there is no such column.
        features: Names of the feature columns; None: all other columns.
        task, positive: Task, and the label whose probability the score is; by default guessed from
            the labels.
        delay: Number of rows until a label is known, if no column gives its time.

    Raises:
        TableUnusable: The table cannot be used; with the column and the remedy.
    """
    from evaluation.errors import TableUnusable
    from evaluation.report.build import report_on
    from evaluation.report.columns import Asked
    from evaluation.report.filerows import FileRows
    from evaluation.report.table import table_of

    names = None if features is None else tuple(features)
    asked = Asked(label, prediction, score, time, label_time, version, source, names)
    try:
        place = Path(table) if isinstance(table, str | Path) else table_of(table)
        rows = FileRows(place, asked, task=task, positive=positive, delay=delay)
        return report_on(rows.origin, rows.rows(), made_at=clock.time())
    except TableUnusable as error:
        raise TableUnusable(error.file, error.column, error.problem, _here(error.remedy)) from None


def _here(remedy: str) -> str:
    """Replace the command's options in a remedy by arguments of :func:`of`."""
    return re.sub(r"--([a-z-]+)( [A-Z]+\b)?", lambda m: f"{m[1].replace('-', '_')}=…", remedy)
