"""A world that loses rows, once on the SQLite journal and once on the Redis journal."""

from __future__ import annotations

from pathlib import Path

import pytest
from loss_world import LossWorld, RedisStore, SqliteStore


@pytest.fixture(params=["sqlite", "redis"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> LossWorld:
    """The store is put back to an older copy, or loses rows."""
    if request.param == "sqlite":
        return LossWorld(tmp_path, SqliteStore(tmp_path))
    return LossWorld(tmp_path, RedisStore(request.getfixturevalue("redis_node"), tmp_path.name))
