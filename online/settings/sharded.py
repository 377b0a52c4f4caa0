"""Refuses settings and commands that a model with several parameter servers does not support."""

from __future__ import annotations

from typing import TYPE_CHECKING

from online.errors import StartRefused

if TYPE_CHECKING:
    from online.settings.model import ModelSettings


def check_shards(model: ModelSettings) -> None:
    """Refuse settings that need the state of the whole model in one process.  Raises ValueError."""
    if model.shards == 1:
        return
    given = {
        "learn: background": model.learn == "background",
        f"sync.merge: {model.sync.merge}": model.sync.merge in ("ordered", "overlay", "lagging"),
        "sync.share_tables": model.sync.share_tables,
        "challenger": model.challenger is not None,
        "devices": model.devices is not None,
        "drift.on_rise: relearn": model.drift.on_rise == "relearn",
        "triggers.on_trigger: forget": model.triggers.on_trigger == "forget",
    }
    if conflicts := [name for name, there in given.items() if there]:
        raise ValueError(
            f"shards: {model.shards} servers hold a part of the model each, and {conflicts[0]} "
            "needs all of it in one: leave one of the two out"
        )


def check_whole(model: ModelSettings, what: str) -> None:
    """Refuse an action that reads one server's snapshots as the whole model; StartRefused."""
    if model.shards > 1:
        raise StartRefused(
            f"model {model.name} has {model.shards} parameter servers, each with snapshots of its "
            f"part: {what} needs a model with one",
            f"Let it have one first: online models reshard {model.name} --shards 1; or stop it, "
            "and start it with `shards: 1`",
        )
