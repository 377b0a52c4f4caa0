"""A partition that is held is learned from the clock of whoever knows it."""

from __future__ import annotations

from online.learning import deltas
from online.learning.deltas import Track, Tracks


def held() -> Tracks:
    return {7: Track(1, 9, held=True)}


def test_what_a_peer_does_not_tell_of_stays_held() -> None:
    """Its values may have any rows of the partition: only the server knows."""
    tracks = held()
    deltas.finish(tracks, {8: 3}, {}, (), from_peer=True)
    assert tracks == held()


def test_the_server_and_a_peer_that_tells_of_it_begin_it() -> None:
    by_server, by_peer = held(), held()
    deltas.finish(by_server, {8: 3}, {}, ())
    deltas.finish(by_peer, {7: 4}, {}, (), from_peer=True)
    assert by_server == {7: Track(1, 9)}
    assert by_peer == {7: Track(5, 9)}


def test_a_partition_that_every_copy_has_is_done() -> None:
    tracks = held()
    deltas.finish(tracks, {7: 9}, {7: 9}, ())
    assert tracks == {}
    tracks = held()
    deltas.finish(tracks, {}, {}, (7,))
    assert tracks == {}
