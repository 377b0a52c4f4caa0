"""These errors say what can go wrong when learners are judged."""

from __future__ import annotations


class EvaluationError(Exception):
    """Base of the package's errors."""

    definite = True


class StreamUnusable(EvaluationError):
    """A stream that can't be opened or read: its name or path, what is wrong, what to do."""

    def __init__(self, stream: str, problem: str, remedy: str) -> None:
        super().__init__(stream, problem, remedy)
        self.stream, self.problem, self.remedy = stream, problem, remedy

    def __str__(self) -> str:
        return f"stream {self.stream!r}: {self.problem}. {self.remedy}"


class TableUnusable(EvaluationError):
    """A table that can't be reported on: file, column (None: all), what is wrong, what to do."""

    def __init__(self, file: str, column: str | None, problem: str, remedy: str) -> None:
        super().__init__(file, column, problem, remedy)
        self.file, self.column, self.problem, self.remedy = file, column, problem, remedy

    def __str__(self) -> str:
        where = self.file if self.column is None else f"{self.file}, column {self.column!r}"
        return f"{where}: {self.problem}. {self.remedy}"


class PeerGone(EvaluationError):
    """A benchmark's peer ended without an answer; ``python`` is what it was run with."""

    def __init__(self, python: str, package: str = "avalanche-lib==0.6.0") -> None:
        super().__init__(python, package)
        self.python, self.package = python, package

    def __str__(self) -> str:
        return (
            f"the peer that {self.python} runs ended without an answer (its message is above); "
            f"give the Python of an environment with {self.package}"
        )


class LearnerFailed(EvaluationError):
    """A learner raised at a row (counted from 0): which verb, and what it raised."""

    def __init__(self, row: int, verb: str, problem: str) -> None:
        super().__init__(row, verb, problem)
        self.row, self.verb, self.problem = row, verb, problem

    def __str__(self) -> str:
        return (
            f"the learner can't {self.verb} row {self.row}: {self.problem}. "
            "Mend the learner, or leave out or convert the features that it can't take"
        )
