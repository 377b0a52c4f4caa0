"""What can go wrong when learners are judged."""

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
