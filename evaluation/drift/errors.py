"""These errors say what the watch over drift refuses, with value, bound and remedy."""

from __future__ import annotations

from evaluation.errors import EvaluationError


class ShareUnusable(EvaluationError):
    """A detector was given something else than a number from 0 to 1."""

    value: str
    text = (
        "detectors watch numbers from 0 to 1, not {value}: give 1 for an error and 0 for a right "
        "answer, a probability, or the rank of a value in its reference"
    )


class DriftSettingUnusable(EvaluationError):
    """A setting of the watch that is out of its range; ``bound`` says what is allowed."""

    name: str
    value: str
    bound: str
    text = "{name} = {value}: give {bound}"


class ReferenceUnusable(EvaluationError):
    """A reference, or counts, that do not fit: what is wrong and what to do."""

    problem: str
    remedy: str
    text = "{problem}. {remedy}"
