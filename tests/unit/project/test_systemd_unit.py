"""The systemd unit says what the service relies on."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from online.commands.operate.serve import _STOP_S

DEPLOY = Path(__file__).parents[3] / "deploy"
UNIT, WORKER = DEPLOY / "online.service", DEPLOY / "ray-worker.service"


def service(unit: Path = UNIT) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    parser.read_string(unit.read_text())
    return parser["Service"]


def test_a_stop_is_gentle_and_has_time() -> None:
    unit = service()
    assert unit["KillMode"] == "mixed"  # children that get SIGTERM, too, can't push and seal
    assert float(unit["TimeoutStopSec"]) > _STOP_S + 2


def test_a_dead_head_is_started_again_and_reload_is_sighup() -> None:
    unit = service()
    assert unit["Restart"] == "on-failure"
    assert unit["ExecReload"].split() == ["/bin/kill", "-HUP", "$MAINPID"]
    assert " serve " in unit["ExecStart"]
    assert int(unit["LimitNOFILE"]) >= 65_536


def test_ray_gets_what_it_needs() -> None:
    text = UNIT.read_text()
    assert "AF_NETLINK" in service()["RestrictAddressFamilies"]
    for breaking in ("MemoryDenyWriteExecute", "PrivateDevices", "PrivateNetwork", "ProcSubset"):
        assert breaking not in text


def test_a_worker_that_ray_has_given_up_comes_back_with_its_flags() -> None:
    unit = service(WORKER)
    assert unit["Restart"] == "always", "Ray ends a host that was cut off with code 0, too"
    assert "StartLimitIntervalSec=0" in WORKER.read_text(), "however long the cut"
    command = unit["ExecStart"]
    assert command.index("ray.env") < command.index("ray start") < command.index("--block")
    assert int(unit["LimitNOFILE"]) >= 65_536


@pytest.mark.parametrize("file", [UNIT, WORKER], ids=lambda path: path.name)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_it(file: Path) -> None:
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=120
    )
    said = [line for line in checked.stderr.splitlines() if "is not executable" not in line]
    assert not [line for line in said if file.name in line], said
