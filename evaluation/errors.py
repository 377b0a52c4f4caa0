"""The errors of this package."""

from __future__ import annotations

from refusals import Refusal


class EvaluationError(Refusal):
    """Base of the package's errors."""


class StreamUnusable(EvaluationError):
    """A stream cannot be opened or read: its name or path, the problem, the remedy."""

    stream: str
    problem: str
    remedy: str
    text = "stream {stream!r}: {problem}. {remedy}"


class TableUnusable(EvaluationError):
    """A table cannot be evaluated: file, column (None: all), the problem, the remedy."""

    file: str
    column: str | None
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = self.file if self.column is None else f"{self.file}, column {self.column!r}"
        return f"{where}: {self.problem}. {self.remedy}"


class LearnerFailed(EvaluationError):
    """A learner raised at a row (counted from 0): ``verb`` is what it was doing."""

    row: int
    verb: str
    problem: str
    text = (
        "the learner can't {verb} row {row}: {problem}. Correct the learner, or leave out or "
        "convert the features that it can't handle"
    )
