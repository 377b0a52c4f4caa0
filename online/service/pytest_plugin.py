"""The fixture `online_service` for tests of programs that use the service, found by pytest itself.

Nothing is imported before a test asks for the fixture: other runs of pytest do not wait for it.
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
    """Serve a model in this process, with a temporary folder, until the test ends.

    It is called as `online.serve` is: ``online_service(model, name="clicks")``.  Services of
    several names run beside each other; the same name and folder again go on from its state.
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
