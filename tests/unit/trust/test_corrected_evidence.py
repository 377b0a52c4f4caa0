"""Evidence about a provisional label is taken back as far as the label is."""

from __future__ import annotations

from pathlib import Path

import pytest
from replica_world import World, play
from test_filtering import nats, opened, told

from online.rows.prediction_ids import event_key
from online.trust.filtering import _taken_back
from paramserver.filters.base import CLIPPED, QUARANTINED
from paramserver.filters.chain import Verdict as Decided
from replay import codec
from replay.example import Corrects, Example
from replay.journal.base import NewRow, Verdict


def test_whose_labels_are_set_aside_takes_nothing_back(tmp_path: Path) -> None:
    """The lie of another source stays in the model, and so does what it says of that source."""

    async def scene(world: World) -> None:
        replica = await world.replica(filters=told)
        await opened(replica)

        async def label(source: str, event: str, *, provisional: bool) -> Verdict:
            example = Example({"a": 1.0}, 1e9, provisional=provisional)
            key = event_key("event", "web", event)
            row = NewRow(key, event, source, Verdict.ACCEPTED, codec.encode(example), 1.0)
            (found,) = await replica.writer.record([row], [example])
            assert found.row is not None
            return found.row.verdict

        for i in range(30):
            verdict = await label("x-accomplice", f"lie-{i}", provisional=False)
        assert verdict is Verdict.QUARANTINED
        before = nats(replica)
        assert await label("x", "e", provisional=True) is Verdict.ACCEPTED
        assert await label("x-accomplice", "e", provisional=False) is Verdict.QUARANTINED
        assert nats(replica) == before - 1.0
        await replica.stop(2)

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("offset", "source", "verdict", "factor", "share"),
    [
        (0, "another", QUARANTINED, 0.0, 1.0),
        (7, "another", QUARANTINED, 0.0, 0.0),
        (7, "own", QUARANTINED, 0.0, 0.0),
        (7, "another", CLIPPED, 0.25, 0.25),
        (7, "own", CLIPPED, 0.25, 1.0),
        (7, "another", "accepted", 1.0, 1.0),
    ],
)
def test_evidence_is_taken_back_as_far_as_the_label_is(
    offset: int, source: str, verdict: str, factor: float, share: float
) -> None:
    first = Corrects(1, offset, b"k", True, 1.0, "own", {"told": -1.0})
    taken = _taken_back(first, source, Decided(verdict, factor, 1.0, 0.0, "", {}))
    assert taken.get("told", 0.0) == -share
