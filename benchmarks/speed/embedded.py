"""Measures the price of `online.serve` in a program, by ones that import the same, and answer.

Each is a process of its own, nothing else in it, and they take turns.  Memory is the proportional
one that the kernel tells of the process itself, after fifty requests and two quiet seconds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from benchmarks.commands.table import AsJson, app, verdict
from benchmarks.fixtures.service import own_environment

MORE_MB: Final = 60.0
"""Of memory above a program that imports model, uvicorn and FastAPI."""
FIRST_S: Final = 2.0
"""Of the processor from `online.serve` to the first answer."""

_MODEL: Final = """
import json, os, time
from river import linear_model, preprocessing
model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
row, first = {"a": 1.0}, 0.0
"""
_ALONE: Final = """
import fastapi, uvicorn
model.learn_one(row, True)
"""
_ANSWERS: Final = """
import socket, threading, fastapi, httpx, uvicorn
app = fastapi.FastAPI()
@app.post("/")
async def predict(x: dict) -> dict:
    return model.predict_proba_one(x)
listening = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
threading.Thread(target=server.run, args=([listening],), daemon=True).start()
with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}") as client:
    for _ in range(50):
        client.post("/", json=row).raise_for_status()
"""
_SERVES: Final = """
import tempfile, online
begun = time.process_time()
folder = tempfile.TemporaryDirectory()
service = online.serve(model, name="m", state_dir=folder.name, port=0, say=lambda _: None)
service.model.predict(row)
first = time.process_time() - begun
for _ in range(50):
    service.model.feedback(True, id=service.model.predict(row).id)
"""
_TOLD: Final = """
time.sleep(2)
with open("/proc/self/smaps_rollup") as told:
    sizes = {line.split()[0]: line.split()[1] for line in told if line.endswith("kB\\n")}
print(json.dumps([int(sizes["Pss:"]) * 1024 / 1e6, first]), flush=True)
"""
_PROGRAMS: Final = {
    "imports model, uvicorn, FastAPI": _ALONE,
    "answers": _ANSWERS,
    "online.serve": _SERVES,
}


@dataclass(frozen=True, slots=True)
class Taken:
    """The medians of one program.

    Attributes:
        more_mb: Memory above the program that only imports, in the same turn.
        first_cpu_s: Processor time from `online.serve` to the first answer; 0 for others.
    """

    what: str
    memory_mb: float
    more_mb: float
    first_cpu_s: float

    @property
    def good(self) -> bool:
        """Whether it keeps the bounds."""
        return self.more_mb <= MORE_MB and self.first_cpu_s <= FIRST_S


def run(runs: int = 5) -> list[Taken]:
    """Start each in turn, ``runs`` times."""
    seen: dict[str, list[tuple[float, float]]] = {what: [] for what in _PROGRAMS}
    for _ in range(runs):
        for what, program in _PROGRAMS.items():
            end = "service.stop()" if program is _SERVES else ""
            done = subprocess.run(
                [sys.executable, "-c", f"{_MODEL}{program}{_TOLD}{end}"],
                capture_output=True, text=True, check=True, env=own_environment(), timeout=300,
            )  # fmt: skip
            memory, first = json.loads(done.stdout.splitlines()[-1])
            seen[what].append((memory, first))
    alone = [memory for memory, _ in next(iter(seen.values()))]
    return [
        Taken(
            what,
            statistics.median(memory for memory, _ in all_of),
            statistics.median(
                memory - base for (memory, _), base in zip(all_of, alone, strict=True)
            ),
            statistics.median(first for _, first in all_of),
        )
        for what, all_of in seen.items()
    ]


@app.command("embedded")
def embedded(
    runs: Annotated[int, typer.Option(help="starts of each", min=1)] = 5, as_json: AsJson = False
) -> None:
    """Measure memory and the first answer of `online.serve`, beside programs without it.

    Exits 1 past 60 MB more, or 2 s of the processor.  Example: python -m benchmarks embedded
    """
    found = run(runs)
    raise verdict("in one process", found, as_json=as_json)
