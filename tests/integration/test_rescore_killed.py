"""A run whose worker, driver or node is killed goes on where it ended, and gives the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import rescore_world as worlds

from online.service import processes

ROOT = Path(__file__).parents[2]


ROWS, GROUP = 60_000, 500
SHARDS = ROWS // GROUP


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rescore")
    worlds.state_folder(root)
    worlds.write(root / "rows.parquet", worlds.table(ROWS), GROUP)
    return root


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, str]:
    """What a run gives that nobody disturbs."""
    worlds.run([str(place / "rows.parquet")], place / "whole", scored=_scored(place))
    return dict(worlds.digests(place / "whole"))


def _scored(place: Path) -> Any:
    from online.rescore.snapshot import scored
    from online.settings import config

    settings = config.load(place / "online.yaml", {}, {})
    return scored(settings.models[0], settings)


class Command:
    """`online rescore` as a process of its own."""

    def __init__(self, place: Path, output: str) -> None:
        words = ["rescore", "--config", "online.yaml", "--input", str(place / "rows.parquet")]
        words += ["--key", "id", "--output", str(place / output), "--ray", "local", "--json"]
        self.shards = place / output / "runs"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "online", *words], cwd=place, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**worlds.without_tokens(), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def wait_for(self, shards: int) -> None:
        """Until so many shards are written."""
        deadline = time.monotonic() + 300
        while self.process.poll() is None and time.monotonic() < deadline:
            if len(list(self.shards.glob("*/shards/*.parquet"))) >= shards:
                return
            time.sleep(0.002)
        raise AssertionError(f"it ended before shard {shards}: {self.process.communicate()}")

    def kill(self, target: str) -> None:
        """SIGKILL the driver, one of its workers, or the node (raylet and store of names)."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        names = {"worker": ("ray::Scoring",), "node": ("raylet", "gcs_server")}.get(target, ())
        found = [p for p in below if any(" ".join(p.cmdline()).find(n) >= 0 for n in names)]
        if target == "driver":
            found = [psutil.Process(self.process.pid)]
        assert found, [p.cmdline() for p in below]
        for process in found[:1] if target == "worker" else found:
            os.kill(process.pid, signal.SIGKILL)

    def finish(self) -> tuple[int, str, str]:
        """Exit code and what it said."""
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err


def test_resumed_after_sigkill(place: Path, whole: dict[str, str], target: str, after: int) -> None:
    output = f"{target}-{after}"
    first = Command(place, output)
    first.wait_for(after)
    first.kill(target)
    code, out, err = first.finish()
    finished = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in
                (place / output).glob("runs/*/shards/*.parquet")}  # fmt: skip
    if target == "worker":  # another one takes over
        assert code == 0, err
        assert json.loads(out)["scored"] == ROWS
        assert "core_worker" not in err, err  # Ray's own words are nobody's error
    else:
        assert code != 0
        assert not (place / output / "current.json").exists()
        if target == "node":
            assert "to continue where it stopped" in err, err
            assert "Traceback" not in err, err
        second = Command(place, output)
        code, out, err = second.finish()
        assert code == 0, err
        assert json.loads(out)["scored"] == ROWS - GROUP * len(finished)
        for path, seen in finished.items():
            assert (path.stat().st_mtime_ns, path.stat().st_ino) == seen
        assert after <= len(finished) < SHARDS
    assert worlds.digests(place / output) == whole
    run = next((place / output / "runs").iterdir()).name
    private = processes.private_path(place / output / run)
    lines = (" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
    assert not [line for line in lines if str(private) in line]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One is among the usual tests, since each starts Ray once or twice; the others are long."""
    if "target" in metafunc.fixturenames:
        cases = [(t, n) for t in ("worker", "driver", "node") for n in (3, 40, 80)]
        usual, long = [pytest.mark.ray], [pytest.mark.ray, pytest.mark.long]
        metafunc.parametrize(
            ("target", "after"),
            [pytest.param(*c, marks=usual if c == ("worker", 40) else long) for c in cases],
        )
