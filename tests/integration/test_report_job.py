"""`ray job submit -- online report …` and `… rescore …` on one running Ray head."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
import rescore_world as worlds

import online
from online.rescore.run import pointer
from online.rescore.snapshot import scored
from online.service.processes import PortRange
from online.tables.places import Folder, Location

pytestmark = [pytest.mark.ray, pytest.mark.long]

START_S = 240.0
RAY = Path(sys.executable).with_name("ray")
Submit = Callable[..., str]


@contextlib.contextmanager
def head() -> Iterator[tuple[str, Mapping[str, str]]]:
    """A Ray head of its own: its job address, and the environment that may use it."""
    ports = PortRange(6, 70)
    first = ports.first
    root = str(Path(online.__file__).parents[1])
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": root,
    }
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        command = [
            RAY, "start", "--head", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1",
            f"--port={first}", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={first + 1}", f"--dashboard-agent-listen-port={first + 2}",
            f"--ray-client-server-port={first + 3}", f"--temp-dir={folder}",
            f"--object-store-memory={100 << 20}",
        ]  # fmt: skip
        log = Path(folder) / "start.log"
        with log.open("w") as out:
            started = subprocess.Popen(
                command, env=env, stdout=out, stderr=out, start_new_session=True
            )
        processes: list[psutil.Process] = []
        try:
            address = f"http://127.0.0.1:{first + 1}"
            _wait(address, env["RAY_AUTH_TOKEN"], started, log)
            processes = psutil.Process(started.pid).children(recursive=True)
            yield address, env
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes += psutil.Process(started.pid).children(recursive=True)
            started.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(20)
            _, left = psutil.wait_procs(processes, timeout=10)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if started.poll() is None:
                started.kill()
                started.wait()
            psutil.wait_procs(left, timeout=5)
            ports.close()


def _wait(address: str, token: str, started: subprocess.Popen[bytes], log: Path) -> None:
    """Until it takes jobs."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if started.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(
                f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}, timeout=5
            )
            if answer.status_code == 200:
                return
        time.sleep(0.2)
    pytest.fail(f"the Ray head takes no jobs: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def submitted() -> Iterator[Submit]:
    """Submits a folder with a command to one head for all jobs; what the job has printed."""
    with head() as (address, env):

        def submit(folder: Path, *command: str) -> str:
            job = [str(RAY), "job", "submit", "--address", address, "--working-dir", str(folder)]
            done = subprocess.run(
                [*job, "--", "online", *command], env=env, capture_output=True, text=True,
                timeout=240,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        yield submit


def test_a_report_as_a_job(submitted: Submit, tmp_path: Path) -> None:
    """The job reads what was submitted, its page is where --out says, and it prints its numbers."""
    folder = tmp_path / "work"
    folder.mkdir()
    rng = random.Random(1)
    lines = ["x,label,score"]
    for _ in range(900):
        label = rng.random() < 0.5
        p = 0.9 if (rng.random() < 0.9) == label else 0.1
        lines.append(f"{rng.random()},{int(label)},{p}")
    (folder / "scored.csv").write_text("\n".join(lines) + "\n")
    page = tmp_path / "page.html"
    said = submitted(folder, "report", "--file", "scored.csv", "--json", "--out", str(page))
    printed = next(x for x in said.splitlines() if '"online-report/1"' in x)
    numbers = json.loads(printed[printed.index("{") :])
    assert numbers["verdict"]["state"] == "ok"
    assert numbers["subject"]["rows"] == 900
    assert printed[printed.index("{") :][:200] in page.read_text()


def test_a_table_scored_as_a_job(submitted: Submit, tmp_path: Path) -> None:
    """The job uses the cluster that it was submitted to, and publishes what a run here does."""
    settings = worlds.state_folder(tmp_path / "work")
    table = worlds.table(300)
    worlds.write(tmp_path / "work" / "t.parquet", table)
    output = tmp_path / "out"
    words = ("--input", "t.parquet", "--key", "id", "--output", str(output), "--workers", "1")
    said = submitted(tmp_path / "work", "rescore", *words, "--json")
    printed = next(x for x in said.splitlines() if '"was_published"' in x)
    facts = json.loads(printed[printed.index("{") :])
    assert (facts["scored"], facts["quarantined"], facts["shards"]) == (300, 0, 3)
    run = pointer(Folder(Location(str(output)))).run
    assert run is not None
    assert run.name == facts["run"]
    model = scored(settings.models[0], settings).make()
    shards = sorted((output / "runs" / run.name / "shards").iterdir())
    rows = [row for path in shards for row in pq.read_table(path).to_pylist()]
    assert [row["key"] for row in rows] == [str(i) for i in range(300)]
    for row, x in zip(rows, table.drop_columns(["id"]).to_pylist(), strict=True):
        one = model.predict(x)
        assert abs(row["score"] - one.probabilities[True]) <= 1e-12  # type: ignore[index]
