"""Refusals that the service or its model is to blame for are logged, and do not flood the log."""

from __future__ import annotations

import logging

import pytest

from online.errors import RequestError, not_answered
from online.http.middleware.refusing import Warnings


def test_of_each_kind_one_a_second_is_logged_with_the_number_of_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    warnings = Warnings(lambda: now[0])
    full = RequestError(503, "journal_full", "it is full", None, "Free space")
    old = RequestError(503, "too_old", "it is old", None, "Wait")
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            warnings.log("feedback m", full)
        warnings.log("predict m", old)
        warnings.log("predict m", RequestError(422, "invalid", "a", None, "b"))
        warnings.log("predict m", not_answered("the model raises KeyError: 'b'", "features"))
        now[0] = 1.0
        warnings.log("feedback m", full)
    first, other, raised, later = caplog.messages
    assert first.startswith("feedback m: it is full")
    assert other.startswith("predict m: it is old")
    assert raised.startswith("predict m: the model raises KeyError")
    assert later.endswith("(999 more `journal_full` since the last line)")
    assert "more" not in first + other
