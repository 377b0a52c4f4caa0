"""These errors say what the watch over drift refuses, with value, bound and remedy."""

from __future__ import annotations

from evaluation.errors import EvaluationError


class ShareUnusable(EvaluationError):
    """A detector was given something else than a number from 0 to 1."""

    def __init__(self, value: str) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return (
            f"detectors watch numbers from 0 to 1, not {self.value}: give 1 for an error and 0 "
            "for a right answer, a probability, or the rank of a value in its reference"
        )


class DriftSettingUnusable(EvaluationError):
    """A setting of the watch that is out of its range; ``bound`` says what is allowed."""

    def __init__(self, name: str, value: str, bound: str) -> None:
        super().__init__(name, value, bound)
        self.name, self.value, self.bound = name, value, bound

    def __str__(self) -> str:
        return f"{self.name} = {self.value}: give {self.bound}"


class ReferenceUnusable(EvaluationError):
    """A reference, or counts, that do not fit: what is wrong and what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}"
