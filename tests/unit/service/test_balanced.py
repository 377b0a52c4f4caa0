"""When `ready` may be said: HAProxy has every replica, and its last reload is over."""

from __future__ import annotations

import os
import time
from pathlib import Path

from online.service.service import balanced


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
