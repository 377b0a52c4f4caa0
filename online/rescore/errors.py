"""These errors say what can go wrong in batch re-scoring; nothing is published if one is raised."""

from __future__ import annotations

from online.errors import OnlineError


class InputRefused(OnlineError):
    """A table that can't be scored.  ``place`` names the file, and column or row group in it."""

    def __init__(self, place: str, problem: str, remedy: str) -> None:
        super().__init__(place, problem, remedy)
        self.place, self.problem, self.remedy = place, problem, remedy

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}. {self.remedy}"


class PlaceFailed(OnlineError):
    """A file or folder could not be read or written, a full disk among the reasons.

    What was finished before stays: the same command goes on from there.
    """

    definite = False

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason

    def __str__(self) -> str:
        return (
            f"{self.place}: {self.reason}. Nothing was published; "
            "once it is mended the same command, with the same --run-id, goes on where it ended"
        )


class StoreFailed(OnlineError):
    """The key-value store of the scores did not take or give them."""

    definite = False

    def __init__(self, store: str, reason: str) -> None:
        super().__init__(store, reason)
        self.store, self.reason = store, reason

    def __str__(self) -> str:
        return (
            f"store {self.store}: {self.reason}. Its readers keep the run they had; "
            "once it answers the same command, with the same --run-id, goes on where it ended"
        )


class RunRefused(OnlineError):
    """A run that can't be begun, or gone on with, as it was asked for."""

    def __init__(self, run: str, problem: str, remedy: str) -> None:
        super().__init__(run, problem, remedy)
        self.run, self.problem, self.remedy = run, problem, remedy

    def __str__(self) -> str:
        return f"run {self.run}: {self.problem}. {self.remedy}"


class AuditFailed(OnlineError):
    """The scores are there, and are not to be published.  ``findings`` say why, one a line."""

    def __init__(self, run: str, findings: tuple[str, ...]) -> None:
        super().__init__(run, findings)
        self.run, self.findings = run, findings

    def __str__(self) -> str:
        lines = "\n".join(f"  {finding}" for finding in self.findings)
        return f"run {self.run} is not published:\n{lines}\nIts files are kept, see audit.json"


class RayFailed(OnlineError):
    """Ray stopped while a run was under way; what was finished stays."""

    definite = False

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"Ray failed: {self.reason}. Nothing was published; "
            "the same command, with the same --run-id, goes on where it ended"
        )
