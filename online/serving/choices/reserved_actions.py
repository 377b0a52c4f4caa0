"""Reserves actions for slots that may have only few: earlier slots leave one for each.

This is bipartite matching of slots and actions: an earlier slot may not take an action that is in
every assignment of the later ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Set
from typing import Final


class ReservedActions:
    """An assignment of actions to the slots that are still to be filled.

    Parameters:
        allowed: Indices of the actions that each slot may have, by the slot's number.  Slots that
            may have at least as many as there are slots need not be given: one is always left.

    Attributes:
        short: The first slot for which no action is left, whatever the others get; None: none.
    """

    def __init__(self, allowed: Mapping[int, Set[int]]) -> None:
        self._allowed = allowed
        self._of: dict[int, int] = {}  # action: the slot to which it is assigned
        self._action: dict[int, int] = {}  # slot: its action
        self._taken: set[int] = set()
        self.short: Final = next((slot for slot in allowed if not self._assign(slot)), None)

    def needed_after(self, slot: int) -> list[int]:
        """Return the actions that this slot must leave to the slots after it."""
        if (own := self._action.pop(slot, None)) is not None:
            del self._of[own]
        return [action for action in list(self._of) if not self._spared(action)]

    def take(self, action: int) -> None:
        """Note that a slot got an action, which no other slot may have then."""
        self._taken.add(action)
        if (slot := self._of.pop(action, None)) is not None:
            del self._action[slot]
            self._assign(slot)

    def _spared(self, action: int) -> bool:
        """Whether the slots can do without the action; moves its slot to another one, if so."""
        if (slot := self._of.pop(action, None)) is None:
            return True  # its slot was moved
        del self._action[slot]
        if self._assign(slot, without=action):
            return True
        self._of[action], self._action[slot] = slot, action
        return False

    def _assign(self, slot: int, *, without: int | None = None) -> bool:
        """Assign an action to a slot, moving others if need be; return whether there is one."""
        seen = self._taken if without is None else self._taken | {without}
        seen, reached, queue = set(seen), dict[int, int](), deque([slot])
        while queue:
            asking = queue.popleft()
            for action in self._allowed[asking] - seen:
                seen.add(action)
                reached[action] = asking
                if action in self._of:
                    queue.append(self._of[action])
                    continue
                free: int | None = action
                while free is not None:  # each slot on the path leaves its action to the next
                    asking = reached[free]
                    left = self._action.get(asking)
                    self._of[free], self._action[asking] = asking, free
                    free = left
                return True
        return False
