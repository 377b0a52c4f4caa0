"""Does the drift state settle?  A healthy model on real streams in their order, looked at often.

The judge sees what it sees in a replica: each row as it was answered, with the newest label before
it, and then its label, one row late.  No stream of these chose a setting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evaluation.errors import StreamUnusable
from evaluation.metrics import Task
from evaluation.streams import open_stream
from online.learning.scores import score_of
from online.models.base import Model, learn_example
from online.models.loading.load import load
from online.settings.model import Drift
from online.watch.drift import DriftMonitor
from replay.example import Example, Features, Label, Value

STREAMS: Final = ("elec2", "insects", "acs")
LEARNERS: Final = ("linear", "logreg")
LOOK: Final = 50
ABOVE_MAX: Final = 0.03
"""Share of looks above ``ok`` where no drift is known."""
KNOWN: Final = {"insects": (13_028, 15_028)}
"""Rows around the one change that its authors put into a stream (INSECTS: at 14,028)."""
ACS_ROWS: Final = 100_000
_ACS: Final = "acs_employment_MA"
_LEFT_OUT: Final = ("id", "employed", "prediction", "predicted_probability", "year")


@dataclass(frozen=True, slots=True)
class Line:
    """One model on one stream.

    Attributes:
        above: Share of looks with a state above ``ok``, in per cent; ``but`` of those around no
            known drift.
        rises: Alarms of an error that rose; ``features`` of features.
    """

    stream: str
    learner: str
    rows: int
    error: float
    looks: int
    above: float
    but: float
    rises: int
    features: int
    good: bool


def run(
    data_dir: Path | None,
    *,
    streams: Sequence[str] = STREAMS,
    learners: Sequence[str] = LEARNERS,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Line]:
    """Each learner on each stream.  Raises StreamUnusable if one is not there."""
    lines = []
    for stream in streams:
        task, rows = _rows(stream, data_dir)
        for learner in learners:
            taken = rows if learner == "linear" else [(_numbers(x), y) for x, y in rows]
            lines.append(judged(stream, learner, task, taken))
            progress(str(lines[-1]))
    return lines


def judged(stream: str, learner: str, task: Task, rows: list[tuple[Features, Label]]) -> Line:
    """The judge's state at every look."""
    judge, model = DriftMonitor(Drift(), task), _model(learner, task)
    newest: Label | None = None
    wrong, looks, apart = 0, Counter[bool](), Counter[bool]()
    first, last = KNOWN.get(stream, (0, 0))
    seen: Counter[str] = Counter()
    for row, (features, label) in enumerate(rows, 1):
        answer = model.predict(features)
        score = score_of(task, answer)
        example = Example(
            features, label, score=score, predicted_at=float(row), no_change=newest,
            notes=answer.notes,
        )  # fmt: skip
        wrong += answer.label != label
        judge.learned(1, row, example, float(row))
        learn_example(model, example)
        newest = label
        if row % LOOK:
            continue
        above = judge.report()["drift_state"] > 1
        looks[above] += 1
        if not first <= row <= last:
            apart[above] += 1
    seen = Counter(alarm["signal"] for alarm in judge.newest(len(rows)))
    return Line(
        stream=stream, learner=learner, rows=len(rows), error=100.0 * wrong / len(rows),
        looks=looks.total(), above=100.0 * looks[True] / looks.total(),
        but=100.0 * apart[True] / apart.total(), rises=seen["error"], features=seen["feature"],
        good=apart[True] <= ABOVE_MAX * apart.total(),
    )  # fmt: skip


def _numbers(features: Features) -> Features:
    """The codes of the census as numbers: only ``linear`` takes text."""
    return {
        name: float(value) if isinstance(value, str) else value for name, value in features.items()
    }


def _model(learner: str, task: Task) -> Model:
    name = "softmax" if learner == "logreg" and task == "multiclass" else learner
    return load(name, {}, task=task, classes=None, key=b"0" * 32, base_dir=Path()).model


def _rows(stream: str, data_dir: Path | None) -> tuple[Task, list[tuple[Features, Label]]]:
    if stream != "acs":
        found = open_stream(stream, data_dir)
        return found.task, list(found.rows)
    if data_dir is None:
        raise StreamUnusable(_ACS, "no data directory is set", "Set ONLINE_DATA_DIR")
    return "binary", list(_acs(data_dir / _ACS))


def _acs(folder: Path) -> Iterator[tuple[Features, Label]]:
    """The census of Massachusetts in its order, 2015 and then the years after it."""
    from pyarrow import parquet

    name = str(folder / "employment_MA_{}.pq")
    late = parquet.read_table(name.format("analysis_target")).to_pydict()
    labels = dict(zip(late["id"], late["employed"], strict=True))
    given = 0
    for part in ("reference", "analysis"):
        for row in parquet.read_table(name.format(part)).to_pylist():
            label = row["employed"] if "employed" in row else labels[row["id"]]
            features = {k: _value(v) for k, v in row.items() if k not in _LEFT_OUT}
            yield features, bool(label)
            given += 1
            if given >= ACS_ROWS:
                return


def _value(value: object) -> Value:
    return value if value is None or isinstance(value, int | float | str) else str(value)
