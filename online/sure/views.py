"""Which sums over the learned rows the settings of a model ask for, beside its own counters."""

from __future__ import annotations

from collections.abc import Sequence

from online.decide.counted import Choices
from online.learning.counters import View
from online.settings.model import ModelSettings
from online.sure.calibration import Calibration
from online.sure.delays import Delays
from online.sure.slices import Slices
from online.sure.threshold import Confidence
from replay.example import Features


def views_of(model: ModelSettings) -> list[View]:
    """New ones, of no row; none if the settings ask for none."""
    views: list[View] = []
    if model.confidence is not None:
        views.append(Confidence(model.task, model.confidence, model.slices, model.slice_values))
    if model.calibrate:
        views.append(Calibration())
    if model.slices:
        views.append(Slices(model.task, model.slices, model.slice_values))
    if model.reward_range is not None:
        views.append(Choices(*model.reward_range, model.slice_values))
    if model.conversion_window is not None:
        views.append(Delays(model.conversion_window))
    return views


def slices_in(views: Sequence[View]) -> Slices | None:
    """The one among them that counts by slice; None: there is none."""
    return next((view for view in views if isinstance(view, Slices)), None)


def confidence_in(views: Sequence[View]) -> Confidence | None:
    """The one among them that answers are sure by; None: there is none."""
    return next((view for view in views if isinstance(view, Confidence)), None)


def calibration_in(views: Sequence[View]) -> Calibration | None:
    """The one among them that corrects probabilities; None: they are the model's own."""
    return next((view for view in views if isinstance(view, Calibration)), None)


def stamp_of(views: Sequence[View], features: Features) -> bytes | None:
    """Return what the answer to a row is sure by now, as ids and rows keep it; None: by nothing."""
    sure, calibrated = confidence_in(views), calibration_in(views)
    if calibrated is None:
        return None if sure is None else sure.stamp(features)
    return (b"" if sure is None else sure.stamp(features)) + calibrated.stamp()


def choices_in(views: Sequence[View]) -> Choices | None:
    """The one among them that says what came of choices; None: the model does not choose."""
    return next((view for view in views if isinstance(view, Choices)), None)


def delays_in(views: Sequence[View]) -> Delays | None:
    """The one among them that says how late positives come; None: nobody waits for them."""
    return next((view for view in views if isinstance(view, Delays)), None)
