"""The report on a model: what was seen, what it means, what to do.

One pass over the rows (:mod:`tally`, memory bounded whatever their number) gives one value
(:class:`values.Report`), judged by one verdict (:mod:`verdict`).  The page, the JSON, the exit
code and gauges are views of that value: a number stands in one place.  :func:`of` makes it of a
table of answers and labels.
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
    """The first package of the extra `report` that is not installed; None: all of them are."""
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
    """Report on a table of answers and labels; a notebook shows the page.

    Needs what the extra ``report`` brings.

    Parameters:
        table: The path of a CSV or Parquet file, or a data frame (pandas, polars, pyarrow), in the
            order of events.
        label, prediction, score, time, label_time, version, source: Columns, if their names do not
            tell; ``"none"``: there is none.
        features: Columns; None: all others.
        task, positive: Guessed from the labels if left out; ``positive`` is the label that the
            score is the probability of.
        delay: Rows until a label is known, if no column says it.

    Raises:
        TableUnusable: With the column and what to do.
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
    """The remedy with arguments where it names options of the command."""
    return re.sub(r"--([a-z-]+)( [A-Z]+\b)?", lambda m: f"{m[1].replace('-', '_')}=…", remedy)
