"""The notes of the report: explanations of its terms, and its limitations."""

from __future__ import annotations

from typing import Final

from evaluation.report.values import Note

NOTES: Final = (
    Note(
        term="Test, then learn",
        text="Every row is judged by what was answered before its label was known.",
    ),
    Note(
        term="Interval",
        text="95 % (Wilson). It holds for rows that are as good as independent; rows that follow "
        "each other are alike, so the truth is wider.",
    ),
    Note(
        term="Two simple rules",
        text="Majority answers with the most frequent label so far, no change with the newest one "
        "that was known when the row was answered. A model that is not better than both is not "
        "worth its cost. Kappa-M and kappa-T are the parts of their errors that the model avoids: "
        "0 is no better, 1 is perfect.",
    ),
    Note(
        term="Model less rule",
        text="The band covers the average difference so far at all rows at once with 95 %, "
        "whatever changes on the way (Choe and Ramdas, arXiv:2110.00115). So it may be looked at "
        "at any time.",
    ),
    Note(
        term="Limits",
        text="Typical error and its spread are those of windows that were normal when they came "
        "(median at its upper bound, median absolute deviation), of the best time so far. Watch: "
        "2.75 deviations and a fifth of the error above; act: 3.5 and a half, in two windows in a "
        "row. Neither is above what the better rule without a model gets wrong. Two windows as "
        "before end it.",
    ),
    Note(
        term="Then and now",
        text="Then is the first quarter of the rows, now the newest one, at most 5,000 rows each. "
        "A season (night and day, weekdays) between them is a difference, too.",
    ),
    Note(
        term="PSI",
        text="Population stability index on the reference's frozen bins: below .1 little, above "
        ".25 much. Shift: how far the mass moved, in standard deviations of then; none where then "
        "hardly varies. JS: Jensen-Shannon distance, from 0 to 1.",
    ),
    Note(
        term="p",
        text="Of a two-sample test, after Holm's correction over the table. With many rows "
        "everything is significant: read the effect first.",
    ),
    Note(
        term="Moved is not broken",
        text="Inputs that moved are no reason to act while the score holds. No alarm is not the "
        "same as no drift.",
    ),
    Note(
        term="Estimate without labels",
        text="From the model's own confidence. It sees inputs that changed; it cannot see that the "
        "same inputs now have other labels: only labels show that.",
    ),
    Note(
        term="Calibration",
        text="ECE is the mean gap between score and outcome over ten equal bins, Brier the mean "
        "squared one.",
    ),
    Note(
        term="Influence",
        text="Mutual information between a feature and the model's answer, as a part of the "
        "answer's entropy: how much the feature alone tells of the answer.",
    ),
)
