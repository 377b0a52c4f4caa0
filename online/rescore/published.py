"""The pointer to the run that readers use, swapped atomically, with its history of runs."""

from __future__ import annotations

import msgspec

from online.rescore.errors import RunRefused


class Run(msgspec.Struct, frozen=True):
    """A published run of re-scoring.

    Attributes:
        name: Its id.
        model, version: The model, and the version of its snapshot (``epoch.count``).
        scored_at: When the run began, POSIX seconds.
        as_of: Time of its newest features, POSIX seconds: one with older ones does not replace it.
        rows: Number of scored rows.
        expires_at: When its scores expire, POSIX seconds; None: never.
    """

    name: str
    model: str
    version: str
    scored_at: float
    as_of: float
    rows: int
    expires_at: float | None = None


class Current(msgspec.Struct, frozen=True):
    """The pointer.  ``history`` has every published run that was not removed, oldest first."""

    run: Run | None = None
    history: tuple[Run, ...] = ()

    def named(self, name: str) -> Run | None:
        """The published run of this name, or None."""
        return next((run for run in self.history if run.name == name), None)

    def to(self, run: Run, *, force: bool) -> Current:
        """Point to a run.  Raises RunRefused if its features are older than those of this one."""
        if self.run is not None and run.as_of < self.run.as_of and not force:
            raise RunRefused(
                run.name,
                f"its features are of {run.as_of:.0f}, those of {self.run.name}, which is "
                f"published, of {self.run.as_of:.0f}: it would put older scores over newer ones",
                "Score newer features, or publish it all the same: --force",
            )
        others = tuple(old for old in self.history if old.name != run.name)
        return Current(run, (*others, run))

    def back(self, name: str | None) -> Current:
        """Point to an earlier run: the previous one, or the one named.  Raises RunRefused."""
        here = None if self.run is None else self.run.name
        names = [run.name for run in self.history]
        if name is None:
            at = names.index(here) if here in names else 0
            if at == 0:
                raise RunRefused(str(here), "no run was published before it", "Name one: --to")
            name = names[at - 1]
        if (run := self.named(name)) is None:
            raise RunRefused(name, "it is not among those published", f"Known: {', '.join(names)}")
        return Current(run, self.history)

    def without(self, names: frozenset[str]) -> Current:
        """The pointer without runs that were removed."""
        return Current(self.run, tuple(run for run in self.history if run.name not in names))

    def removable(self, keep: int) -> list[str]:
        """Runs older than the newest ``keep``, except the one that readers use."""
        here = None if self.run is None else self.run.name
        old = self.history[: len(self.history) - keep] if keep < len(self.history) else ()
        return [run.name for run in old if run.name != here]


def encode(current: Current) -> bytes:
    """Encode the pointer as JSON."""
    return msgspec.json.encode(current)


def decode(data: bytes) -> Current:
    """Decode the pointer from JSON."""
    return msgspec.json.decode(data, type=Current)
