"""Choices and rewards of a client, written once for its sync and async form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from online.client.calls import Calls, Request, Steps
from online.client.drives import verb
from online.errors import ClientError
from online.messages.choices import Chosen, ChosenSlots
from online.messages.structs import Event, Receipt
from online.messages.values import plain_value

Data = dict[str, Any]


class NotASlot(ClientError):
    """Baselines name slots that the request does not have; nothing was sent."""

    names: str
    slots: str
    text = "baselines names {names}, which is none of the slots: name some of {slots}"


class ChoiceVerbs:
    """Choices of one model of a service.

    Parameters:
        calls: Makes the requests.
        name: The model's name at the service.
    """

    def __init__(self, calls: Calls, name: str) -> None:
        self._calls, self.name = calls, name

    @verb
    def choose(
        self,
        actions: Sequence[str] | Mapping[str, Mapping[str, Any]],
        context: Any = None,
        *,
        exclude: Sequence[str] = (),
        baseline: str | None = None,
        id: str | None = None,
        max_age_ms: float | None = None,
        defer: bool = False,
    ) -> Steps[Chosen]:
        """Choose one of some actions.  Raises ClientError.

        Parameters:
            actions: Ids of the actions, or their features by id.
            context: Features of the situation.
            exclude: Ids that must not be chosen this time.
            baseline: The action that you would choose.
            id: Your own id of the choice: with it every replica gives the same answer again;
                without one a repeat is another choice.
            max_age_ms: The oldest model that may answer.
            defer: No default reward is assigned before the choice is activated.
        """
        body = given(
            context=None if context is None else plain_value("context", context),
            actions=_named("actions", actions), exclude=list(exclude) or None,
            baseline=baseline, id=id, max_age_ms=max_age_ms, defer=defer or None,
        )  # fmt: skip
        request = Request("POST", self._path("/choose"), msgspec.json.encode(body))
        return (yield from self._calls.ask(request, Chosen))

    @verb
    def choose_slots(
        self,
        actions: Sequence[str] | Mapping[str, Mapping[str, Any]],
        slots: Sequence[str] | Mapping[str, Mapping[str, Any]],
        context: Any = None,
        *,
        exclude: Sequence[str] = (),
        baselines: Mapping[str, str] | None = None,
        id: str | None = None,
        max_age_ms: float | None = None,
        defer: bool = False,
    ) -> Steps[dict[str, Chosen]]:
        """Choose an action for each of several slots, none twice; returns answers by slot id.

        Parameters:
            slots: Ids of the slots, or their features by id, in the order in which they are filled.
            baselines: By slot id, the action that you would choose.

        The other parameters are those of :meth:`choose`.  Each answer has an id for its own reward.
        Raises ClientError.
        """
        taken = baselines or {}
        places = [
            {**slot, "baseline": taken[slot["id"]]} if slot["id"] in taken else slot
            for slot in _named("slots", slots)
        ]
        ids = [slot["id"] for slot in places]
        if unknown := [name for name in taken if name not in ids]:
            raise NotASlot(", ".join(map(repr, unknown)), ", ".join(map(repr, ids)))
        body = given(
            context=None if context is None else plain_value("context", context),
            actions=_named("actions", actions), slots=places, exclude=list(exclude) or None, id=id,
            max_age_ms=max_age_ms, defer=defer or None,
        )  # fmt: skip
        request = Request("POST", self._path("/choose"), msgspec.json.encode(body))
        chosen = yield from self._calls.ask(request, ChosenSlots)
        return {str(one.slot): one for one in chosen.slots}

    @verb
    def activate(self, id: str) -> Steps[None]:
        """Activate a deferred choice: from now on it waits for its reward."""
        request = Request("POST", self._path("/activate"), msgspec.json.encode({"id": id}))
        yield from self._calls.send(request)

    @verb
    def reward(
        self,
        id: str,
        reward: float | Mapping[str, float],
        *,
        source: str = Event().source,
        event_time: float | None = None,
        reward_id: str | None = None,
    ) -> Steps[Receipt]:
        """Send the reward of a choice: a number, or numbers by name; returns its receipt.

        If several rewards are summed, a repeat is recognized by its ``reward_id``; without one it
        is another reward.
        """
        body = given(
            id=id, reward=plain_value("reward", reward), source=source, event_time=event_time,
            reward_id=self._calls.new_id() if reward_id is None else reward_id,
        )  # fmt: skip
        request = Request("POST", self._path("/reward"), msgspec.json.encode(body))
        return (yield from self._calls.ask(request, Receipt, receipts=True))

    def _path(self, path: str) -> str:
        return f"/v1/models/{quote(self.name, '')}{path}"


def given(**values: Any) -> Data:
    return {name: value for name, value in values.items() if value is not None}


def _named(field: str, items: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> list[Data]:
    """Actions or slots in the form of the request body; a single text is the id of one."""
    if not isinstance(items, Mapping):
        ids = [items] if isinstance(items, str) else items
        return [{"id": one, "features": {}} for one in ids]
    return [
        {"id": one, "features": plain_value(f"{field}[{i}].features", dict(features))}
        for i, (one, features) in enumerate(items.items())
    ]
