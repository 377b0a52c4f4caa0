"""These errors say what can go wrong when learners are judged."""

from __future__ import annotations

from refusals import Refusal


class EvaluationError(Refusal):
    """Base of the package's errors."""


class StreamUnusable(EvaluationError):
    """A stream that can't be opened or read: its name or path, what is wrong, what to do."""

    stream: str
    problem: str
    remedy: str
    text = "stream {stream!r}: {problem}. {remedy}"


class TableUnusable(EvaluationError):
    """A table that can't be reported on: file, column (None: all), what is wrong, what to do."""

    file: str
    column: str | None
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = self.file if self.column is None else f"{self.file}, column {self.column!r}"
        return f"{where}: {self.problem}. {self.remedy}"


class LearnerFailed(EvaluationError):
    """A learner raised at a row (counted from 0): which verb, and what it raised."""

    row: int
    verb: str
    problem: str
    text = (
        "the learner can't {verb} row {row}: {problem}. Mend the learner, or leave out or convert "
        "the features that it can't take"
    )
