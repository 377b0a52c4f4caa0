"""Choices for several slots on one page: an action for each, none of them twice.

Slots are chosen one after the other, each without the actions that earlier ones took; the slot's id
and its features are added to the context.  So each is a choice with an id and a reward of its own,
and all rules of choices apply.
"""

from __future__ import annotations

import asyncio

import msgspec

from online.errors import invalid
from online.messages.choices import ChooseRequest, Chosen, ChosenSlots, RewardRequest, Slot
from online.messages.structs import Receipt, Receipts
from online.serving.choices.choosing import Choosing

_SLOT = "slot"
"""Context feature with the slot's id, and prefix of the slot's own features before a dot."""


async def answer_choice(
    choosing: Choosing, request: ChooseRequest | RewardRequest
) -> tuple[int, Chosen | ChosenSlots | Receipt | Receipts]:
    """Handle a choice or rewards: return the HTTP status and the answer.  Raises RequestError."""
    if isinstance(request, RewardRequest):
        return await choosing.rewards.take(request)
    if request.slots is not None:
        return 200, await choose_slots(choosing, request)
    return 200, await choosing.choose(request)


async def choose_slots(choosing: Choosing, request: ChooseRequest) -> ChosenSlots:
    """Choose an action for each slot, in order.

    Raises RequestError; the choices of earlier slots may have been written then.
    """
    slots = request.slots or []
    _check(request, slots, choosing.serving.replica.limits.slots_max)
    taken: list[str] = []
    chosen = []
    for slot in slots:
        own = {f"{_SLOT}.{name}": value for name, value in slot.features.items()}
        asked = msgspec.structs.replace(
            request,
            slots=None,
            context={**request.context, _SLOT: slot.id, **own},
            exclude=list(dict.fromkeys([*request.exclude, *slot.exclude, *taken])),
            baseline=slot.baseline,
            id=None if request.id is None else f"{request.id}:{slot.id}",
        )
        answer = await choosing.choose(asked)
        taken.append(answer.action)
        chosen.append(msgspec.structs.replace(answer, slot=slot.id))
        await asyncio.sleep(0)  # lets other tasks run between two slots
    return ChosenSlots(chosen, choosing.serving.name)


def _check(request: ChooseRequest, slots: list[Slot], slots_max: int) -> None:
    """Raise RequestError if there are too many slots, or their ids are ambiguous."""
    most = len(request.actions) - len(set(request.exclude))
    if not 1 <= len(slots) <= most:
        hint = "Send at least one slot, and as many actions that may be chosen as slots"
        problem = f"{len(slots)} slots, and {most} actions that may be chosen"
        raise invalid("slots", problem, hint)
    if len(slots) > slots_max:
        hint = f"Send no more than {slots_max}, or raise limits.slots_max"
        raise invalid("slots", f"{len(slots)} slots", hint)
    if request.baseline is not None:
        hint = "Send one with each slot"
        raise invalid("baseline", "a baseline for several slots", hint)
    for name in request.context:
        if name == _SLOT or name.startswith(f"{_SLOT}."):
            hint = "Such names are those of slots here: call it otherwise"
            raise invalid(f"context.{name[:80]}", f"a name with {_SLOT!r}", hint)
    seen: set[str] = set()
    for i, slot in enumerate(slots):
        if ":" in slot.id:
            hint = "Leave the colon out: it parts your id and the slot's"
            raise invalid(f"slots[{i}].id", f"{slot.id[:80]!r} has a colon", hint)
        if slot.id in seen:
            raise invalid(f"slots[{i}].id", f"{slot.id[:80]!r} is there twice", "Name each once")
        seen.add(slot.id)
