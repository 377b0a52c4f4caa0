"""Does the report see a model that broke?  A frozen model on files whose drift points are known.

A model learns the first rows of a file and then nothing more.  The report is asked every 500 rows,
of all rows so far, as somebody would who looks now and then.  Nothing of this chose a limit.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from river import linear_model, naive_bayes, optim, preprocessing, tree

from evaluation.errors import StreamUnusable
from evaluation.report.build import build
from evaluation.report.rows import Origin, Rows
from evaluation.report.tally import Tally
from evaluation.streams import Row, open_stream
from replay.example import Label

FOLDER: Final = "synth_known_drift"
TAUGHT: Final = 2_000
LOOK: Final = 500
COSTS: Final = 0.05
"""Share of rows that a change must cost before it has to be seen."""
WITHIN: Final = 1_000
CONCEPT: Final = 10_000
"""Rows between two changes; a gradual one lies around each multiple."""
SHUFFLES: Final = 10
_GRADUAL: Final = 1_000  # rows that such a change takes

Progress = Callable[[str], None]
MODELS: Final[Mapping[str, Callable[[], Any]]] = {
    "logistic": lambda: (
        preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.05))
    ),
    "naive Bayes": naive_bayes.GaussianNB,
    "tree": tree.HoeffdingTreeClassifier,
}


@dataclass(frozen=True, slots=True)
class Line:
    """One model on one file.

    Attributes:
        errors: Share of wrong answers in each concept, in per cent.
        costly: First change that costs five points or more, by its row; None: there is none.
        delay: Rows from it to the first look at which the verdict is act; None: never.
        missed: Looks between that and when the error is normal again without the verdict act.
        early: Looks before the first change with the verdict act; of a shuffle all.
    """

    file: str
    model: str
    errors: str
    costly: int | None
    delay: int | None
    missed: int
    early: int
    good: bool


def verdicts(wrong: Sequence[bool], labels: Sequence[Label], every: int = LOOK) -> Iterator[str]:
    """The report's verdict after each so many rows: who was wrong, and the true labels."""
    names = {True: "yes", False: "no"}
    tally = Tally(Origin("file", "frozen", "binary", names=names))
    for first in range(0, len(wrong) - every + 1, every):
        part = range(first, first + every)
        none = np.full(every, np.nan)
        tally.add(
            Rows(
                label=[bool(labels[i]) for i in part],
                predicted=[bool(labels[i]) != wrong[i] for i in part],
                probabilities=[None] * every,
                time=none,
                label_time=none,
                features={},
            )
        )
        yield build(tally, made_at=0.0).verdict.state


def frozen(rows: Sequence[Row], make: Callable[[], Any], taught: int = TAUGHT) -> list[bool]:
    """Whether each row was answered wrongly; the first ones are learned after they were asked."""
    model, wrong = make(), []
    for i, (x, y) in enumerate(rows):
        wrong.append(model.predict_one(x) != y)
        if i < taught:
            model.learn_one(x, y)
    return wrong


def run(data_dir: Path | None, *, progress: Progress = lambda line: None) -> list[Line]:
    """Each model on each file, and one of them on shuffled rows.

    Raises:
        StreamUnusable: The files are not there.
    """
    if data_dir is None:
        raise StreamUnusable(FOLDER, "no data directory is set", "Set ONLINE_DATA_DIR")
    lines = []
    files = sorted((data_dir / FOLDER).glob("*.csv.gz"))
    for file in files:
        name = file.name.removesuffix(".csv.gz")
        rows = list(open_stream(str(file)).rows)
        labels = [y for _, y in rows]
        for model, make in MODELS.items():
            progress(f"{name}: {model}")
            wrong = frozen(rows, make)
            gradual = _GRADUAL if "gradual" in name else 0
            lines.append(judged(name, model, wrong, list(verdicts(wrong, labels)), gradual))
    for seed in range(SHUFFLES):
        file = files[seed % len(files)]
        progress(f"shuffle {seed}: {file.name}")
        rows = list(open_stream(str(file)).rows)
        random.Random(seed).shuffle(rows)
        wrong = frozen(rows, MODELS["logistic"])
        early = sum(v == "act" for v in verdicts(wrong, [y for _, y in rows]))
        name = f"shuffle {seed} of {file.name.partition('_')[0]}"
        lines.append(Line(name, "logistic", "", None, None, 0, early, early == 0))
    return lines


def judged(
    file: str, model: str, wrong: Sequence[bool], looks: Sequence[str], gradual: int = 0
) -> Line:
    """Return the line that says what the looks were worth, by the errors that were made."""
    w = np.asarray(wrong, dtype=float)
    # Rows in which a change is under way belong to neither concept.
    edges = [TAUGHT, *range(CONCEPT, len(w) - CONCEPT // 2, CONCEPT), len(w)]
    concepts = [w[a + gradual : b - gradual].mean() for a, b in itertools.pairwise(edges)]
    normal = concepts[0]
    costly = next((i for i, e in enumerate(concepts) if e >= normal + COSTS), None)
    acts = [v == "act" for v in looks]
    early = sum(acts[: (CONCEPT - gradual) // LOOK])
    shown = " / ".join(f"{100 * e:.1f}" for e in concepts)
    if costly is None:
        return Line(file, model, shown, None, None, 0, early, early == 0)
    onset = edges[costly]
    begun = next((i for i in range(onset // LOOK, len(acts)) if acts[i]), None)
    if begun is None:
        return Line(file, model, shown, onset, None, 0, early, False)
    delay = (begun + 1) * LOOK - onset
    back = next((e for c, e in zip(concepts[costly:], edges[costly:], strict=False)
                 if c < normal + COSTS), len(w))  # fmt: skip
    missed = sum(not a for a in acts[begun : (back - gradual) // LOOK])
    good = delay <= WITHIN + gradual and not missed and not early
    return Line(file, model, shown, onset, delay, missed, early, good)
