"""Rules of choices, their rewards and defaults, taken out one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sim_mutant import Mutant, only

_CHOOSING: Final = "online.serving.choices.choosing"
_DEFAULTS: Final = "online.serving.choices.default_rewards"
_EVENTS: Final = "online.serving.feedback.events"
_JOINED: Final = "return joined(key, made, label, at, half.payload, late=late)"

CHOICES: Final[Mapping[str, Any]] = only(
    "kill replica", "kill server", "kill all", "kill in a step", "lost answers", "cut", "stall",
    "bad weather", "stop replica",
    choices=True, labels=False, twice=False, old=0.0, forgets=False, ahead=False,
)  # fmt: skip
"""What is the same in all seeds of choices."""

DECIDED_CHOICES: Final[Mapping[str, Any]] = {
    **CHOICES, "faults": CHOICES["faults"] | {"rollback", "freeze"}, "snapshot_s": 0.5,
}  # fmt: skip
"""Choices of which an operator takes some out, and some are only kept."""

CHOICE_MUTANTS: dict[str, Mutant] = {
    "a default is a row beside the reward": Mutant(
        (
            (
                _DEFAULTS,
                _JOINED,
                "row = joined(key, made, label, at, half.payload, late=late)\n"
                "        key = event_key('default', half.event_id)\n"
                "        return msgspec.structs.replace(row, key=key, over=None)",
            ),
        ),
        climate=CHOICES,
        within=20,
    ),
    "a default comes before its time": Mutant(
        (
            (
                "online.serving.defaults",
                "await self._give(self._seen, at - wait_s, at, lambda key, _: True)",
                "await self._give(self._seen, at, at, lambda key, _: True)",
            ),
        ),
        climate=CHOICES,
        within=20,
    ),
    "a reward is counted again when it is sent again": Mutant(
        (
            (
                _EVENTS,
                "key, age_s = self._replica.store.keys.token(event_id), "
                "self._now_s() - predicted.at\n",
                "at = str(self._now_s())\n"
                "        key, age_s = self._replica.store.keys.token(event_id + at), 0.0\n",
            ),
        ),
        climate=CHOICES,
        within=20,
    ),
    "a choice is drawn again for who asks again": Mutant(
        (
            (
                _CHOOSING,
                "        if (stored := self._stored(recorded)) is None:\n",
                "        if (stored := self._stored(recorded)) is None or True:\n",
            ),
        ),
        climate=CHOICES,
        within=20,
    ),
    "a row has an action that was drawn anew": Mutant(
        (
            (
                _DEFAULTS,
                "            made = msgspec.structs.replace(made, choice=record)\n",
                "            again = {**made.features, '@': choice.actions[0][0]}\n"
                "            made = msgspec.structs.replace(made, choice=record, features=again)\n",
            ),
        ),
        climate=CHOICES,
        within=20,
    ),
    "a reward of several is added again when it comes again": Mutant(
        (
            (
                "online.serving.choices.collecting",
                "            if sent.named is not None and other.named == sent.named:\n",
                "            if False:\n",
            ),
        ),
        climate={**CHOICES, "aggregate": "sum"},
        within=20,
    ),
    "the first of several rewards stands for the last": Mutant(
        (
            (
                "online.decide.reward_totals",
                "            newest |= one.values\n",
                "            newest = newest or one.values\n",
            ),
        ),
        climate={**CHOICES, "aggregate": "last"},
        within=20,
    ),
}
