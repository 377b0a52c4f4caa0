"""A pytest plugin with the fixture `online_service`, for tests of programs that use the service.

It imports the service only when a test requests the fixture, so other test runs stay fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from online.service.embedded import Embedded


@pytest.fixture
def online_service(tmp_path: Path) -> Iterator[Callable[..., Embedded]]:
    """Serve models in this process, with temporary state folders, until the test ends.

    Call it like `online.serve`: ``online_service(model, name="clicks")``.  Services with different
    names run side by side; the same name and folder again continue from its state.
    """
    import online

    services: list[Embedded] = []

    def serve(model: Any, *, name: str = "model", **given: Any) -> Embedded:
        given.setdefault("state_dir", tmp_path / "online-state" / name)
        service = online.serve(model, name=name, **given)
        services.append(service)
        return service

    yield serve
    for service in reversed(services):
        service.stop()
