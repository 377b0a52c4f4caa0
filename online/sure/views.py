"""The optional views of a model's learned rows, which its settings turn on."""

from __future__ import annotations

from collections.abc import Sequence

from online.decide.choice_metrics import Choices
from online.learning.counters import View
from online.settings.model import ModelSettings
from online.sure.calibration import Calibration
from online.sure.conformal import Confidence
from online.sure.delays import Delays
from online.sure.slices import Slices
from replay.example import Features


def views_of(model: ModelSettings) -> list[View]:
    """Make the views that the settings ask for, without any rows."""
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
    """Return the view that counts by slice; None if there is none."""
    return next((view for view in views if isinstance(view, Slices)), None)


def confidence_in(views: Sequence[View]) -> Confidence | None:
    """Return the view with the conformal threshold; None if there is none."""
    return next((view for view in views if isinstance(view, Confidence)), None)


def calibration_in(views: Sequence[View]) -> Calibration | None:
    """Return the view that calibrates probabilities; None if there is none."""
    return next((view for view in views if isinstance(view, Calibration)), None)


def stamp_of(
    sure: Confidence | None, calibration: Calibration | None, features: Features
) -> bytes | None:
    """Return threshold and sharpness of an answer, packed for tokens and rows; None: neither."""
    if calibration is None:
        return None if sure is None else sure.stamp(features)
    return (b"" if sure is None else sure.stamp(features)) + calibration.stamp()


def choices_in(views: Sequence[View]) -> Choices | None:
    """Return the view of rewarded choices; None if the model does not choose."""
    return next((view for view in views if isinstance(view, Choices)), None)


def delays_in(views: Sequence[View]) -> Delays | None:
    """Return the view of label delays; None without ``conversion_window``."""
    return next((view for view in views if isinstance(view, Delays)), None)
