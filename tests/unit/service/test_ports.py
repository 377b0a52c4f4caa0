"""Ports of services that are started side by side."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from online.errors import StartRefused
from online.service import embedded, processes
from online.service.on_ray.start_checks import check_files, check_port
from online.service.processes import PortRange, free_port, is_free
from online.settings import config


def test_two_never_have_the_same_ports_though_neither_listens_yet() -> None:
    with closing(PortRange(125, 7)) as one, closing(PortRange(125, 7)) as other:
        apart = abs(one.first - other.first)
        assert apart >= 128
        assert all(is_free("127.0.0.1", port) for port in range(one.first, one.first + 125))


def _of_another_process(seed: int) -> int:
    script = f"from online.service.processes import PortRange; print(PortRange(125, {seed}).first)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return int(run.stdout)


def test_another_process_gets_others_and_its_end_frees_them() -> None:
    with closing(PortRange(125, 7)) as mine:
        assert _of_another_process(7) != mine.first
    # a service of another test may take one of them meanwhile
    assert any(_of_another_process(seed) == _of_another_process(seed) for seed in (7, 8, 9))


def test_ports_that_somebody_listens_on_are_left_out() -> None:
    with closing(PortRange(125, 7)) as mine:
        first = mine.first
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", first + 50))
        listener.listen()
        with closing(PortRange(125, 7)) as mine:
            assert mine.first != first


def test_none_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        monkeypatch.setattr(processes, "_FIRST", held.getsockname()[1] - 127)
        monkeypatch.setattr(processes, "_RANGES", 1)  # the others are for the other tests
        with pytest.raises(StartRefused, match="no free range"):
            PortRange(1, 0)


def test_a_free_port_is_none_that_the_kernel_or_ray_gives_out() -> None:
    assert 5_000 <= free_port() < 10_000


def test_a_port_is_looked_at_where_the_service_listens() -> None:
    if not socket.has_ipv6:
        pytest.skip("there is no IPv6 here")
    with socket.socket(socket.AF_INET6) as listener:
        try:
            listener.bind(("::1", 0))
        except OSError:
            pytest.skip("there is no ::1 here")
        listener.listen()
        taken = listener.getsockname()[1]
        assert not is_free("::1", taken)
    assert is_free("::1", taken)


def test_an_address_of_another_machine_is_not_called_taken(tmp_path: Path) -> None:
    settings = config.load(None, {"state_dir": tmp_path, "port": 8000}, {})
    for host in ("192.0.2.1", "no.such.host.example"):
        with pytest.raises(StartRefused, match="can't be listened on"):
            check_port(settings.model_copy(update={"host": host}))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(StartRefused, match=rf"is taken by process {os.getpid()} \(.+\)"):
            check_port(settings.model_copy(update={"port": port}))
        with pytest.raises(StartRefused, match=rf"in use by process {os.getpid()} \(.+\)"):
            embedded._Http("127.0.0.1", port).open()
    check_port(settings.model_copy(update={"port": 0, "host": "192.0.2.1"}))


@pytest.mark.parametrize(("files", "starts"), [(64, False), (128, True)])
def test_a_service_that_could_take_no_connection_does_not_start(
    monkeypatch: pytest.MonkeyPatch, files: int, *, starts: bool
) -> None:
    """As many files as are left for journal and snapshots would be all there are."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, 4096))
    front = embedded._Http("127.0.0.1", 0)
    if starts:
        front.open()
        front.close()
    else:
        with pytest.raises(StartRefused, match="may open 64 files") as refused:
            front.open()
        assert "ulimit -n" in str(refused.value)


@pytest.mark.parametrize(("hard", "starts"), [(511, False), (512, True)])
def test_a_service_whose_balancer_could_not_start_does_not_start(
    monkeypatch: pytest.MonkeyPatch, hard: int, *, starts: bool
) -> None:
    """HAProxy raises its own limit, so only the hard one counts."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (128, hard))
    if starts:
        check_files()
    else:
        with pytest.raises(StartRefused, match="may open 511 files"):
            check_files()
