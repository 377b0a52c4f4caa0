"""Errors of batch re-scoring; nothing is published if one of them is raised."""

from __future__ import annotations

from online.errors import OnlineError


class StoreFailed(OnlineError):
    """The key-value store of the scores did not answer, or refused an operation."""

    definite = False
    store: str
    reason: str
    text = (
        "store {store}: {reason}. Its readers keep the earlier run; once it answers, run the same "
        "command, with the same --run-id, to continue where it stopped"
    )


class RunRefused(OnlineError):
    """A run can't be begun or continued as requested."""

    run: str
    problem: str
    remedy: str
    text = "run {run}: {problem}. {remedy}"


class AuditFailed(OnlineError):
    """The scores exist but must not be published; ``findings`` have the reasons."""

    run: str
    findings: tuple[str, ...]

    def __str__(self) -> str:
        lines = "\n".join(f"  {finding}" for finding in self.findings)
        return f"run {self.run} is not published:\n{lines}\nIts files are kept, see audit.json"


class RayFailed(OnlineError):
    """Ray stopped during a run; completed shards are kept."""

    definite = False
    reason: str
    text = (
        "Ray failed: {reason}. Nothing was published; run the same command, with the same "
        "--run-id, to continue where it stopped"
    )
