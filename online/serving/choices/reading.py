"""Reads the bodies of choices: checks context and actions, and makes the question of a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

from online.decide.record import Choice
from online.errors import invalid
from online.messages.choices import Action, ChooseRequest
from online.models.choices.interactions import Alike, alike, are_brief
from online.rows.validator import NUMBER_MAX, Validator, not_plain
from online.settings.limits import Limits
from replay.example import Features
from replay.plain import is_plain

RESERVED: Final = "@"
"""Prefix of the action's feature names in rows of choices."""


class Offered(NamedTuple):
    """The actions of a request, their positions by id, and their features as an array."""

    actions: tuple[tuple[str, Features], ...]
    places: Mapping[str, int]
    table: Alike | None


class ChoiceReader:
    """Checks the choice requests of one model."""

    def __init__(self, validator: Validator, limits: Limits) -> None:
        self._validator, self._limits = validator, limits
        self._takes = lru_cache(maxsize=16)(validator.takes)
        self._named = lru_cache(maxsize=64)(partial(_are_names, most=limits.text_bytes_max))

    def offered(self, actions: Sequence[Action]) -> Offered:
        """Check the actions of a request.  Raises RequestError."""
        check_count(actions, self._limits)
        table = self._table(actions)
        checked = self._actions(actions, table)
        return Offered(checked, {action: i for i, (action, _) in enumerate(checked)}, table)

    def choice(
        self, request: ChooseRequest, offered: Offered, policy: str, *, apprentice: bool
    ) -> Choice:
        """Check what is asked about the actions; nothing is chosen yet.  Raises RequestError."""
        actions, places, table = offered
        context = self._context(request.context)
        if self._validator.crossing is not None:
            described = [features for _, features in actions]
            self._validator.crossing.check(context, described, "actions", alike=table is not None)
        excluded = tuple(sorted({_place(places, x, "exclude") for x in request.exclude}))
        if len(excluded) == len(actions):
            hint = "Leave one that may be chosen"
            raise invalid("exclude", "all actions are excluded", hint)
        baseline = None
        if request.baseline is not None:
            baseline = _place(places, request.baseline, "baseline")
        elif apprentice:
            hint = "Send the action that you take, or let the model answer: `online promote`"
            raise invalid("baseline", "no baseline, and the model is an apprentice", hint)
        if apprentice and baseline in excluded:
            hint = "Take another one, or do not exclude it"
            raise invalid("baseline", "it is excluded", hint)
        return Choice(
            context, actions, excluded, 0, (), (), policy, baseline, deferred=request.defer
        )

    def _context(self, context: dict[str, Any]) -> Features:
        for name in context:
            if name.startswith(RESERVED):
                hint = f"Names of actions begin with {RESERVED!r} here: call it otherwise"
                raise invalid(f"context.{name[:80]}", f"a name with {RESERVED!r}", hint)
        return self._validator.features(context, "context") if context else {}

    def _table(self, actions: Sequence[Action]) -> Alike | None:
        """Return the features of actions with the same names as an array, if all are valid."""
        table = alike([action.features for action in actions])
        if table is None or not self._takes(table.names):
            return None
        ends = zip(table.least, table.most, strict=True)
        return table if all(a >= -NUMBER_MAX and b <= NUMBER_MAX for a, b in ends) else None

    def _actions(
        self, actions: Sequence[Action], table: Alike | None
    ) -> tuple[tuple[str, Features], ...]:
        if table is not None:
            ids = tuple([action.id for action in actions])
            named = self._named if are_brief(ids) else self._named.__wrapped__
            if named(ids):
                return tuple(zip(ids, [action.features for action in actions], strict=True))
        taken: dict[str, Features] = {}
        for i, action in enumerate(actions):
            if len(action.id) > self._limits.text_bytes_max:
                raise invalid(
                    f"actions[{i}].id", f"{len(action.id)} characters", "Use a shorter id"
                )
            if not is_plain(action.id):
                raise not_plain(f"actions[{i}].id", "an id", action.id)
            if action.id in taken:
                hint = "Send each action once"
                raise invalid(f"actions[{i}].id", f"{action.id[:80]!r} is there twice", hint)
            features = action.features
            if features and table is None:
                features = self._validator.features(features, f"actions[{i}].features")
            taken[action.id] = features
        return tuple(taken.items())


def check_count(actions: Sized, limits: Limits) -> None:
    """Raise RequestError if there are too many actions, or none."""
    most = limits.actions_max
    if not 1 <= len(actions) <= most:
        hint = f"Send 1 to {most}, or raise limits.actions_max"
        raise invalid("actions", f"{len(actions)} actions", hint)


def _are_names(ids: tuple[str, ...], most: int) -> bool:
    """Whether these are valid action ids; cached, because requests often repeat them.

    The caller checks invalid ids one by one to report the error.
    """
    return len(set(ids)) == len(ids) and all(len(one) <= most and is_plain(one) for one in ids)


def _place(places: Mapping[str, int], action: str, field: str) -> int:
    if (place := places.get(action)) is None:
        hint = "Name one of the actions that were sent"
        raise invalid(field, f"no action {action[:80]!r}", hint)
    return place
