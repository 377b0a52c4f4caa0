"""Choices for several slots on one page: an action for each, none of them twice.

Slots are chosen one after the other, each without the actions that earlier ones took or later ones
need; the slot's id and its features are added to the context.  So each is a choice with an id and a
reward of its own, and all rules of choices apply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from online.errors import RequestError, invalid
from online.messages.choices import ChooseRequest, Chosen, ChosenSlots, RewardRequest, Slot
from online.messages.structs import Receipt, Receipts
from online.serving.choices.choosing import Asked, Choosing
from online.serving.choices.reserved_actions import ReservedActions
from replay.journal.base import NewRow

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

    Raises RequestError.  Choices of earlier slots may have been written then if the request has an
    id, under which a repeat gets them, or if all choices are recorded before their answers.
    """
    slots = request.slots or []
    _check(request, slots, choosing.serving.replica.limits.slots_max)
    asked = []
    for slot in slots:
        own = {f"{_SLOT}.{name}": value for name, value in slot.features.items()}
        one = msgspec.structs.replace(
            request,
            slots=None,
            context={**request.context, _SLOT: slot.id, **own},
            exclude=[*request.exclude, *slot.exclude],
            baseline=slot.baseline,
            id=None if request.id is None else f"{request.id}:{slot.id}",
        )
        asked.append(one)
    chosen = await choose_each(choosing, asked)
    return ChosenSlots(
        [
            msgspec.structs.replace(answer, slot=slot.id)
            for slot, answer in zip(slots, chosen, strict=True)
        ],
        choosing.serving.name,
    )


async def choose_each(choosing: Choosing, requests: Sequence[ChooseRequest]) -> list[Chosen]:
    """Choose an action for each of several requests about the same actions, none twice.

    All are checked before the first one is chosen, and what is written behind the answers is
    queued for all or for none.  An action that a later request can't do without is chosen for no
    earlier one.  Raises RequestError.
    """
    offered, asked = choosing.offered(requests[0].actions), list[Asked]()
    for i, request in enumerate(requests):
        try:
            asked.append(choosing.asked(request, offered))
        except RequestError as error:
            if error.field in ("exclude", "baseline"):
                error.field = f"slots[{i}].{error.field}"
            raise
        await asyncio.sleep(0)  # lets other tasks run between two slots
    reserved = _reserved(asked)
    taken: list[int] = []
    chosen, behind = [], list[NewRow]()
    for i, one in enumerate(asked):
        excluded = {*one.choice.excluded, *taken, *reserved.needed_after(i)}
        choice = msgspec.structs.replace(one.choice, excluded=tuple(sorted(excluded)))
        answer = await choosing.answer(one._replace(choice=choice), behind)
        taken.append(offered.places[answer.action])
        reserved.take(taken[-1])
        chosen.append(answer)
        await asyncio.sleep(0)
    if behind:
        choosing.keep(behind)
    return chosen


def _reserved(asked: Sequence[Asked]) -> ReservedActions:
    """Assign actions to the slots that may have few.  RequestError 422 if one gets none."""
    allowed = dict[int, set[int]]()
    for i, (choice, _, _, _, apprentice) in enumerate(asked):
        if apprentice and choice.baseline is not None:
            allowed[i] = {choice.baseline}
        elif len(choice.actions) - len(choice.excluded) < len(asked):
            allowed[i] = set(range(len(choice.actions))).difference(choice.excluded)
    reserved = ReservedActions(allowed)
    if (short := reserved.short) is None:
        return ReservedActions({}) if asked[0].apprentice else reserved
    if asked[0].apprentice:
        hint = "Send another baseline for each slot"
        raise invalid(f"slots[{short}].baseline", "it is that of an earlier slot", hint)
    message = "no action is left for it, whatever the slots before it get"
    raise invalid(f"slots[{short}].exclude", message, "Exclude fewer, or send more actions")


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
