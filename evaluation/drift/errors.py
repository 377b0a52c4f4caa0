"""The errors of drift detection, with value, bound and remedy."""

from __future__ import annotations

from evaluation.errors import EvaluationError


class ShareUnusable(EvaluationError):
    """A detector was given something other than a number from 0 to 1."""

    value: str
    text = (
        "detectors watch numbers from 0 to 1, not {value}: give 1 for an error and 0 for a right "
        "answer, a probability, or the rank of a value in its reference"
    )


class DriftSettingUnusable(EvaluationError):
    """A setting of drift detection is out of range; ``bound`` names the allowed values."""

    name: str
    value: str
    bound: str
    text = "{name} = {value}: give {bound}"


class ReferenceUnusable(EvaluationError):
    """A reference is invalid, or counts do not match it: the problem and the remedy."""

    problem: str
    remedy: str
    text = "{problem}. {remedy}"
