"""The channel of a model's releases: which release devices use, and how many use the newest.

The head manifest is the newest release, with the devices that use it (``cohort``) and the release
that the others keep (``before``, by hash).  Heads are ordered by two numbers: ``sequence`` counts
releases, ``revision`` counts changes of one release's state.  A device never accepts a lower pair.

A device decides by itself, by a hash of its own id and the sequence, so it is among the first
percents of one release and among the last of another, and reveals nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Final

from online.edge.errors import PublishRefused
from online.edge.manifest import canonical

STEPS: Final = (1, 10, 50, 100)
"""Percentages of devices that a release goes to, one step per promotion."""

KEEP: Final = 8
"""Releases whose files are kept for rollbacks."""

BUCKETS: Final = 10_000

FAILED_LEAST, FAILED_SHARE = 3, 0.05
"""Least number of failed devices, and their least share of reports, to halt a release."""

COMPARED_LEAST: Final = 20
"""Rows that both release and service must have predicted on a device to compare them."""

DIFFER_SHARE: Final = 0.2
"""Share of rows with a different label above which a device differs; the service keeps learning."""

DIFFERING_LEAST, DIFFERING_SHARE = 3, 0.1
"""Least number of differing devices, and their least share of compared ones, to halt a release."""


def bucket(device: str, sequence: int) -> int:
    """Rank of a device among 10,000 for a release."""
    digest = sha256(f"{device}:{sequence}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % BUCKETS


@dataclass(frozen=True, slots=True)
class Reports:
    """Counts of devices' reports on a release.

    Attributes:
        used, failed: Devices that use it, and devices on which its check failed.
        compared, differing: Devices that compared :data:`COMPARED_LEAST` rows with the service, and
            those on which the labels differ.
    """

    used: int = 0
    failed: int = 0
    compared: int = 0
    differing: int = 0

    @property
    def bad(self) -> str | None:
        """Why the release must not be promoted; None if it may."""
        failed, counted = self.failed, self.used + self.failed
        if failed >= FAILED_LEAST and failed > FAILED_SHARE * counted:
            return f"did not pass its test on {failed} devices, {self.used} use it"
        differing = self.differing
        if differing >= DIFFERING_LEAST and differing > DIFFERING_SHARE * self.compared:
            return f"answers otherwise than the service on {differing} of {self.compared} devices"
        return None


@dataclass(frozen=True)
class Release:
    """A release: a document for devices, and its state in the channel.

    Attributes:
        sequence: 1, 2, 3 …
        about: The document: the manifest without its cohort.
        whole: Whether it has been given to all devices.
    """

    sequence: int
    about: Mapping[str, Any]
    whole: bool = False

    def document(self) -> bytes:
        """The document's bytes; heads of later releases refer to them by hash."""
        return canonical(self.about)

    def files(self) -> set[str]:
        """SHA-256 of the document and of every file that it names."""
        named = {sha256(self.document()).hexdigest()}
        for target in self.about["targets"].values():
            parity = target["parity"]
            named |= {target["sha256"], parity["sha256"]}
            named |= {part["sha256"] for part in parity.get("parts", {}).values()}
            named |= {delta["sha256"] for delta in target.get("deltas", ())}
            named |= {target["weights"]["sha256"]} if "weights" in target else set()
        return named


@dataclass(frozen=True)
class Channel:
    """A model's releases, oldest first, and the state of the newest.

    Attributes:
        sequence, revision: The highest numbers that were signed.
        percent: Share of devices that use the newest release.
        halted: No device uses it, because it was found to be bad.
    """

    sequence: int = 0
    revision: int = 0
    percent: int = 0
    halted: bool = False
    releases: tuple[Release, ...] = field(default=())

    @property
    def newest(self) -> Release:
        """The newest release.  Raises PublishRefused if there is none."""
        if not self.releases:
            raise PublishRefused("nothing is published yet", "online edge publish")
        return self.releases[-1]

    @property
    def before(self) -> Release | None:
        """Return the release of devices outside the cohort: the newest one that all had."""
        return _stable(self.releases[:-1])

    def published(self, about: Mapping[str, Any], percent: int) -> Channel:
        """Add a release; ``about`` lacks only the sequence."""
        sequence = self.sequence + 1
        release = Release(sequence, {**about, "sequence": sequence}, whole=percent == 100)
        releases = (*self.releases, release)[-KEEP:]
        if (stable := _stable(self.releases)) is not None and stable not in releases:
            releases = (stable, *releases[1:])
        return Channel(sequence, 0, percent, False, releases)

    def returned(self, about: Mapping[str, Any]) -> Channel:
        """Publish an older release's document as a new one for all devices.

        The present newest release can't be returned to.  Raises PublishRefused if there is none.
        """
        left = (*self.releases[:-1], replace(self.newest, whole=False))
        return replace(self, releases=left).published(about, 100)

    def promoted(self, to: int | None, reports: Reports) -> Channel:
        """Give the newest release to more devices; ``to`` None: the next step.  PublishRefused."""
        newest = self.newest
        if (bad := reports.bad) is not None:
            raise PublishRefused(
                f"release {newest.sequence} {bad}",
                "Take it back: online edge halt; or promote it all the same: --force",
            )
        if self.halted:
            raise PublishRefused(
                f"release {newest.sequence} is halted", "Publish another: online edge publish"
            )
        if to is None:
            to = next((step for step in STEPS if step > self.percent), 100)
        if not self.percent <= to <= 100:
            raise PublishRefused(
                f"release {newest.sequence} already goes to {self.percent} % of the devices, "
                f"not back to {to} %",
                "online edge halt takes it back from all of them",
            )
        newest = replace(newest, whole=to == 100)
        releases = (*self.releases[:-1], newest)
        return replace(self, revision=self.revision + 1, percent=to, releases=releases)

    def stopped(self) -> Channel:
        """Withdraw the newest release: devices use the previous one.  Raises PublishRefused."""
        newest = self.newest
        if self.before is None:
            raise PublishRefused(
                f"there is no release before {newest.sequence} that devices could use",
                "Publish a better one: online edge publish",
            )
        releases = (*self.releases[:-1], replace(newest, whole=False))
        return replace(self, revision=self.revision + 1, percent=0, halted=True, releases=releases)

    def again(self) -> Channel:
        """The same state with a new revision, to be signed by another key or for a longer time."""
        return replace(self, revision=self.revision + 1)

    def named(self, sequence: int | None) -> Release:
        """The release to return to; None: the last one that all devices had.  PublishRefused."""
        if sequence is None:
            release = self.before
        else:
            release = next((r for r in self.releases[:-1] if r.sequence == sequence), None)
        if release is None:
            known = ", ".join(str(r.sequence) for r in self.releases[:-1]) or "none"
            wanted = "that all devices had" if sequence is None else str(sequence)
            raise PublishRefused(f"no older release {wanted} is kept", f"Kept: {known}")
        return release

    def head(self, now: float, valid_s: float) -> dict[str, Any]:
        """The manifest to sign.  Raises PublishRefused if nothing is published."""
        newest, before = self.newest, self.before
        cohort: dict[str, Any] = {"percent": self.percent}
        if self.halted:
            cohort["halted"] = True
        made = {
            **newest.about,
            "revision": self.revision,
            "created": round(now, 3),
            "expires": round(now + valid_s, 3),
            "cohort": cohort,
        }
        if before is not None and self.percent < 100:
            document = before.document()
            made["before"] = {
                "sequence": before.sequence,
                "size": len(document),
                "sha256": sha256(document).hexdigest(),
            }
        return made


def _stable(releases: tuple[Release, ...]) -> Release | None:
    return next((r for r in reversed(releases) if r.whole), None)
