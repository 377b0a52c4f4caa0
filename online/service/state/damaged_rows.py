"""Lets models go on without damaged journal rows, so that the rows behind them are learned."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from typing import Final

from online.errors import ConfigError, StartRefused
from online.rebuild import acceptance
from online.service import processes
from online.service.state.check_state import histories_of
from online.settings.config import Settings
from online.settings.places import open_journal

_PLACE: Final = re.compile(r"([1-9][0-9]{0,17}):([1-9][0-9]{0,17})")


def places_of(words: Sequence[str]) -> list[tuple[int, int]]:
    """Parse ``PARTITION:OFFSET`` arguments into pairs.  Raises ConfigError."""
    matches = [_PLACE.fullmatch(word) for word in words]
    if None in matches:
        wrong = words[matches.index(None)]
        hint = "Write PARTITION:OFFSET, as `online fsck` names it: 3:17 is row 17 of partition 3"
        raise ConfigError("--give-up", f"{wrong!r} names no row", hint)
    return sorted({(int(one[1]), int(one[2])) for one in matches if one is not None})


def give_up(settings: Settings, places: Sequence[tuple[int, int]]) -> list[str]:
    """Let models go on without these rows; returns what was done, as lines.

    Parameters:
        places: Partition and offset of each row.

    Raises:
        StartRefused: A service runs on the state folder, or a row is not damaged.
    """
    owner, lines = processes.Owner(settings.state_dir), []
    try:
        with contextlib.closing(open_journal(settings)) as journal:
            by_model: dict[str, list[tuple[int, int]]] = {}
            for p, offset in places:
                if (partition := journal.partition(p)) is None:
                    problem = f"the journal has no partition {p}"
                    raise StartRefused(problem, "`online fsck` names damaged rows")
                by_model.setdefault(partition.model, []).append((p, offset))
            for model, rows in by_model.items():
                histories = histories_of(settings, model, journal.lineages(model))
                notes = acceptance.give_up(journal, model, histories, rows, time.time())
                named = ", ".join(f"{p}:{offset}" for p, offset in rows)
                lines.append(f"model {model}: given up: {named}; a repeat of one is learned again")
                lines += [
                    f"model {model}: continues from {n.snapshot} (of {n.base})" for n in notes
                ]
    finally:
        owner.release()
    return lines
