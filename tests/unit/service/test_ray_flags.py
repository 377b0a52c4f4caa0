"""Flags of Ray and HAProxy: what the service relies on, and what the machine allows."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import pytest

from online.client.calls import _MAYBE_RECORDED
from online.service.on_ray.ray_flags import ray_flags
from online.settings.config import load

MAXCONN = "RAY_SERVE_HAPROXY_MAXCONN"


def flags(tmp_path: Path, cluster: str = "local", *, haproxy: bool = True) -> dict[str, str]:
    return ray_flags(load(None, {"cluster": cluster}, {}), tmp_path, 20_000, haproxy=haproxy)


@pytest.mark.parametrize("files", [1_024, 4_096, 20_000, 65_536, 1_048_576, resource.RLIM_INFINITY])
def test_haproxy_holds_what_open_files_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_024, files))
    most = int(flags(tmp_path)[MAXCONN])
    assert 100 <= most <= 20_000
    if files == resource.RLIM_INFINITY or files >= 65_536:
        assert most == 20_000
    else:
        assert 2.5 * most + 100 <= files, "it would not start"
        assert most >= 0.3 * files - 100


def test_this_ray_reads_its_flags(tmp_path: Path) -> None:
    """It says nothing about a flag that it does not know."""
    import ray

    known = (Path(ray.__file__).parent / "_raylet.so").read_bytes()
    own = [name for name in flags(tmp_path) if re.match("RAY_[a-z]", name)]
    assert len(own) >= 5
    assert [name for name in [*own, "RAY_no_such_flag"] if name.encode() not in known] == [
        "RAY_no_such_flag"
    ]


def test_callers_have_so_long(tmp_path: Path) -> None:
    found = flags(tmp_path)
    assert found["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "60"
    lines = found["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"].splitlines()
    assert [line.strip() for line in lines][:2] == ["leastconn", "timeout http-request 10s"]


def test_without_any_replica_the_balancer_says_so_and_when_to_come_again(tmp_path: Path) -> None:
    line = flags(tmp_path)["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"].splitlines()[2]
    before, body, after = re.split(r'(?<!\\)"', line.strip())
    assert before == "http-error status 503 content-type application/json string "
    assert after == " hdr Retry-After 5"
    assert set(json.loads(body.replace('\\"', '"'))["error"]) == {
        "code",
        "message",
        "field",
        "hint",
    }


def test_what_an_ended_replica_was_answering_may_be_recorded_and_is_a_503(tmp_path: Path) -> None:
    """Serve's own would be a 500 in plain text, as of a bug."""
    found = flags(tmp_path)
    line = found["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"].splitlines()[3]
    before, body, _ = re.split(r'(?<!\\)"', line.strip())
    assert before == "http-error status 502 content-type application/json string "
    error = json.loads(body.replace('\\"', '"'))["error"]
    assert error["code"] == "replica_ended"
    assert error["code"] in _MAYBE_RECORDED
    lines = [line.strip() for line in found["RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"].splitlines()]
    assert "http-after-response set-status 503 if { status 502 }" in lines


def test_the_balancer_sends_no_line_about_a_good_answer(tmp_path: Path) -> None:
    lines = flags(tmp_path)["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"].splitlines()
    assert "option dontlog-normal" in [line.strip() for line in lines]


def test_a_ray_of_our_own_asks_for_a_new_token(tmp_path: Path) -> None:
    first, second = flags(tmp_path), flags(tmp_path, haproxy=False)
    assert first["RAY_AUTH_MODE"] == second["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert "RAY_AUTH_TOKEN" not in flags(tmp_path, "auto"), "a cluster that is joined has its own"


def test_what_only_asks_is_asked_again_and_feedback_never(tmp_path: Path) -> None:
    found = flags(tmp_path)
    assert "empty-response" in found["RAY_SERVE_HAPROXY_RETRY_ON"]
    lines = [line.strip() for line in found["RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"].splitlines()]
    (once,) = (line for line in lines if "disable-l7-retry" in line)
    assert once.partition(" unless ")[2] == (
        "{ method GET HEAD } || { path_end /predict } || { path_end /infer }"
    )
    assert lines[-1] == "default-server", "Serve's next word is one of its options"


@pytest.mark.parametrize(("start_wait_s", "look_s"), [(180, 60), (600, 200), (5, 5)])
def test_a_balancer_that_begins_slowly_has_as_long_as_a_start_of_all(
    tmp_path: Path, start_wait_s: float, look_s: float
) -> None:
    settings = load(None, {"start_wait_s": start_wait_s}, {})
    found = ray_flags(settings, tmp_path, 20_000, haproxy=True)
    assert float(found["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"]) == look_s
    from ray.serve._private import constants

    looks = constants.PROXY_HEALTH_CHECK_UNHEALTHY_THRESHOLD
    assert looks * look_s >= float(found["RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S"])
