"""Serves clients of Azure Personalizer: converts their requests into choices and rewards.

Their events have ids of their own, so each choice is written before it is answered.  Features come
as lists of nested objects: names are joined by dots, and each element of a list gets a name.  Slots
are chosen one after the other, each under an id derived from the event's and its own, without the
actions that earlier slots took.
"""

from __future__ import annotations

import uuid
from collections.abc import Sized
from hashlib import blake2b
from typing import Any, Final

import msgspec

from online.errors import RequestError, invalid
from online.messages.bodies import JSON
from online.messages.choices import Action, ChooseRequest, RewardRequest
from online.messages.structs import Receipt
from online.serving.choices.activation import activate
from online.serving.choices.choosing import Choosing
from online.serving.choices.deferred_slots import DeferredSlots
from online.serving.choices.reading import check_count
from online.serving.choices.slots import choose_each
from online.serving.feedback.events import is_join_id
from online.tables.nested import features_of

_EVENT_MAX: Final = 256


class RankableAction(msgspec.Struct):
    """An action as these clients send it."""

    id: str
    features: list[Any] | None = None


class RankRequest(msgspec.Struct, rename="camel"):
    """A request for one action."""

    actions: list[RankableAction]
    context_features: list[Any] | None = None
    excluded_actions: list[str] | None = None
    event_id: str | None = None
    defer_activation: bool | None = False


class Slot(msgspec.Struct, rename="camel"):
    """One of several positions for which an action is chosen."""

    id: str
    baseline_action: str | None = None
    features: list[Any] | None = None
    excluded_actions: list[str] | None = None


class SlotsRequest(msgspec.Struct, rename="camel"):
    """A request for an action for each slot."""

    actions: list[RankableAction]
    slots: list[Slot]
    context_features: list[Any] | None = None
    event_id: str | None = None
    defer_activation: bool | None = False


class Value(msgspec.Struct):
    """The reward of an event."""

    value: float


class SlotReward(msgspec.Struct, rename="camel"):
    """The reward of one slot."""

    slot_id: str
    value: float


class SlotRewards(msgspec.Struct):
    """The rewards of an event's slots."""

    reward: list[SlotReward]


class Personalizer:
    """Serves one model to these clients."""

    def __init__(self, choosing: Choosing) -> None:
        self._choosing = choosing
        self._deferred = DeferredSlots(choosing.serving)
        settings = choosing.serving.replica.settings.choose
        assert settings is not None
        self._settings = settings

    async def rank(self, request: RankRequest) -> dict[str, Any]:
        """Return the ranking of the actions; the first one is to be shown."""
        event = _event(request.event_id)
        excluded = request.excluded_actions or []
        first = next((x.id for x in request.actions if x.id not in excluded), None)
        asked = self._request(
            own_id(event), self._named(request.actions), self._flat(request.context_features),
            excluded, first, defer=bool(request.defer_activation),
        )  # fmt: skip
        answer = await self._choosing.choose(asked)
        ranking = [{"id": x.id, "probability": x.probability} for x in answer.ranking]
        return {"ranking": ranking, "eventId": event, "rewardActionId": answer.action}

    async def rank_slots(self, request: SlotsRequest) -> dict[str, Any]:
        """Return an action for each slot, none of them twice."""
        event = _event(request.event_id)
        if not 1 <= len(request.slots) <= len(request.actions):
            hint = "Send at least one slot, and as many actions as slots"
            raise invalid("slots", f"{len(request.slots)} slots", hint)
        self._check_slots(request.slots, "slots")
        if len({slot.id for slot in request.slots}) < len(request.slots):
            raise invalid("slots", "two have the same id", "Give each its own")
        named, context = self._named(request.actions), self._flat(request.context_features)
        asked = []
        for slot in request.slots:
            of_slot = {f"slot.{n}": x for n, x in self._flat(slot.features).items()}
            one = self._request(
                own_id(event, slot.id), named, {**context, **of_slot},
                slot.excluded_actions or [], slot.baseline_action,
                defer=bool(request.defer_activation),
            )  # fmt: skip
            asked.append(one)
        ids = [slot.id for slot in request.slots]
        if request.defer_activation:
            await self._deferred.check(_list_id(event), ids)
        chosen = await choose_each(self._choosing, asked)
        slots = [
            {"id": slot, "rewardActionId": answer.action}
            for slot, answer in zip(ids, chosen, strict=True)
        ]
        if request.defer_activation:
            await self._deferred.keep(_list_id(event), ids)
        return {"slots": slots, "eventId": event}

    async def reward(self, event: str, value: float, reward_id: str | None = None) -> None:
        """Take the reward of an event; where rewards are summed, ``reward_id`` marks repeats."""
        await self._reward(own_id(event), value, reward_id)

    async def reward_slots(
        self, event: str, rewards: SlotRewards, reward_id: str | None = None
    ) -> None:
        """Take rewards of slots; each is written by itself."""
        self._check_slots(rewards.reward, "reward")
        for i, one in enumerate(rewards.reward):
            self._choosing.rewards.check(one.value, f"reward[{i}].value")
        for one in rewards.reward:
            await self._reward(own_id(event, one.slot_id), one.value, reward_id)
        await self._deferred.drop(_list_id(event), {one.slot_id for one in rewards.reward})

    async def activate(self, event: str) -> None:
        """Record that the deferred answer to an event was shown."""
        await activate(self._choosing.serving, own_id(event))

    async def activate_slots(self, event: str) -> None:
        """Record that the deferred answers for all slots of an event were shown."""
        slots = await self._deferred.of(_list_id(event))
        if not slots:
            hint = "Send the id of a multi-slot event that was deferred"
            raise RequestError(404, "unknown_id", "no deferred event has this id", "eventId", hint)
        for slot in slots:
            await activate(self._choosing.serving, own_id(event, slot))

    def configuration(self) -> dict[str, Any]:
        """Return the settings, as these clients name them.

        The share of exploration is that of ``epsilon``, otherwise the greatest one allowed.
        """
        asked = self._settings
        shares = {"greedy": 0.0, "epsilon": asked.epsilon}
        return {
            "defaultReward": asked.default_reward,
            "rewardWaitTime": f"PT{asked.reward_wait:g}S",
            "rewardAggregation": asked.aggregate,
            "explorationPercentage": min(shares.get(asked.policy, 1.0), asked.budget),
            "learningMode": "Apprentice" if self._choosing.apprentice else "Online",
            "modelExportFrequency": "PT0S",  # what is learned counts in the next answer
            "isAutoOptimizationEnabled": False,
        }

    def policy(self) -> dict[str, str]:
        """Return how actions are explored, as these clients name it."""
        arguments = JSON.encode(self._settings.policy_parts()).decode()
        return {"name": self._settings.policy, "arguments": arguments}

    def _check_slots(self, slots: Sized, field: str) -> None:
        most = self._choosing.serving.replica.limits.slots_max
        if len(slots) > most:
            hint = f"Send no more than {most}, or raise limits.slots_max"
            raise invalid(field, f"{len(slots)} slots", hint)

    def _flat(self, given: list[Any] | None) -> dict[str, Any]:
        limits = self._choosing.serving.replica.limits
        return features_of(given, limits.features_max, limits.text_bytes_max)

    def _named(self, actions: list[RankableAction]) -> list[Action]:
        check_count(actions, self._choosing.serving.replica.limits)
        return [Action(action.id, self._flat(action.features)) for action in actions]

    def _request(
        self,
        own: str,
        named: list[Action],
        context: dict[str, Any],
        exclude: list[str],
        baseline: str | None,
        *,
        defer: bool,
    ) -> ChooseRequest:
        there = {action.id for action in named}
        return ChooseRequest(
            named, context, [x for x in dict.fromkeys(exclude) if x in there],
            baseline if self._choosing.watches else None, own, defer,
        )  # fmt: skip

    async def _reward(self, own: str, value: float, reward_id: str | None) -> None:
        status, receipt = await self._choosing.rewards.take(
            RewardRequest(own, value, reward_id=reward_id)
        )
        assert isinstance(receipt, Receipt)
        if status >= 410:
            message = f"the reward was refused: {receipt.reason or receipt.status}"
            raise RequestError(status, receipt.status, message, "value", "See the reason")


def own_id(event: str, slot: str | None = None) -> str:
    """The id under which an event, or one of its slots, is chosen."""
    if slot is None and is_join_id(event):
        return event
    return _digest(event) if slot is None else _digest(event, slot)


def _list_id(event: str) -> str:
    """The id under which the slots of a deferred event are listed."""
    return _digest(event, "", "slots")


def _digest(*texts: str) -> str:
    digest = blake2b(digest_size=20, person=b"personalizer")
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    return f"event-{digest.hexdigest()}"


def _event(given: str | None) -> str:
    event = given or uuid.uuid4().hex
    if len(event) > _EVENT_MAX:
        hint = f"Send at most {_EVENT_MAX} characters"
        raise invalid("eventId", f"{len(event)} characters", hint)
    return event
