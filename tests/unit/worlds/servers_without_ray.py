"""What starts parameter servers asks Ray for actors; here a test answers instead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest


def answers_for_ray(
    monkeypatch: pytest.MonkeyPatch,
    begin: Callable[[str], Callable[[], Any]],
    *,
    sharing: Collection[str] = (),
    alone: Collection[str] = (),
    ended: list[str] | None = None,
) -> None:
    """Start each server, in the shared process or in its own, by ``begin`` with its name.

    ``sharing`` and ``alone``: names of those that run already; ``ended`` takes those that end.
    """
    ray = "paramserver.clients.ray_client"

    def start_shared(given: Mapping[str, Any]) -> Callable[[str], Any]:
        handles = {name: begin(name) for name in given}
        return lambda name: handles[name]()

    def leave(names: Collection[str]) -> None:
        if ended is not None:
            ended.extend(names)

    monkeypatch.setattr(f"{ray}.start_shared", start_shared)
    monkeypatch.setattr(f"{ray}.start_or_get", lambda name, *_, shard: begin(name))
    monkeypatch.setattr(f"{ray}.shared", lambda: set(sharing))
    monkeypatch.setattr(f"{ray}.exists", lambda name: name in alone)
    monkeypatch.setattr(f"{ray}.end", leave)
