"""What `online top` and `online events tail` write for models of each task."""

from __future__ import annotations

from typing import Any

import pytest

from online.commands.operate.events import _print
from online.commands.operate.top import row, totals


def status(task: str, **more: Any) -> dict[str, Any]:
    scores = ("accuracy", "no_change", "majority", "reward", "constant", "evenly", "auc")
    return {
        "model": "m", "task": task, "quality": {"n": 0, **dict.fromkeys(scores)}, "incident": None,
        "replicas": {"one": {"predictions": 5.0, "choices": 7.0, "feedback_learned": 3.0}},
        "drift": None, "rewrites": None, "server": {}, **more,
    }  # fmt: skip


def test_answers_are_predictions_and_choices() -> None:
    assert totals(status("choose")) == {"answers": 12.0, "labels": 3.0}


def test_a_model_without_labels_shows_how_many_anomalies_it_found() -> None:
    odd = {"threshold": 0.99, "rows": 400, "unlabelled": 400, "above": 6, "share": 0.015}
    assert row(status("anomaly", anomaly=odd), {}, "")[3] == "1.5 % anomalies"
    labelled = status("anomaly", anomaly=odd)
    labelled["quality"] |= {"n": 400, "accuracy": 0.9, "no_change": 0.8, "auc": 0.97}
    assert row(labelled, {}, "")[3] == "1.5 % anomalies, AUC .9700"
    none = {**odd, "rows": 0, "above": 0, "share": None}
    assert row(status("anomaly", anomaly=none), {}, "")[3] == "too few labels"


def test_a_line_has_what_came_and_nothing_for_what_did_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    event: dict[str, Any] = {"kind": "label", "at": 0.25, "status": "learned", "source": "s"}
    _print({**event, "label": True, "features": {}}, None, None, as_json=False)
    _print({**event, "features": {"a": 1.0}}, None, None, as_json=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first[8:] == ".250 <- true learned of s"
    assert second[8:] == '.250 <- no label, learned of s  {"a": 1.0}'
