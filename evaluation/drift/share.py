"""This module holds what all detectors do with a value and with two means."""

from __future__ import annotations

from evaluation.drift.alarm import Change
from evaluation.drift.errors import DriftSettingUnusable, ShareUnusable


def share(x: float) -> float:
    """``x``, a number from 0 to 1.

    Raises:
        ShareUnusable: Anything else; NaN too.
    """
    try:
        if 0.0 <= x <= 1.0:
            return float(x)
    except TypeError:
        pass
    raise ShareUnusable(f"{x!r:.60}")


def within(name: str, value: float, least: float, most: float) -> None:
    """Check that a setting is in its range.

    Raises:
        DriftSettingUnusable: Not from ``least`` to ``most``.
    """
    if not least <= value <= most:
        raise DriftSettingUnusable(name, repr(value), f"{least:g} to {most:g}")


def change(sum_before: float, n_before: int, sum_after: float, n_after: int) -> Change:
    """The change from one mean to another; sums may be off by what rounding left."""
    before = min(max(sum_before / n_before, 0.0), 1.0)
    after = min(max(sum_after / n_after, 0.0), 1.0)
    direction = "up" if after > before else "down" if after < before else "other"
    return Change(direction, before, after, n_before, n_after)  # type: ignore[arg-type]
