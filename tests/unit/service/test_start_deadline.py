"""One setting bounds all waits of a start together."""

from __future__ import annotations

import inspect
import pickle
from types import ModuleType

import pytest

from online.errors import StartRefused
from online.service.on_ray import rollout
from online.service.state.changes import changes
from online.service.state.deadline import StartDeadline
from online.settings import config


def test_it_ends_once_for_all_waits() -> None:
    now = [100.0]
    patience = StartDeadline(30.0, lambda: now[0])
    now[0] += 29.5
    assert patience.left_s() == 0.5
    patience.check("nothing")
    now[0] += 1.0
    assert patience.left_s() == 0.0
    with pytest.raises(StartRefused, match="it does not answer; the start gives up after 30 s"):
        patience.check("it does not answer")
    with pytest.raises(StartRefused, match="start_wait_s") as raised:
        patience.check("it does not answer")
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_it_is_a_setting_that_needs_no_restart() -> None:
    usual = config.load(None, {}, {})
    assert usual.start_wait_s == 180
    longer = config.load(None, {"start_wait_s": 600}, {})
    found = changes(usual, longer)
    assert (found.restart, found.rolling, found.scaled) == ((), (), False)


def test_serve_waits_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve has a constant for its proxies: 60 s, which a busy machine does not keep."""
    from ray.serve._private import api, client

    modules: tuple[ModuleType, ...] = (api, client)
    for module in modules:
        monkeypatch.setattr(module, "HTTP_PROXY_TIMEOUT", 60)  # fails if Serve has it no more
    monkeypatch.setattr(client, "CLIENT_POLLING_INTERVAL_S", 1.0)
    rollout.set_proxy_timeout(600.0)
    assert [module.HTTP_PROXY_TIMEOUT for module in modules] == [600.0, 600.0]
    assert client.CLIENT_POLLING_INTERVAL_S == 0.05


def test_serve_can_be_started_without_its_proxies_being_waited_for() -> None:
    """What `serve.start` does, by names that may change with Ray: but for the wait."""
    from ray.serve._private import api

    asked = list(inspect.signature(api._create_controller_and_proxy_refs).parameters)
    assert asked[:5] == [
        "http_options", "grpc_options", "global_logging_config", "global_tracing_config",
        "controller_options",
    ]  # fmt: skip
    text = inspect.getsource(api.serve_start)
    assert "_set_global_client(client)" in text
    assert "ServeControllerClient(controller)" in text
    assert "ray.get(proxy_ready_refs" in text
