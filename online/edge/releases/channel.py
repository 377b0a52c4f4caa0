"""A channel says which releases a model's devices use, and how many devices take the newest.

The head manifest is the newest release, and says which devices take it (``cohort``) and which
release the others keep (``before``, by hash).  Two numbers order heads: ``sequence`` counts
releases, ``revision`` what was said of one.  A device never follows a lower pair.

A device decides by itself, by a hash of its own id and the sequence: it belongs to the first
percents of one release and to the last of another, and tells nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Final

from online.edge.errors import PublishRefused
from online.edge.manifest import canonical

STEPS: Final = (1, 10, 50, 100)
"""Percents of the devices that a release goes to, one step a promotion."""

KEEP: Final = 8
"""Releases whose files are kept, to go back to."""

BUCKETS: Final = 10_000

FAILED_LEAST, FAILED_SHARE = 3, 0.05
"""Devices that must have failed, and their share of those that have reported, to halt a release."""

COMPARED_LEAST: Final = 20
"""Rows that release and service must both have answered on a device, to say how they differ."""

DIFFER_SHARE: Final = 0.2
"""Of a device's rows with another label: the device differs.  The service learns on meanwhile."""

DIFFERING_LEAST, DIFFERING_SHARE = 3, 0.1
"""Devices that must differ, and their share of those that compared, to halt a release."""


def bucket(device: str, sequence: int) -> int:
    """Where a device stands among 10,000 for a release."""
    digest = sha256(f"{device}:{sequence}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % BUCKETS


@dataclass(frozen=True, slots=True)
class Reports:
    """These counts say what devices report of a release.

    Attributes:
        used, failed: Devices that use it, and on which it did not pass its test.
        compared, differing: Devices that asked the service for :data:`COMPARED_LEAST` of the same
            rows, and those on which the labels differ.
    """

    used: int = 0
    failed: int = 0
    compared: int = 0
    differing: int = 0

    @property
    def bad(self) -> str | None:
        """Why it is not to go on; None if it may."""
        failed, counted = self.failed, self.used + self.failed
        if failed >= FAILED_LEAST and failed > FAILED_SHARE * counted:
            return f"did not pass its test on {failed} devices, {self.used} use it"
        differing = self.differing
        if differing >= DIFFERING_LEAST and differing > DIFFERING_SHARE * self.compared:
            return f"answers otherwise than the service on {differing} of {self.compared} devices"
        return None


@dataclass(frozen=True)
class Release:
    """A release is one document for devices, and its place in the channel.

    Attributes:
        sequence: 1, 2, 3 …
        about: Its document: what the manifest says but for whom it is.
        whole: It has been given to all devices.
    """

    sequence: int
    about: Mapping[str, Any]
    whole: bool = False

    def document(self) -> bytes:
        """The document's bytes, which the head of a later release names by their hash."""
        return canonical(self.about)

    def files(self) -> set[str]:
        """SHA-256 of every file that the document names, and of itself."""
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
        sequence, revision: The highest that were signed.
        percent: Of the devices that take the newest release.
        halted: None does: it was found to be bad.
    """

    sequence: int = 0
    revision: int = 0
    percent: int = 0
    halted: bool = False
    releases: tuple[Release, ...] = field(default=())

    @property
    def newest(self) -> Release:
        """Raises PublishRefused: there is none."""
        if not self.releases:
            raise PublishRefused("nothing is published yet", "online edge publish")
        return self.releases[-1]

    @property
    def before(self) -> Release | None:
        """Return what devices outside the cohort use: the newest release that all had."""
        return _stable(self.releases[:-1])

    def published(self, about: Mapping[str, Any], percent: int) -> Channel:
        """With a new release; ``about`` lacks the sequence only."""
        sequence = self.sequence + 1
        release = Release(sequence, {**about, "sequence": sequence}, whole=percent == 100)
        kept = (*self.releases, release)[-KEEP:]
        if (stable := _stable(self.releases)) is not None and stable not in kept:
            kept = (stable, *kept[1:])
        return Channel(sequence, 0, percent, False, kept)

    def returned(self, about: Mapping[str, Any]) -> Channel:
        """With an older release's document as a new one, for all; nobody comes back to the newest.

        Raises PublishRefused if nothing is published.
        """
        left = (*self.releases[:-1], replace(self.newest, whole=False))
        return replace(self, releases=left).published(about, 100)

    def promoted(self, to: int | None, reports: Reports) -> Channel:
        """The newest release for more devices; ``to`` None: the next step.  PublishRefused."""
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
        kept = (*self.releases[:-1], newest)
        return replace(self, revision=self.revision + 1, percent=to, releases=kept)

    def stopped(self) -> Channel:
        """The newest release for nobody: devices use the one before.  PublishRefused."""
        newest = self.newest
        if self.before is None:
            raise PublishRefused(
                f"there is no release before {newest.sequence} that devices could use",
                "Publish a better one: online edge publish",
            )
        kept = (*self.releases[:-1], replace(newest, whole=False))
        return replace(self, revision=self.revision + 1, percent=0, halted=True, releases=kept)

    def again(self) -> Channel:
        """The same, to be signed anew: by another key, for a longer time."""
        return replace(self, revision=self.revision + 1)

    def named(self, sequence: int | None) -> Release:
        """The release to go back to; None: what all devices had before.  PublishRefused."""
        if sequence is None:
            found = self.before
        else:
            found = next((r for r in self.releases[:-1] if r.sequence == sequence), None)
        if found is None:
            known = ", ".join(str(r.sequence) for r in self.releases[:-1]) or "none"
            wanted = "that all devices had" if sequence is None else str(sequence)
            raise PublishRefused(f"no older release {wanted} is kept", f"Kept: {known}")
        return found

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
