"""Reads the rows and a whole snapshot of a service when a campaign of kills is over."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running
from online.rebuild import fsck
from online.settings.config import Settings
from online.settings.places import open_journal
from replay.journal.base import Row

GIVES_UP_S: Final = 240.0
"""A restart takes minutes on a busy machine."""


def journal_rows(settings: Settings, model: str) -> Iterator[Row]:
    """All rows of the model in the journal, in their order."""
    with contextlib.closing(open_journal(settings)) as journal:
        after = 0
        while page := journal.follow(model, after, 10_000).rows:
            after = page[-1].seq
            yield from page


def wait_given(settings: Settings, model: str) -> None:
    """Until no prediction waits for its label or reward any more, or for some minutes."""
    deadline = time.monotonic() + GIVES_UP_S
    while time.monotonic() < deadline:
        with contextlib.closing(open_journal(settings)) as journal:
            if not journal.predicted(model, float("-inf"), time.time() + 1e6, 1).waiting:
                return
        time.sleep(0.2)


def wait_complete(running: Running, settings: Settings, model: str) -> fsck.Findings:
    """Until a published snapshot has every row of the journal, adopted ones too."""
    deadline = time.monotonic() + GIVES_UP_S
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            client = Connection(running.url, token=running.token)
            client.post(f"/v1/models/{model}/snapshots", None)
            client.close()
        findings = fsck.check(settings, model, served=True)
        if (
            not any(one.not_yet for one in (findings, *findings.shards))
            or time.monotonic() > deadline
        ):
            return findings
        time.sleep(0.2)
