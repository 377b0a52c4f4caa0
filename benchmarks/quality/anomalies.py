"""Scores of `task: anomaly` on recorded connections, beside the detector of river alone.

KDD Cup 1999, its tenth: the web's and the mail's connections, of which some are attacks, in bursts.
The detector is asked for a block of rows and then learns them, attacks too, without a label: nobody
has told it which they are.  Both get the same blocks, and so much is known only to the judge.

* *logs*: logarithms of duration and of the bytes sent and received, as the literature has it;
* *all*: all 38 numbers of a connection as they were recorded.
"""

from __future__ import annotations

import csv
import gzip
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx

import online
from benchmarks.commands.table import AsJson, Rows, Streams, app, progress, show
from evaluation.errors import StreamUnusable
from online.models.detector import trees
from online.settings.config import data_dir

BLOCK: Final = 50
FILE: Final = ("kdd99_10pct", "kddcup.data_10_percent.gz")
_TEXTS: Final = (1, 2, 3)  # protocol, service and flag
_LOGGED: Final = (0, 4, 5)
STREAMS: Final[dict[str, tuple[str, bool]]] = {
    "web, logs": ("http", True), "web, all": ("http", False),
    "mail, logs": ("smtp", True), "mail, all": ("smtp", False),
}  # fmt: skip
"""Service of the connections, and whether they are three logarithms."""

Row = tuple[dict[str, float], bool]


@dataclass(frozen=True, slots=True)
class Found:
    """One stream in one order.

    Attributes:
        auc, river: How well the scores sort attacks from the rest: of the service's answers, and of
            river's half-space trees behind its scaler over the same blocks.
        told: The status's own figure, from labels that came late.
        above, caught, right: Shares: of rows answered as anomalies, of attacks among which are
            answered so, and of rows answered so that are attacks.
    """

    stream: str
    order: str
    rows: int
    attacks: int
    auc: float
    told: float
    river: float
    above: float
    caught: float
    right: float


def connections(data: Path | None, service: str, *, logs: bool) -> Iterator[Row]:
    """The connections of a service in their order: features, and is it an attack."""
    path = None if data is None else data.joinpath(*FILE)
    if path is None or not path.is_file():
        raise StreamUnusable("kdd99", "it is not there", f"Put {'/'.join(FILE)} in ONLINE_DATA_DIR")
    with gzip.open(path, "rt", encoding="ascii", newline="") as lines:
        for row in csv.reader(lines):
            if row[2] != service:
                continue
            at = _LOGGED if logs else [i for i in range(len(row) - 1) if i not in _TEXTS]
            numbers = {f"f{i}": float(row[i]) for i in at}
            if logs:
                numbers = {name: math.log(x + 0.1) for name, x in numbers.items()}
            yield numbers, row[-1] != "normal."


def area(scores: Sequence[float], attacks: Sequence[bool]) -> float:
    """The share of pairs of an attack and another row that the scores sort; equal ones, half."""
    usual = sorted(s for s, odd in zip(scores, attacks, strict=True) if not odd)
    sorted_so = sum(
        0.5 * (bisect_left(usual, s) + bisect_right(usual, s))
        for s, odd in zip(scores, attacks, strict=True)
        if odd
    )
    return sorted_so / (len(usual) * (len(scores) - len(usual)))


def _blocks(rows: Sequence[Row]) -> Iterator[tuple[int, Sequence[Row]]]:
    for begin in range(0, len(rows), BLOCK):
        yield begin, rows[begin : begin + BLOCK]


def alone(rows: Sequence[Row]) -> list[float]:
    """Scores of river's detector, a block at a time."""
    detector, scores = trees(), []
    for _, block in _blocks(rows):
        scores += [detector.score_one(x) for x, _ in block]
        for x, _ in block:
            detector.learn_one(x)
    return scores


def served(rows: Sequence[Row]) -> tuple[list[float], dict[str, Any]]:
    """Scores that the service answers over HTTP, and its status after all labels have come."""
    scores: list[float] = []
    with (
        TemporaryDirectory(prefix="online-anomalies-") as folder,
        online.serve("anomaly", name="line", state_dir=folder, say=lambda _: None) as service,
        httpx.Client(base_url=f"{service.url}/v1/models/line", timeout=120) as ask,
    ):

        def post(verb: str, body: dict[str, Any]) -> Any:
            return ask.post(verb, json=body).raise_for_status().json()

        for begin, block in _blocks(rows):
            asked = post("predict", {"instances": [x for x, _ in block]})["predictions"]
            scores += [answer["score"] for answer in asked]
            events: list[dict[str, Any]] = [
                {"features": x, "event_id": f"row-{begin + i}"} for i, (x, _) in enumerate(block)
            ]
            post("feedback", {"events": events})
            for event, (_, odd) in zip(events, block, strict=True):
                event["label"] = odd
            post("feedback", {"events": events})
        return scores, service.model.status()


def measure(stream: str, order: str, rows: Sequence[Row]) -> Found:
    """Both over the rows."""
    attacks = [odd for _, odd in rows]
    scores, told = served(rows)
    above = [s > 0.5 for s in scores]
    hits = sum(a and b for a, b in zip(above, attacks, strict=True))
    return Found(
        stream, order, len(rows), sum(attacks), area(scores, attacks), told["quality"]["auc"],
        area(alone(rows), attacks), sum(above) / len(rows), hits / sum(attacks),
        hits / sum(above) if any(above) else math.nan,
    )  # fmt: skip


def run(
    data: Path | None,
    *,
    streams: Sequence[str] = tuple(STREAMS),
    rows: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Found]:
    """Each stream as it was recorded, and shuffled.  Raises StreamUnusable."""
    out = []
    for stream in streams:
        service, logs = STREAMS[stream]
        recorded = list(connections(data, service, logs=logs))
        shuffled = random.Random(1).sample(recorded, len(recorded))
        for order, some in (("recorded", recorded), ("shuffled", shuffled)):
            progress(f"{stream}, {order}")
            out.append(measure(stream, order, some[:rows]))
    return out


@app.command("anomalies")
def anomalies(stream: Streams = None, rows: Rows = None, as_json: AsJson = False) -> None:
    """Scores of `task: anomaly` on recorded connections, beside river's half-space trees.

    Needs KDD Cup 1999 in ONLINE_DATA_DIR.  Example: python -m benchmarks anomalies --stream
    "mail, logs"
    """
    names = stream or list(STREAMS)
    found = run(data_dir(), streams=names, rows=rows, progress=progress)
    show("anomalies beside river", found, as_json=as_json)
