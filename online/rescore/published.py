"""Which run is read: one pointer, swapped in one step, and the runs that it has stood at before."""

from __future__ import annotations

import msgspec

from online.rescore.errors import RunRefused


class Run(msgspec.Struct, frozen=True):
    """A run that was published.

    Attributes:
        name: Its id.
        model, version: Which model scored, and which of its snapshots (``epoch.count``).
        scored_at: POSIX seconds of its beginning.
        as_of: POSIX seconds of its newest features: a run of older ones does not replace it.
        rows: Rows scored.
        expires_at: POSIX seconds after which its scores are not given any more; None: they stay.
    """

    name: str
    model: str
    version: str
    scored_at: float
    as_of: float
    rows: int
    expires_at: float | None = None


class Current(msgspec.Struct, frozen=True):
    """The pointer.  ``history`` has every run that was published and is kept, oldest first."""

    run: Run | None = None
    history: tuple[Run, ...] = ()

    def named(self, name: str) -> Run | None:
        """The published run of this name."""
        return next((run for run in self.history if run.name == name), None)

    def to(self, run: Run, *, force: bool) -> Current:
        """The pointer at a run.  Raises RunRefused: its features are older than those it has."""
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
        """The pointer at an earlier run: the one before, or the one named.  RunRefused."""
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
        """The pointer without the runs that were removed."""
        return Current(self.run, tuple(run for run in self.history if run.name not in names))

    def removable(self, keep: int) -> list[str]:
        """Runs beyond the newest ``keep``; never the one that is read."""
        here = None if self.run is None else self.run.name
        old = self.history[: len(self.history) - keep] if keep < len(self.history) else ()
        return [run.name for run in old if run.name != here]


def encode(current: Current) -> bytes:
    """The pointer as JSON."""
    return msgspec.json.encode(current)


def decode(data: bytes) -> Current:
    """The pointer in a file or value."""
    return msgspec.json.decode(data, type=Current)
