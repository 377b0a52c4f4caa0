"""A service with one model that chooses, and what its journal says of choices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from online.decide.record import Choice, unpack
from online.service.embedded import Embedded
from online.settings.config import load
from online.settings.places import open_journal
from replay import codec


def quiet(_: str) -> None:
    """Say nothing."""


def settings(**more: Any) -> dict[str, Any]:
    model = {"name": "shop", "task": "choose", **more}
    return {"cluster": "embedded", "port": 0, "models": [model]}


@contextlib.contextmanager
def served(folder: Path, **more: Any) -> Iterator[Embedded]:
    data = {**settings(**more), "state_dir": str(folder / "state")}
    with Embedded(load(None, data, {}), quiet) as service:
        service.start()
        yield service


def choices_of(state: Path) -> dict[str, tuple[Choice, float]]:
    """Choice and reward of each row of the journal, by event id."""
    given = load(None, {**settings(), "state_dir": str(state)}, {})
    found: dict[str, tuple[Choice, float]] = {}
    with contextlib.closing(open_journal(given)) as journal:
        for row in journal.follow("shop", 0, 10_000).rows:
            example = codec.decode(row.payload)
            if example.choice is not None:
                assert isinstance(example.label, float)
                found[row.event_id] = unpack(example.choice), example.label
    return found


def controls_of(state: Path) -> list[Any]:
    """All control rows of the journal."""
    given = load(None, {**settings(), "state_dir": str(state)}, {})
    with contextlib.closing(open_journal(given)) as journal:
        return list(journal.controls("shop", 0))
