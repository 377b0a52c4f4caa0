"""Settings of replicas that do not hold all rows of a model's table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from online.settings.tree import Tree

if TYPE_CHECKING:
    from online.settings.model import ModelSettings


class Cache(Tree):
    """How many rows of the model's table a replica holds, and how long it waits for others."""

    switch = "rows"

    rows: int | None = Field(
        None,
        ge=100,
        description="rows of a table held in each replica, those used most; others are fetched "
        "from the parameter server; none: all are held",
    )
    wait_ms: float = Field(
        0,
        ge=0,
        le=1_000,
        description="how long a prediction waits for rows that are not held; 0: it is answered "
        "at once, without them",
    )
    learn_wait_ms: float = Field(
        1_000,
        ge=1,
        le=10_000,
        description="how long events wait for their rows before they are learned without them",
    )


def check_cache(model: ModelSettings) -> None:
    """Refuse settings under which rows cannot be fetched.  Raises ValueError."""
    if model.cache.rows is None:
        return
    given = {
        f"shards: {model.shards}": model.shards > 1,
        "sync.share_tables": model.sync.share_tables,
        "learn: background": model.learn == "background",
        f"sync.merge: {model.sync.merge}": model.sync.merge in ("ordered", "overlay", "lagging"),
        "replay": model.replay.on,
    }
    if found := [name for name, there in given.items() if there]:
        raise ValueError(
            f"cache.rows: {model.cache.rows} rows are held in a replica, and {found[0]} needs all "
            "of them: leave one of the two out"
        )
