"""The report on Elec2: time, size, memory, and whether page and JSON say the same.

A plain river learner's predictions on Elec2, test-then-learn, are written to a file, and `online
report` runs on it as a user runs it: a process from start to end.  The same rows again and again
make files and journals of 10,000 and 1,000,000 rows: memory must not grow with them.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from evaluation.streams import Row as StreamRow
from evaluation.streams import open_stream
from replay.codec import encode
from replay.example import Example
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

SECONDS_MAX: Final = 5.0
BYTES_MAX: Final = 1_000_000
GROWTH_MAX: Final = 1.25
"""Peak memory of the largest input over that of the smallest."""

SIZES: Final = (10_000, 1_000_000)
_BATCH: Final = 1000
_PEER: Final = """
import sys
import pandas
from evidently import Report
from evidently.presets import DataDriftPreset
rows = pandas.read_csv(sys.argv[1])
run = Report([DataDriftPreset()]).run(rows.tail(5000), rows.head(5000))
run.save_html(sys.argv[2])
"""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Line:
    """One run, or the median of several; ``good`` None: no target.

    ``cpu_s``: seconds of a processor, which a busy machine does not stretch as it does ``seconds``.
    """

    what: str
    rows: int
    seconds: float
    cpu_s: float
    rss_mb: float
    html_bytes: int
    good: bool | None


@dataclass(frozen=True, slots=True)
class Found:
    """All runs, what page and JSON differ in, and what the page would load."""

    lines: tuple[Line, ...]
    differing: tuple[str, ...]
    outside: tuple[str, ...]
    growth: dict[str, float]

    @property
    def good(self) -> bool:
        """Whether every target is met."""
        flat = all(value <= GROWTH_MAX for value in self.growth.values())
        fine = all(line.good is not False for line in self.lines)
        return fine and flat and not self.differing and not self.outside


def run(
    data: Path | None,
    *,
    runs: int = 5,
    sizes: Sequence[int] = SIZES,
    peer: Path | None = None,
    progress: Progress = print,
) -> Found:
    """Measure the report on Elec2.

    Parameters:
        data: Folder with Elec2.
        peer: Python of an environment with evidently 0.7.23 and pandas below 3.
    """
    with tempfile.TemporaryDirectory(prefix="online-report-") as name:
        folder = Path(name)
        progress("a river learner predicts Elec2")
        answered = list(_answers(data))
        elec2 = folder / "elec2.csv"
        write_csv(elec2, answered, len(answered))
        page, numbers = folder / "page.html", folder / "numbers.json"
        lines = []
        if peer is not None:
            progress("evidently")
            lines.append(_peer(peer, elec2, folder / "peer.html", runs, len(answered)))
        for i in range(runs):
            progress(f"run {i + 1} of {runs}")
            lines.append(_report(["--file", str(elec2)], page, "Elec2", len(answered)))
        lines = [*lines[: len(lines) - runs], _median(lines[-runs:])]
        # The same rows at the same moment: only the time of making differs.
        _report(["--file", str(elec2)], numbers, "json", len(answered))
        differing = tuple(differences(page.read_text(), json.loads(numbers.read_bytes())))
        outside = tuple(loads(page.read_text()))
        growth = {}
        for kind in ("file", "journal"):
            found = [_sized(kind, folder, answered, n, progress) for n in sizes]
            lines += found
            growth[kind] = found[-1].rss_mb / found[0].rss_mb
        return Found(tuple(lines), differing, outside, growth)


def _answers(data: Path | None) -> Iterator[tuple[StreamRow, float]]:
    """Each row of Elec2, and the probability of UP before it was learned."""
    from river import linear_model, optim, preprocessing

    model: Any = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.05))
    for features, label in open_stream("elec2", data).rows:
        yield (features, label), model.predict_proba_one(features).get(True, 0.5)
        model.learn_one(features, label)


def write_csv(path: Path, answered: Sequence[tuple[StreamRow, float]], n: int) -> None:
    """``n`` rows, from the beginning again where they end."""
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*answered[0][0][0], "label", "score"])
        for (features, label), p in itertools.islice(itertools.cycle(answered), n):
            out.writerow([*features.values(), "UP" if label else "DOWN", p])


def write_journal(path: Path, answered: Sequence[tuple[StreamRow, float]], n: int) -> None:
    """A journal of ``n`` rows, as the service would have written it."""
    with contextlib.closing(SqliteJournal(path, synchronous="OFF", disk_low_mb=0)) as journal:
        partition = journal.register("elec2", "r1", "s" * 64, 0.0).id
        end = 0
        rows = itertools.islice(itertools.cycle(answered), n)
        for first in range(0, n, _BATCH):
            batch = [
                NewRow(
                    (first + i).to_bytes(16, "big"), str(first + i), "bench", Verdict.ACCEPTED,
                    encode(
                        Example(
                            features, label, score={"true": p, "false": 1 - p},
                            version=(1, first, 0), predicted_at=1.7e9 + first + i,
                        )
                    ),
                    1.7e9 + first + i + 60,
                )
                for i, ((features, label), p) in enumerate(itertools.islice(rows, _BATCH))
            ]  # fmt: skip
            end = journal.append(partition, end, batch).end
            journal.checkpoint()


def _sized(
    kind: str, folder: Path, answered: Sequence[tuple[StreamRow, float]], n: int, progress: Progress
) -> Line:
    progress(f"{kind} of {n:,} rows")
    out = folder / "sized.html"
    if kind == "file":
        path = folder / "sized.csv"
        write_csv(path, answered, n)
        arguments = ["--file", str(path)]
    else:
        state = folder / f"state{n}"
        write_journal(state / "journal.db", answered, n)
        settings = folder / "online.yaml"
        model = {"name": "elec2", "task": "binary", "learner": "logreg"}
        settings.write_text(json.dumps({"state_dir": str(state), "models": [model]}))
        arguments = ["--config", str(settings)]
    return _report(arguments, out, f"{kind}, {n:,} rows", n, judged=False)


def _report(arguments: list[str], out: Path, what: str, rows: int, *, judged: bool = True) -> Line:
    command = [sys.executable, "-m", "online", "report", *arguments, "--out", str(out)]
    seconds, cpu, rss = _measured(command)
    size = out.stat().st_size
    good = seconds <= SECONDS_MAX and size <= BYTES_MAX if judged else size <= BYTES_MAX
    return Line(what, rows, seconds, cpu, rss, size, good)


def _peer(python: Path, file: Path, out: Path, runs: int, rows: int) -> Line:
    os.environ["DO_NOT_TRACK"] = "1"
    made = []
    for _ in range(runs):
        seconds, cpu, rss = _measured(
            [str(python), "-W", "ignore", "-c", _PEER, str(file), str(out)]
        )
        made.append(Line("evidently, 2 x 5,000 of them", rows, seconds, cpu, rss, 0, None))
    median = _median(made)
    return replace(median, html_bytes=out.stat().st_size)


def _measured(command: list[str]) -> tuple[float, float, float]:
    """Seconds from start to end, those of a processor, and the peak memory in MB."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1, 3):
        raise subprocess.CalledProcessError(process.returncode, command)
    cpu = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - begin, cpu, usage.ru_maxrss / 1024


def _median(lines: Sequence[Line]) -> Line:
    seconds = statistics.median(line.seconds for line in lines)
    last = lines[-1]
    good = None if last.good is None else seconds <= SECONDS_MAX and last.html_bytes <= BYTES_MAX
    return replace(
        last,
        seconds=seconds,
        cpu_s=statistics.median(line.cpu_s for line in lines),
        rss_mb=max(line.rss_mb for line in lines),
        good=good,
    )


def differences(page: str, numbers: dict[str, Any]) -> Iterator[str]:
    """Paths whose value on the page is not that of the JSON (but for the time of making)."""
    found = re.findall(r'<data value="([^"]*)" data-path="([^"]+)">', page)
    if not found:
        yield "the page has no numbers"
    for value, path in found:
        true: Any = numbers
        for part in path.split("."):
            true = true[int(part)] if isinstance(true, list) else true[part]
        if json.loads(value) != true:
            yield path


def loads(page: str) -> Iterator[str]:
    """Yield whatever the page would fetch or run."""
    for found in re.findall(r'\b(?:src|href|srcset|action)="([^"]{1,80})', page):
        if not found.startswith(("#", "data:")):
            yield found
    yield from re.findall(r"https?://[^\s\"<]{1,80}", page)
    for kind in re.findall(r"<script([^>]*)>", page):
        if 'type="application/json"' not in kind:
            yield f"<script{kind}>"
