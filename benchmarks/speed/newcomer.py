"""Somebody has a model and wants an address: what that takes here, with LitServe, with BentoML.

Each serves the same river pipeline, as its own first page would have it written, from a folder that
has nothing else in it.  The peers are installed in an environment of their own.  They answer; they
do not learn, and nothing that is sent to them is kept.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import psutil
import typer

from benchmarks.commands.table import AsJson, app, show
from benchmarks.fixtures.service import own_environment
from online.service.processes import end, free_port
from online.settings import config

WAIT_S: Final = 60.0
_LOOK_S: Final = 0.02
_QUIET_S: Final = 2.0
_SHOWN: Final = 110  # characters of an answer

_OURS: Final = {
    "model.py": """\
from river import linear_model, preprocessing

model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
"""
}
_DECLARED: Final = {
    **_OURS,
    "online.yaml": """\
cluster: embedded
models:
  - name: model
    task: binary
    learner: model.py:model
    features: {amount: number, age: number}
    strict: true
""",
}
_LITSERVE: Final = {
    "server.py": """\
import sys

import litserve as ls
from river import linear_model, preprocessing


class Model(ls.LitAPI):
    def setup(self, device):
        self.model = preprocessing.StandardScaler() | linear_model.LogisticRegression()

    def decode_request(self, request):
        return request["features"]

    def predict(self, features):
        return self.model.predict_proba_one(features)

    def encode_response(self, shares):
        return {str(label): share for label, share in shares.items()}


if __name__ == "__main__":
    server = ls.LitServer(Model(), accelerator="cpu")
    server.run(port=int(sys.argv[1]), generate_client_file=False)
"""
}
_BENTOML: Final = {
    "service.py": """\
import bentoml
from river import linear_model, preprocessing


@bentoml.service
class Model:
    def __init__(self) -> None:
        self.model = preprocessing.StandardScaler() | linear_model.LogisticRegression()

    @bentoml.api
    def predict(self, features: dict[str, float]) -> dict[str, float]:
        shares = self.model.predict_proba_one(features)
        return {str(label): share for label, share in shares.items()}
"""
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One project's way to an address.

    Attributes:
        files: By name, all that has to be written.
        command: Starts it in the folder of the files; ``{port}`` is put in.
        path: Of a prediction.
        python: Runs the command; None: this one.
    """

    what: str
    files: Mapping[str, str]
    command: tuple[str, ...]
    path: str
    python: Path | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """The medians of one project.

    ``lines``: written ones that are not empty, of all files; ``first_answer_s``: from the command
    to the first answered prediction; ``memory_mb``: proportional memory of all of its processes;
    ``misspelt_field``: what ``feature`` for ``features`` is answered; ``misspelt_name``: what
    ``amuont`` for ``amount``, a feature, is.
    """

    what: str
    version: str
    files: int
    lines: int
    first_answer_s: float
    memory_mb: float
    processes: int
    learns: bool
    misspelt_field: str
    misspelt_name: str


def recipes(peers: Path | None) -> list[Recipe]:
    """The ways that are compared; ``peers``: the Python of their environment; None: ours only."""
    ours = ("-m", "online", "serve")
    path = "/v1/models/model/predict"
    found = [
        Recipe("this project", _OURS, (*ours, "model.py", "--port", "{port}"), path),
        Recipe("declared", _DECLARED, (*ours, "online.yaml", "--port", "{port}"), path),
    ]
    if peers is not None:
        bento = ("-m", "bentoml", "serve", "service:Model", "--port", "{port}")
        found += [
            Recipe("LitServe", _LITSERVE, ("server.py", "{port}"), "/predict", peers),
            Recipe("BentoML", _BENTOML, bento, "/predict", peers),
        ]
    return found


def run(peers: Path | None, *, runs: int = 5) -> list[Line]:
    """Start each in turn, ``runs`` times, and ask it."""
    chosen = recipes(peers)
    seen: dict[str, list[_Seen]] = {one.what: [] for one in chosen}
    for _ in range(runs):
        for one in chosen:
            seen[one.what].append(_look(one))
    return [_line(one, seen[one.what]) for one in chosen]


@dataclass(frozen=True, slots=True)
class _Seen:
    first_s: float
    memory_mb: float
    processes: int
    field: str
    name: str


def _line(one: Recipe, seen: list[_Seen]) -> Line:
    written = [line for text in one.files.values() for line in text.splitlines() if line.strip()]
    ours = one.python is None
    return Line(
        one.what, _version(one), len(one.files), len(written),
        statistics.median(s.first_s for s in seen),
        statistics.median(s.memory_mb for s in seen),
        seen[-1].processes, ours, seen[-1].field, seen[-1].name,
    )  # fmt: skip


def _version(one: Recipe) -> str:
    names = {"LitServe": "litserve", "BentoML": "bentoml"}
    if one.what not in names:
        from online import __version__

        return __version__
    script = f"from importlib.metadata import version; print(version({names[one.what]!r}))"
    done = subprocess.run(
        [str(one.python), "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _look(one: Recipe) -> _Seen:
    row = {"amount": 1.5, "age": 30.0}
    misspelt = {"amuont": 1.5, "age": 30.0}
    with _started(one) as (process, client, first_s):
        field = _said(client.post(one.path, json={"feature": row}))
        name = _said(client.post(one.path, json={"features": misspelt}))
        time.sleep(_QUIET_S)
        all_of = [process, *process.children(recursive=True)]
        memory = 0.0
        for each in all_of:
            with contextlib.suppress(psutil.Error):
                memory += each.memory_full_info().pss / 1e6
    return _Seen(first_s, memory, len(all_of), field, name)


@contextlib.contextmanager
def _started(one: Recipe) -> Iterator[tuple[psutil.Process, httpx.Client, float]]:
    """The process, a client of it, and the seconds until it has answered a prediction."""
    with tempfile.TemporaryDirectory(prefix="online-newcomer-") as name:
        for file, text in one.files.items():
            (Path(name) / file).write_text(text, encoding="utf-8")
        port = free_port()
        python = sys.executable if one.python is None else str(one.python)
        words = [python, *(word.format(port=port) for word in one.command)]
        begun_s = time.monotonic()
        process = subprocess.Popen(
            words, cwd=name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=own_environment() if one.python is None else config.environment(),
        )  # fmt: skip
        watched = psutil.Process(process.pid)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S) as client:
                body = {"features": {"amount": 1.5, "age": 30.0}}
                _until_answered(process, client, one.path, body)
                yield watched, client, time.monotonic() - begun_s
        finally:
            left = watched.children(recursive=True) if process.poll() is None else []
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            end([*left, watched] if process.poll() is None else left)


def _until_answered(
    process: subprocess.Popen[bytes], client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode} before its first answer")
        with contextlib.suppress(httpx.TransportError):
            if client.post(path, json=body).status_code == 200:
                return
        time.sleep(_LOOK_S)
    raise RuntimeError(f"no answer within {WAIT_S:g} s")


def _said(answer: httpx.Response) -> str:
    """Status and text of an answer, in one short line."""
    text = " ".join(answer.text.split())
    try:
        found = answer.json()
        if isinstance(found, dict) and isinstance(error := found.get("error"), dict):
            text = f"{error.get('field')}: {error.get('message')}. {error.get('hint')}"
        elif isinstance(found, dict) and {"error", "detail"} & found.keys():
            text = json.dumps(found)
        elif answer.status_code == 200:
            text = "an answer"
    except ValueError:
        pass
    return f"{answer.status_code} {text[:_SHOWN]}".strip()


@app.command("newcomer")
def newcomer(
    peers: Annotated[
        Path | None, typer.Option(help="Python of an environment with litserve, bentoml and river")
    ] = None,
    runs: Annotated[int, typer.Option(help="starts of each", min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """Files, lines, seconds to the first answer, memory, and what a typo is answered.

    Beside LitServe and BentoML, which `--peers` names; without it this project alone.

    Example: python -m benchmarks newcomer --peers ../peers/bin/python
    """
    show("newcomer", run(peers, runs=runs), as_json=as_json)
