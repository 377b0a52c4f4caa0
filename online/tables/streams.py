"""Opens a stream by its name, or a table of one's own by its path, as `online init` reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evaluation.metrics import Task
from evaluation.streams import Row, Stream, open_stream
from online.errors import ConfigError
from online.tables.first_look import is_table, open_table
from online.tables.guess import Guess, guess
from replay.example import Label


@dataclass(frozen=True, slots=True)
class _Rows:
    guess: Guess

    def __iter__(self) -> Iterator[Row]:
        return ((row.features, self.guess.canonical(row.label)) for row in self.guess.rows())


def stream_of(
    name_or_path: str, data_dir: Path | None, *, label: str | None = None, task: Task | None = None
) -> Stream:
    """Open a stream of :func:`evaluation.streams.open_stream`, or a table.

    Columns of a table have the roles that are guessed for settings, so that the same columns are
    features; a missing value is absent from its row.

    Parameters:
        label, task: Column of the label, and task, of a table; None: guessed.

    Raises ConfigError, InputRefused or StreamUnusable.
    """
    path = Path(name_or_path)
    if not is_table(path):
        return open_stream(name_or_path, data_dir)
    guessed = guess(open_table(path, () if label is None else (label,)), label, task)
    two, n = guessed.task == "binary", 0
    for row in guessed.rows():
        n += 1
        if two and row.label not in guessed.classes:
            problem = f"{row.label!r} in column {guessed.label} is a third label"
            raise ConfigError(name_or_path, problem, "Correct it, or serve a multiclass model")
    names: dict[Label, str] = {}
    if two:
        names = {bool(i): str(name) for i, name in enumerate(guessed.classes)}
    return Stream(path.name, guessed.task, _Rows(guessed), n, names)
