"""Files whose drift points are known (Lobo 2020, Harvard Dataverse)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from river import tree

from benchmarks.studies.drift.detectors import ALL, Make, Progress, alarms
from benchmarks.studies.drift.scoring import Episode, score
from evaluation.drift.alarm import Direction
from evaluation.drift.watch import Watch, WatchSettings
from evaluation.errors import StreamUnusable
from evaluation.streams import open_stream
from replay.example import Features

FILES: Final = (
    "stagger_0120_abrupto",
    "sine_0123_abrupto",
    "mixed_0101_abrupto",
    "rt_2563789698568873_abrupto",
    "sea_0123_abrupto_noise_0.2",
)
POINTS: Final[Mapping[int, Sequence[int]]] = {40_000: (10_000, 20_000, 30_000)}
DELAY: Final = 1_000
WATCHED: Final = "watch, ADWIN on features"


@dataclass(frozen=True, slots=True)
class Line:
    """Changes found within 1,000 rows, of three in each file, and what else was alarmed.

    Hits are alarms of an error that rose.  ``false_per_1k`` are such alarms elsewhere,
    ``improved_per_1k`` alarms that it fell: a tree that learns the new concept gets better.
    """

    what: str
    stagger: str
    sine: str
    mixed: str
    rt: str
    sea: str
    found: str
    mtd: float
    false_per_1k: float
    improved_per_1k: float


def errors(path: Path) -> tuple[list[Features], list[float]]:
    """Features, and 1 where a Hoeffding tree that learns all rows was wrong before it learned."""
    model = tree.HoeffdingTreeClassifier()
    rows, found = [], []
    for x, y in open_stream(str(path)).rows:
        found.append(float(model.predict_one(x) != y))
        model.learn_one(x, y)
        rows.append(x)
    return rows, found


def run(
    data_dir: Path | None,
    *,
    files: Sequence[str] = FILES,
    makes: Mapping[str, Make] = ALL,
    progress: Progress = lambda line: None,
) -> list[Line]:
    """Every detector on every file.

    Raises:
        StreamUnusable: A file that is not there.
    """
    if data_dir is None:
        raise StreamUnusable("synth_known_drift", "no data directory is set", "Set ONLINE_DATA_DIR")
    streams = {}
    for file in files:
        progress(f"marked files: {file}")
        streams[file] = errors(data_dir / "synth_known_drift" / f"{file}.csv.gz")
    found = {
        name: {file: alarms(make(), wrong) for file, (_, wrong) in streams.items()}
        for name, make in makes.items()
    }
    found[WATCHED] = {file: _watched(*stream) for file, stream in streams.items()}
    rows = sum(len(wrong) for _, wrong in streams.values())
    return [_line(name, by, rows) for name, by in found.items()]


def _watched(rows: list[Features], wrong: list[float]) -> list[tuple[int, Direction]]:
    """Alarms of the error, and of ADWIN on the features: these count as up."""
    watch, found = Watch(WatchSettings(features=("adwin",))), []
    for i, (x, error) in enumerate(zip(rows, wrong, strict=True), 1):
        for alarm in watch.served(x) + watch.judged(error):
            way: Direction = alarm.direction if alarm.signal == "error" else "up"
            found.append((i, way))
    return found


def _line(name: str, by: Mapping[str, list[tuple[int, Direction]]], rows: int) -> Line:
    episodes: list[Episode] = []
    shown = dict.fromkeys(("stagger", "sine", "mixed", "rt", "sea"), "")
    falls = 0
    for file, found in by.items():
        falls += sum(way != "up" for _, way in found)
        own = _episodes([row for row, way in found if way == "up"], rows // len(by))
        shown[file.partition("_")[0]] = f"{_found(own)}/{len(own)}"
        episodes += own
    scored = score(episodes)
    return Line(
        what=name,
        **shown,
        found=f"{_found(episodes)}/{len(episodes)}",
        mtd=scored.mtd or 0.0,
        false_per_1k=scored.false_per_1k,
        improved_per_1k=1000.0 * falls / rows,
    )


def _episodes(rows: Sequence[int], n: int) -> list[Episode]:
    """One for each point, from the end of the last one's window."""
    found, begun = [], 0
    for point in POINTS.get(n, ()):
        last = point + DELAY
        own = [row for row in rows if begun < row <= last]
        found.append(Episode(last - begun, own, point + 1, last))
        begun = last
    return found


def _found(episodes: Sequence[Episode]) -> int:
    """How many of the changes have an alarm in their window."""
    return sum(any((e.onset or 0) <= row <= (e.last or 0) for row in e.alarms) for e in episodes)
