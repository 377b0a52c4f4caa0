"""How good a detector is where the changes are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evaluation.drift.errors import DriftSettingUnusable


@dataclass(frozen=True, slots=True)
class Episode:
    """One stretch of a stream with one known change, or none.

    Attributes:
        rows: Rows that the detector watched.
        alarms: Row numbers of its alarms.
        onset: Row at which the change began; None: there was none.
        last: Last row at which an alarm is a hit.
    """

    rows: int
    alarms: Sequence[int]
    onset: int | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """Figures over episodes (Bifet 2017; CapyMOA's EvaluateDriftDetector for the second half).

    Attributes:
        mtd: Mean rows from the onset to the first alarm in the window, over detected changes; None
            if none was detected.
        mdr: Missed changes / changes; None without changes.
        false_per_1k: Alarms outside the windows per 1,000 rows outside them.
        mtfa: Rows outside the windows / alarms there; None if there was no such alarm: more than
            ``in_control`` rows.
        in_control: Rows outside the windows.
        f1: Of alarms: each alarm in a window is a true positive, each other one a false positive,
            each missed change a false negative.
        recall: Detected changes / changes.
        mtr: mtfa / mtd x (1 - mdr); with ``in_control`` in place of an mtfa that is None.
    """

    mtd: float | None
    mdr: float | None
    false_per_1k: float
    mtfa: float | None
    in_control: int
    f1: float
    recall: float | None
    mtr: float | None
    alarms: int
    changes: int


def score(episodes: Iterable[Episode]) -> Scored:
    """Score all episodes together.

    Raises:
        DriftSettingUnusable: An onset without a last row, or after it.
    """
    delays: list[int] = []
    changes = missed = false = true = in_control = 0
    for episode in episodes:
        if episode.onset is None:
            false += len(episode.alarms)
            in_control += episode.rows
            continue
        if episode.last is None or episode.last < episode.onset:
            bound = f"a row from the onset {episode.onset} on"
            raise DriftSettingUnusable("last", str(episode.last), bound)
        hits = [row for row in episode.alarms if episode.onset <= row <= episode.last]
        changes += 1
        missed += not hits
        true += len(hits)
        false += len(episode.alarms) - len(hits)
        in_control += max(episode.rows - (episode.last - episode.onset + 1), 0)
        if hits:
            delays.append(min(hits) - episode.onset)
    mtd = sum(delays) / len(delays) if delays else None
    mdr = missed / changes if changes else None
    mtfa = in_control / false if false else None
    precision = true / (true + false) if true + false else 0.0
    recall = true / (true + missed) if true + missed else 0.0
    both = precision + recall
    return Scored(
        mtd=mtd,
        mdr=mdr,
        false_per_1k=1000.0 * false / in_control if in_control else 0.0,
        mtfa=mtfa,
        in_control=in_control,
        f1=2.0 * precision * recall / both if both else 0.0,
        recall=None if mdr is None else 1.0 - mdr,
        mtr=(in_control if mtfa is None else mtfa) / mtd * (1.0 - (mdr or 0.0)) if mtd else None,
        alarms=true + false,
        changes=changes,
    )
