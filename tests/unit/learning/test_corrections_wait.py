"""A correction waits for what it corrects, if the model has anything of it to take back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from river import linear_model

from online.learning.merged import Learner
from online.models.adapters.linear import Linear
from paramserver.core.wire import FORMAT, SyncReply
from replay import codec
from replay.example import Corrects, Example
from replay.journal.base import Row, Verdict


class Firm(Linear):
    """Takes nothing back."""

    @property
    def why_not_revised(self) -> str | None:
        return "it is firm"


def _linear(kind: type[Linear]) -> Callable[[], Linear]:
    return lambda: kind(linear_model.LogisticRegression())


@pytest.mark.parametrize(
    ("kind", "evidence", "waits"),
    [(Linear, {}, {2}), (Firm, {}, set()), (Firm, {"loss": 0.5}, {2})],
)
def test_a_correction_waits_only_if_there_is_something_to_take_back(
    kind: type[Linear], evidence: dict[str, float], waits: set[int]
) -> None:
    learner = Learner(_linear(kind), task="binary", spec="", retain_bytes=10**6, rows_max=8)
    learner.open_partition(1)
    learner.on_reply(SyncReply(FORMAT, "", 1, 0, [], "all", {}, {}, [], {}, [], 0.0))
    corrects = Corrects(2, 5, b"k" * 16, False, 1.0, "s", evidence)
    payload = codec.encode(Example({"x": 1.0}, True, corrects=corrects))
    learner.learn(Row(0, 1, 1, b"f" * 16, "1", "s", Verdict.ACCEPTED, 1.0, payload, 1.0))
    sent = learner.pushes(9)
    assert learner.waits == waits
    assert len(sent) == (0 if waits else 1), "the delta of what is held stays here"
