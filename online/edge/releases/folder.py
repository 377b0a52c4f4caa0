"""The folder that a model's devices are served from; each file is complete or absent.

=================== ===========================================================================
``head``            64 bytes of signature and the manifest, replaced atomically
``roots.json``      the chain of key lists (:mod:`online.edge.releases.roots`)
``files/SHA-256``   packs, golden rows, deltas, and documents of older releases
``channel.json``    the list of releases; never served
``reports/SEQUENCE`` reports of devices on a release, one per line
``lock``            held by a publisher
=================== ===========================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from online.edge import manifest
from online.edge.errors import PublishRefused
from online.edge.releases.channel import (
    COMPARED_LEAST,
    DIFFER_SHARE,
    KEEP,
    Channel,
    Release,
    Reports,
)
from online.edge.targets import golden
from replay.durable import sync

FILE_BYTES_MAX: Final = 8 << 20
"""Largest published file, in bytes."""

SIGNATURE_BYTES: Final = 64

REPORTS_BYTES_MAX: Final = 1 << 20
"""Largest file of reports on one release: some 20,000 devices.  Further ones are not counted."""


class Folder:
    """The folder of one model's releases; created by the first publication."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the publisher's lock.  Raises PublishRefused if another process holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PublishRefused(
                    f"another command publishes in {self.path}", "Wait for it to end"
                ) from None
            yield

    def channel(self) -> Channel:
        """Return the published channel; an empty one if nothing is published."""
        try:
            made = json.loads((self.path / "channel.json").read_bytes())
        except FileNotFoundError:
            return Channel()
        releases = tuple(
            Release(one["about"]["sequence"], one["about"], one["whole"])
            for one in made["releases"]
        )
        return Channel(
            made["sequence"], made["revision"], made["percent"], made["halted"], releases
        )

    def file(self, digest: str) -> bytes:
        """A published file by its hash.  Raises FileNotFoundError."""
        return (self.path / "files" / digest).read_bytes()

    def newest_pack(self) -> bytes | None:
        """The edgepack of the newest release; None if it has none."""
        releases = self.channel().releases
        target = releases[-1].about["targets"].get("edgepack") if releases else None
        return None if target is None else self.file(target["sha256"])

    def golden_rows(self, origin: str) -> tuple[list[str], tuple[Mapping[str, Any], ...]] | None:
        """Names of the features, and the golden rows of the newest release.

        None if there are none of this ``origin``, or if every stored release has them: callers'
        rows must not be kept for ever.
        """
        releases = self.channel().releases
        had = [_golden_rows(release) for release in releases]
        if not had or had[-1] is None or had[-1][0] != origin or had.count(had[-1]) >= KEEP:
            return None
        return list(releases[-1].about["features"]), golden.rows_of(self.file(had[-1][1]))

    def head(self) -> tuple[bytes, bytes]:
        """The manifest's bytes and their signature.  Raises FileNotFoundError."""
        data = (self.path / "head").read_bytes()
        return data[SIGNATURE_BYTES:], data[:SIGNATURE_BYTES]

    def report(
        self, sequence: int, device: str, outcome: str, compared: int = 0, differ: int = 0
    ) -> bool:
        """Record a device's report on the newest release; returns False if it is not counted.

        Parameters:
            asked: Rows that both the release and the service have predicted.
            differ: Those of them with different labels.
        """
        try:
            if json.loads(self.head()[0])["sequence"] != sequence:
                return False
        except FileNotFoundError:
            return False
        path = self.path / "reports" / str(sequence)
        path.parent.mkdir(exist_ok=True)
        line = json.dumps([device, outcome, compared, differ]).encode() + b"\n"
        with path.open("ab", buffering=0) as file:  # one write per line, so lines do not mix
            if file.tell() + len(line) > REPORTS_BYTES_MAX:
                return False
            file.write(line)
        return True

    def reports(self, sequence: int) -> Reports:
        """Count the reports on a release; each device counts once, with its last report."""
        try:
            lines = (self.path / "reports" / str(sequence)).read_bytes().splitlines()
        except FileNotFoundError:
            return Reports()
        reports: dict[str, list[Any]] = {}
        for line in lines:
            with contextlib.suppress(ValueError):  # a part of a line: the disk was full
                device, *rest = json.loads(line)
                reports[device] = [*rest, 0, 0][:3]  # older lines have no counts
        failed = sum(outcome == "failed" for outcome, _, _ in reports.values())
        counts = [
            (compared, differ)
            for _, compared, differ in reports.values()
            if compared >= COMPARED_LEAST
        ]
        differing = sum(differ > DIFFER_SHARE * compared for compared, differ in counts)
        return Reports(len(reports) - failed, failed, len(counts), differing)

    def standing(self) -> dict[str, Any]:
        """State of the releases, newest first, as plain data for pages and histories."""
        channel = self.channel()
        before, reports = channel.before, asdict(self.reports(channel.sequence))
        with contextlib.suppress(FileNotFoundError):
            expires = json.loads(self.head()[0])["expires"]
            return {
                "sequence": channel.sequence,
                "revision": channel.revision,
                "percent": channel.percent,
                "halted": channel.halted,
                "before": None if before is None else before.sequence,
                "expires": expires,
                "reports": reports,
                "releases": [
                    _release_data(release, channel) for release in reversed(channel.releases)
                ],
            }
        return {"sequence": 0, "releases": []}

    def publish(
        self,
        channel: Channel,
        head: Mapping[str, Any],
        key: Ed25519PrivateKey,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write a channel and its head; call it within :meth:`locked`.

        The channel is written before the head, so that no sequence is used for two heads even after
        an interruption.
        """
        documents = [release.document() for release in channel.releases]
        made = {**(files or {}), **{sha256(data).hexdigest(): data for data in documents}}
        for digest, data in made.items():
            if len(data) > FILE_BYTES_MAX:
                raise PublishRefused(
                    f"a file has {len(data)} bytes, at most {FILE_BYTES_MAX} are published",
                    "Publish a smaller model",
                )
            if not (self.path / "files" / digest).exists():
                write(self.path / "files" / digest, data)
        state = {
            "sequence": channel.sequence,
            "revision": channel.revision,
            "percent": channel.percent,
            "halted": channel.halted,
            "releases": [{"about": r.about, "whole": r.whole} for r in channel.releases],
        }
        write(self.path / "channel.json", json.dumps(state).encode())
        data, signature = manifest.sign(head, key)
        write(self.path / "head", signature + data)
        self._remove_unnamed(channel)

    def _remove_unnamed(self, channel: Channel) -> None:
        named = set().union(*(release.files() for release in channel.releases))
        for file in (self.path / "files").iterdir():
            if file.name not in named:
                file.unlink(missing_ok=True)
        for report in (self.path / "reports").glob("*"):
            if report.name not in {str(release.sequence) for release in channel.releases}:
                report.unlink(missing_ok=True)


def releases_in(state_dir: Path) -> Callable[[str], dict[str, Any]]:
    """Return a function from a model's name to the state of its releases in a state folder."""
    return lambda model: Folder(state_dir / "edge" / model).standing()


def _release_data(release: Release, channel: Channel) -> dict[str, Any]:
    """One release as plain data: its origin, quality, and users."""
    about, before, percent = release.about, channel.before, channel.percent
    fresh = about.get("freshness", {})
    state = "kept"
    if release.sequence == channel.sequence:
        state = "halted" if channel.halted else "everybody" if percent == 100 else "some"
    elif before is not None and release.sequence == before.sequence and percent < 100:
        state = "the others"
    return {
        "sequence": release.sequence,
        "state": state,
        "version": ".".join(map(str, fresh.get("version", ()))) or None,
        "snapshot_at": fresh.get("snapshot_at"),
        "events": fresh.get("events"),
        "quality": fresh.get("quality"),
        "rewrite": fresh.get("rewrite"),
        "targets": {name: target["size"] for name, target in about["targets"].items()},
    }


def _golden_rows(release: Release) -> tuple[str, str] | None:
    """Origin of a release's golden rows, and their hash; None without any."""
    parity = release.about["targets"].get("edgepack", {}).get("parity", {})
    return (parity["origin"], parity["parts"]["rows"]["sha256"]) if "parts" in parity else None


def write(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file atomically and durably; ``mode``: permissions, regardless of the umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode or 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        part.replace(path)
    except BaseException:  # a full disk, or Ctrl-C: remove the partial file
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)
