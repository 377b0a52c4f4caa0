"""When `ready` may be said: HAProxy has every replica, and its last reload is over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest

from online.service.on_ray import balancer
from online.service.on_ray.balancer import balanced


def _write(folder: Path, replicas: int, age_s: float) -> None:
    file = folder / "haproxy.cfg"
    lines = [f"    server SERVE_REPLICA_{i} 127.0.0.1:{9000 + i} check" for i in range(replicas)]
    file.write_text("\n".join([*lines, "    server SERVE_PROXY_fallback 127.0.0.1:1 check backup"]))
    at = time.time() - age_s
    os.utime(file, (at, at))


def test_serves_own_proxy_has_no_configuration(tmp_path: Path) -> None:
    assert balanced(tmp_path, 2)


def test_a_replica_is_missing(tmp_path: Path) -> None:
    (node := tmp_path / "node").mkdir()
    _write(node, 1, age_s=60)
    assert not balanced(tmp_path, 2)
    assert balanced(tmp_path, 1)


def test_a_reload_has_just_begun(tmp_path: Path) -> None:
    (node := tmp_path / "node").mkdir()
    _write(node, 2, age_s=0)
    assert not balanced(tmp_path, 2)
    _write(node, 2, age_s=60)
    assert balanced(tmp_path, 2)


def test_the_process_before_still_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (node := tmp_path / "node").mkdir()
    _write(node, 2, age_s=2)
    for ages_s, ready in (
        ([30.0], False),  # a machine at work starts the next one later
        ([0.01, 30.0], False),
        ([0.5, 30.0], False),
        ([1.5, 30.0], True),  # callers are connected to the one before, which lets them finish
        ([0.5], True),
        ([], True),
    ):
        monkeypatch.setattr(balancer, "_ages_s", lambda _, found=ages_s: found)
        assert balanced(tmp_path, 2) is ready, ages_s


def test_what_answers_without_a_replica_is_still_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balancer, "_ages_s", lambda _: [0.5])
    _write(tmp_path, 1, age_s=2)
    file = tmp_path / "haproxy.cfg"
    file.write_text(file.read_text().partition("    server SERVE_PROXY")[0])
    at = time.time() - 2
    os.utime(file, (at, at))
    assert not balanced(tmp_path, 1)
    os.utime(file, (at - 10, at - 10))
    assert balanced(tmp_path, 1)


def test_a_process_with_the_configuration_is_found_and_its_age(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    assert balancer._ages_s(str(file)) == []
    begun = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", "input()", str(file)], stdin=PIPE) as process:
        (age_s,) = balancer._ages_s(str(file))
        assert 0 <= age_s <= time.monotonic() - begun + 0.02
        process.kill()
