"""Ids are by who asks, and a token says whose predictions it may label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from replica_world import SPEC, World, play, until

from online.errors import RequestError
from online.messages.sender import sender
from online.messages.structs import FeedbackRequest, PredictRequest
from online.rows.prediction_ids import Keys, Nonces, Tokens
from online.rows.validator import Validator
from online.serving.serving import Serving
from online.settings.tokens import Grant
from replay import codec

ASKERS = ("app", "other-app")
APP, OTHER, NOBODY = Grant("app"), Grant("other-app"), Grant()
OFFICE = Grant("office", labels_for=("app",))
STRANGER = Grant("stranger")
ADMIN = Grant(trusted=True)


class Desk:
    """One replica, asked with the tokens of several senders."""

    def __init__(self, world: World, replica: Any) -> None:
        validator = Validator(replica.settings, replica.limits, numeric_only=True)
        tokens = Tokens(Keys([bytes(32)]), "m", Nonces(b"tokens"))
        self._serving = Serving(replica, validator, tokens, replica.limits, SPEC, ASKERS)
        self._world, self._replica = world, replica

    async def predict(self, grant: Grant, feature: str, own: str | None = "visit-9001") -> str:
        """By whom, of what, with which id; it is written when this returns."""
        sender.set(grant)
        given = self._serving.predict(PredictRequest(features={feature: 1.0}, id=own)).id
        await until(lambda: self._replica.writer.idle)
        return str(given)

    async def label(
        self, grant: Grant, own: str = "visit-9001", value: float = 1e9, source: str | None = None
    ) -> str:
        """What becomes of a label."""
        sender.set(grant)
        named = {} if source is None else {"source": source}
        request = FeedbackRequest(label=value, id=own, **named)
        return str((await self._serving.feedback(request))[1].status)

    def learned(self, *features: str) -> list[float]:
        return [self._world.weight(self._replica, feature) for feature in features]


def scene_of(tmp_path: Path, scene: Any) -> None:
    async def whole(world: World) -> None:
        replica = await world.replica()
        await scene(Desk(world, replica))
        await replica.stop(2)

    try:
        play(tmp_path, whole)
    finally:
        sender.set(Grant())


def test_a_stranger_s_early_guess_does_not_take_the_owner_s_label(tmp_path: Path) -> None:
    async def scene(desk: Desk) -> None:
        assert await desk.label(STRANGER, value=-1e9) == "waiting"
        await desk.predict(APP, "a")
        assert desk.learned("a") == [0], "the guess is no label of it"
        assert await desk.label(OFFICE) == "learned"
        assert desk.learned("a") == [1]
        assert await desk.label(STRANGER, value=-1e9) == "waiting", "and it is told nothing"

    scene_of(tmp_path, scene)


def test_a_stranger_s_late_guess_is_no_label(tmp_path: Path) -> None:
    async def scene(desk: Desk) -> None:
        await desk.predict(APP, "a")
        assert await desk.label(STRANGER, value=-1e9) == "waiting"
        assert await desk.label(OFFICE) == "learned"
        assert await desk.label(OFFICE) == "duplicate"
        assert desk.learned("a") == [1]

    scene_of(tmp_path, scene)


def test_both_early_labels_wait_and_the_prediction_takes_the_first_allowed(tmp_path: Path) -> None:
    async def scene(desk: Desk) -> None:
        for grant in (STRANGER, OFFICE, APP):
            assert await desk.label(grant, value=1e9 if grant is OFFICE else -1e9) == "waiting"
        await desk.predict(APP, "a")
        assert desk.learned("a") == [1]
        assert await desk.label(OFFICE) == "duplicate"
        assert await desk.label(APP, value=-1e9) == "conflict"

    scene_of(tmp_path, scene)


def test_who_predicts_first_with_a_stranger_s_id_takes_it_from_nobody(tmp_path: Path) -> None:
    async def scene(desk: Desk) -> None:
        await desk.predict(OTHER, "theirs")
        await desk.predict(APP, "a")
        await desk.predict(APP, "again")
        assert await desk.label(OFFICE) == "learned"
        assert desk.learned("theirs", "a", "again") == [0, 1, 0]
        assert await desk.label(OTHER) == "learned", "its own"
        assert desk.learned("theirs", "a") == [1, 1]

    scene_of(tmp_path, scene)


def test_predictions_whose_token_names_no_source_are_anybody_s(tmp_path: Path) -> None:
    """The app that predicts and the back office that labels are two tokens."""

    async def scene(desk: Desk) -> None:
        for n, grant in enumerate((STRANGER, OFFICE, NOBODY, ADMIN)):
            await desk.predict(NOBODY, f"f{n}", f"id-{n}")
            assert await desk.label(grant, f"id-{n}") == "learned"
        assert desk.learned("f0", "f1", "f2", "f3") == [1, 1, 1, 1]

    scene_of(tmp_path, scene)


def test_a_source_s_own_prediction_comes_before_one_of_nobody(tmp_path: Path) -> None:
    async def scene(desk: Desk) -> None:
        await desk.predict(NOBODY, "nobody's")
        await desk.predict(APP, "own")
        assert await desk.label(APP) == "learned"
        assert desk.learned("own", "nobody's") == [1, 0]

    scene_of(tmp_path, scene)


@pytest.mark.parametrize("first", [NOBODY, APP])
def test_an_early_label_that_may_fit_two_predictions_is_learned_once(
    tmp_path: Path, first: Grant
) -> None:
    async def scene(desk: Desk) -> None:
        assert await desk.label(APP) == "waiting"
        assert desk._world.journal().usage("m").halves == 2
        for grant in (first, NOBODY if first is APP else APP):
            await desk.predict(grant, "app" if grant is APP else "nobody")
        assert sorted(desk.learned("app", "nobody")) == [0, 1]
        assert desk.learned("app" if first is APP else "nobody") == [1]

    scene_of(tmp_path, scene)


def test_an_admin_labels_for_the_source_that_it_names(tmp_path: Path) -> None:
    async def scene(desk: Desk) -> None:
        await desk.predict(APP, "a")
        assert await desk.label(ADMIN, source="stranger") == "waiting"
        assert await desk.label(ADMIN, source="app") == "learned"

    scene_of(tmp_path, scene)


@pytest.mark.parametrize(
    ("grant", "good"),
    [
        (APP, True),
        (OFFICE, True),
        (ADMIN, True),
        (STRANGER, False),
        (OTHER, False),
        (NOBODY, False),
    ],
)
def test_a_sealed_id_is_labelled_by_who_may(tmp_path: Path, grant: Grant, good: int) -> None:
    """By the same rule as a short one: how a label travels decides nothing."""

    async def scene(desk: Desk) -> None:
        given = await desk.predict(APP, "a", None)
        if good:
            assert await desk.label(grant, given) == "learned"
            return
        with pytest.raises(RequestError) as caught:
            await desk.label(grant, given)
        assert (caught.value.status, caught.value.code, caught.value.field) == (
            403, "not_yours", "id",
        )  # fmt: skip
        assert "labels_for" in str(caught.value.hint)
        assert desk.learned("a") == [0]

    scene_of(tmp_path, scene)


def test_ids_and_sealed_ids_of_before_still_match(tmp_path: Path) -> None:
    """Keys and tokens without an asker are those that this version makes for nobody."""
    from online.rows.prediction_ids import EventKeys, Predicted, event_key

    far, near = EventKeys(False), EventKeys(True)
    assert far.join(None, "visit-1") == event_key("join", "visit-1")
    for form in (far, near):
        assert len({form.join(*a) for a in ((None, "a"), ("a", "b"), ("b", "a"), ("", "a"))}) == 4
    tokens = Tokens(Keys([bytes(32)]), "m", Nonces(b"tokens"))
    import msgspec

    before = list(msgspec.to_builtins(Predicted(1, {"a": 1.0}, None, (0, 0, 0), 1.0, None, "f")))
    sealed = tokens._keys.seal(bytes(12), msgspec.msgpack.encode(before[:8]), tokens._model)
    assert tokens.read(sealed)[1].asker is None

    async def scene(desk: Desk) -> None:
        await desk.predict(NOBODY, "a", "visit-1")
        assert await desk.label(Grant("anybody"), "visit-1") == "learned"
        found = desk._world.journal().find("m", near.join(None, "visit-1"))
        assert found is not None
        assert codec.decode(found.payload).features == {"a": 1.0}

    scene_of(tmp_path, scene)


def test_an_asker_that_is_no_token_s_is_not_waited_for(tmp_path: Path) -> None:
    async def scene(desk: Desk) -> None:
        assert await desk.label(Grant("office", labels_for=("gone", "app")), "x") == "waiting"
        assert desk._world.journal().usage("m").halves == 2, "of app, and of nobody"

    scene_of(tmp_path, scene)
