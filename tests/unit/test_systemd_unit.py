"""The systemd unit says what the service relies on."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from online.commands.serve import _STOP_S

UNIT = Path(__file__).parents[2] / "deploy" / "online.service"


def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    parser.read_string(UNIT.read_text())
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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_it() -> None:
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, timeout=30
    )
    said = [line for line in checked.stderr.splitlines() if "is not executable" not in line]
    assert not [line for line in said if "online.service" in line], said
