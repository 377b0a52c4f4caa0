"""Data sets as streams of (features, label), in chronological order."""

from __future__ import annotations

import csv
import gzip
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from evaluation.dialect import NAMED, NULLS, Dialect, dialect_of
from evaluation.errors import StreamUnusable
from evaluation.metrics import Task
from refusals import meant, reason
from replay.example import Features, Label, Value

Row = tuple[Features, Label]

MULTICLASS_MAX: Final = 100
"""A label column with more distinct whole numbers than this is treated as a regression target."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream that can be read repeatedly: each iteration over ``rows`` starts at the first row.

    Attributes:
        n_rows: Number of rows.
        label_names: ``{label: name}`` of a binary task whose labels have names; empty otherwise.
    """

    name: str
    task: Task
    rows: Iterable[Row]
    n_rows: int
    label_names: Mapping[Label, str]


@dataclass(frozen=True, slots=True)
class _Again:
    """An iterable that calls a function for a new iterator at each iteration."""

    start: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        return self.start()


_BUNDLED: Final[Mapping[str, tuple[str, Task]]] = {
    "phishing": ("Phishing", "binary"),
    "bananas": ("Bananas", "binary"),
    "image_segments": ("ImageSegments", "multiclass"),
}
_CODE: Final = re.compile(r"0\d+")
_ELEC2: Final = ("elec2", "electricity.csv.gz")
_INSECTS: Final = ("insects_gradual", "gradual_balanced_24150.csv.gz")
_GAS: Final = "gas_drift"
_GAS_BATCHES: Final = (1, 2, 3, 4, 5, 6, 8, 9)  # of ten; the other two are not available
_INSTALLED: Final = (*_BUNDLED, "digits")
_NAMES: Final = (*_INSTALLED, "elec2", "insects", "gas")


def is_installed(name: str) -> bool:
    """Return whether the stream is part of an installed library."""
    return name.lower().replace("-", "_") in _INSTALLED


def open_stream(
    name_or_path: str, data_dir: Path | None = None, *, label: str | None = None
) -> Stream:
    """Open a bundled stream, a data set in ``data_dir``, or a CSV file with a header.

    Parameters:
        name_or_path: ``phishing``, ``bananas``, ``image_segments`` (inside river), ``digits``
            (inside scikit-learn), ``elec2``, ``insects``, ``gas`` (in ``data_dir``), or the path of
            a ``.csv`` or ``.csv.gz`` file.  Case and ``-`` for ``_`` do not matter in names.
        label: Name of the label column of a CSV file; by default the last column.

    Raises:
        StreamUnusable: The name is unknown, or the file is missing or not such a table.
    """
    name = name_or_path.lower().replace("-", "_")
    if name in _BUNDLED:
        return _bundled(name)
    if name == "digits":
        return _digits()
    if name == "elec2":
        path = _real(name, _ELEC2, data_dir)
        return Stream(name, "binary", _Again(lambda: _elec2(path)), 45_312, _UP_DOWN)
    if name in ("insects", "insects_gradual"):
        path = _real("insects", _INSECTS, data_dir)
        return Stream("insects", "multiclass", _Again(lambda: _insects(path)), 24_150, {})
    if name in ("gas", "gas_drift"):
        paths = [_real("gas", (_GAS, f"batch{i}.dat.gz"), data_dir) for i in _GAS_BATCHES]
        return Stream("gas", "multiclass", _Again(lambda: _gas(paths)), 6_697, {})
    path = Path(name_or_path)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return _table(path, label)
    raise StreamUnusable(
        name_or_path,
        "no stream has this name",
        meant(
            name,
            _NAMES,
            f"Known: {', '.join(_NAMES)}; or name a .csv or .csv.gz file with a header",
        ),
    )


def _bundled(name: str) -> Stream:
    from river import datasets  # takes a second, mostly for importing scikit-learn and pandas

    kind, task = _BUNDLED[name]
    data = getattr(datasets, kind)()

    def rows() -> Iterator[Row]:
        for features, label in data:
            yield features, bool(label) if task == "binary" else label

    return Stream(name, task, _Again(rows), data.n_samples, {})


def _digits() -> Stream:
    """Return 1,797 images of 8 × 8 pixels, ``p0`` to ``p63`` (Alpaydin and Kaynak 1998)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise StreamUnusable(
            "digits",
            "it is inside scikit-learn, which is not installed",
            "pip install scikit-learn",
        ) from None

    def rows() -> Iterator[Row]:
        images, digits = load_digits(return_X_y=True)
        for image, digit in zip(images.tolist(), digits.tolist(), strict=True):
            yield {f"p{i}": v for i, v in enumerate(image)}, digit

    return Stream("digits", "multiclass", _Again(rows), 1797, {})


def _real(name: str, place: tuple[str, str], data_dir: Path | None) -> Path:
    if data_dir is None:
        raise StreamUnusable(
            name, "it is not bundled and no data directory is set", "Set ONLINE_DATA_DIR"
        )
    path = data_dir.joinpath(*place)
    if not path.is_file():
        raise StreamUnusable(name, f"no file {path}", "Put it there, or name another directory")
    return path


# -- data sets in files ------------------------------------------------------------------------

_UP_DOWN: Final[Mapping[Label, str]] = {True: "UP", False: "DOWN"}


def _elec2(path: Path) -> Iterator[Row]:
    """Yield rows as ``river.datasets.Elec2`` does (Harries 1999): ``day`` is an int."""
    with _text(path) as lines:
        for row in csv.DictReader(lines):
            label = row.pop("class") == "UP"
            yield {k: int(v) if k == "day" else float(v) for k, v in row.items()}, label


def _insects(path: Path) -> Iterator[Row]:
    """Yield INSECTS gradual balanced (Souza et al. 2020): no header, class in the last column."""
    with _text(path) as lines:
        for row in csv.reader(lines):
            yield {str(i): float(v) for i, v in enumerate(row[:-1])}, int(row[-1])


def _gas(paths: Iterable[Path]) -> Iterator[Row]:
    """Yield gas sensors over 36 months (Vergara et al. 2012): lines ``label index:value …``."""
    for path in paths:
        with _text(path) as lines:
            for line in lines:
                label, *values = line.split()
                features: Features = {}
                for value in values:
                    index, _, number = value.partition(":")
                    features[index] = float(number)
                yield features, int(label.partition(";")[0])


# -- CSV files ---------------------------------------------------------------------------------


def _table(path: Path, label: str | None) -> Stream:
    """Open a CSV file and infer the task from its labels.

    Two distinct labels make a binary task: the greater number, or the text later in the alphabet,
    is true (see ``label_names``).  More texts, or up to ``MULTICLASS_MAX`` whole numbers, are
    classes; other numbers are regression targets.
    """
    dialect, column, texts, n = _labels(path, label)
    values = {text: _value(text, dialect) for text in texts}
    different = sorted(set(values.values()), key=lambda v: (isinstance(v, str), v))
    task: Task = "multiclass"
    read: Callable[[str], Label]
    names: dict[Label, str] = {}
    if len(different) == 2:
        task, positive = "binary", different[1]
        shown = {value: text.strip() for text, value in sorted(values.items(), reverse=True)}
        names = {False: shown[different[0]], True: shown[positive]}

        def read(text: str) -> Label:
            return values[text] == positive
    elif all(not isinstance(v, str) for v in different) and (
        len(different) > MULTICLASS_MAX or not all(float(v).is_integer() for v in different)
    ):
        task, read = "regression", dialect.number
    else:

        def read(text: str) -> Label:
            value = values[text]
            return int(value) if isinstance(value, float) and value.is_integer() else value

    def rows() -> Iterator[Row]:
        with _text(path) as lines:
            reader = _records(lines, dialect)
            header = next(reader)
            for cells in reader:
                row = dict(zip(header, cells, strict=True))
                answer = read(row.pop(column))
                yield {k: _feature(v, dialect) for k, v in row.items()}, answer

    return Stream(path.name, task, _Again(rows), n, names)


def _labels(path: Path, label: str | None) -> tuple[Dialect, str, set[str], int]:
    """Check every row; return how the file is written, the label column, its texts, and rows."""
    try:
        with _text(path) as lines:
            dialect = dialect_of(lines) or Dialect(())
        with _text(path) as lines:
            reader = _records(lines, dialect)
            header: list[str] = next(reader, [])
            column = header[-1] if label is None and header else label or ""
            if column not in header or len(set(header)) != len(header):
                raise StreamUnusable(
                    str(path),
                    f"no column {column!r}, or one twice, among {', '.join(header)!r:.200}",
                    "Give the file a header, and name its label column",
                )
            if all(isinstance(_value(name, dialect), float) for name in header):
                raise StreamUnusable(
                    str(path), "its first line is all numbers", "Give the file a header"
                )
            at = header.index(column)
            texts: set[str] = set()
            n = 0
            for n, row in enumerate(reader, 1):  # noqa: B007
                if len(row) != len(header) or not row[at].strip():
                    raise StreamUnusable(
                        str(path),
                        f"line {reader.line_num}: {len(row)} of {len(header)} values, or no label",
                        "Mend or remove the line",
                    )
                texts.add(row[at])
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise StreamUnusable(str(path), reason(error), "Name a readable CSV file") from error
    if not n:
        raise StreamUnusable(str(path), "it has no rows", "Name a file with a header and rows")
    return dialect, column, texts, n


def _records(lines: Iterator[str], dialect: Dialect) -> Any:
    """Return a reader of the records from the header on, which is below Excel's ``sep=;``."""
    first = next(lines, "")
    return dialect.records(lines if NAMED.fullmatch(first.strip()) else chain([first], lines))


def _value(text: str, dialect: Dialect) -> float | str:
    """Return a finite number, or the text without surrounding whitespace."""
    try:
        number = dialect.number(text)
    except ValueError:
        return text.strip()
    return number if math.isfinite(number) else text.strip()


def _feature(text: str, dialect: Dialect) -> Value:
    """Return the value of a field; None if it is missing.

    Digits that begin with a zero, as in a postal code, are a text.
    """
    text = text.strip()
    if text in NULLS:
        return None
    return text if _CODE.fullmatch(text) else _value(text, dialect)


def _text(path: Path) -> Any:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
