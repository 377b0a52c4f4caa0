"""These errors say what can go wrong with the peers that a study is run beside."""

from __future__ import annotations

from evaluation.errors import EvaluationError


class PeerGone(EvaluationError):
    """A benchmark's peer ended without an answer; ``python`` is what it was run with."""

    python: str
    package: str = "avalanche-lib==0.6.0"
    text = (
        "the peer that {python} runs ended without an answer (its message is above); give the "
        "Python of an environment with {package}"
    )
