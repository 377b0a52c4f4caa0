"""These errors say what can go wrong in batch re-scoring; nothing is published if one is raised."""

from __future__ import annotations

from online.errors import OnlineError


class StoreFailed(OnlineError):
    """The key-value store of the scores did not take or give them."""

    definite = False
    store: str
    reason: str
    text = (
        "store {store}: {reason}. Its readers keep the run they had; once it answers the same "
        "command, with the same --run-id, goes on where it ended"
    )


class RunRefused(OnlineError):
    """A run that can't be begun, or gone on with, as it was asked for."""

    run: str
    problem: str
    remedy: str
    text = "run {run}: {problem}. {remedy}"


class AuditFailed(OnlineError):
    """The scores are there, and are not to be published.  ``findings`` say why, one a line."""

    run: str
    findings: tuple[str, ...]

    def __str__(self) -> str:
        lines = "\n".join(f"  {finding}" for finding in self.findings)
        return f"run {self.run} is not published:\n{lines}\nIts files are kept, see audit.json"


class RayFailed(OnlineError):
    """Ray stopped while a run was under way; what was finished stays."""

    definite = False
    reason: str
    text = (
        "Ray failed: {reason}. Nothing was published; the same command, with the same --run-id, "
        "goes on where it ended"
    )
