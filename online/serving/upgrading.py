"""May a model of today's defaults begin to learn beside one that keeps older ones?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from online.challenger.promotion import of_today
from online.errors import RequestError
from online.settings.model import Challenge, ModelSettings


def upgrading(
    model: ModelSettings, challenger: Mapping[str, Any] | None, *, can: bool
) -> Challenge:
    """Return the challenger that is to begin; one that is there already is no hindrance.

    Parameters:
        challenger: The one that the model has, as it is shown; None: it has none.
        can: Whether this service has processes for challengers.

    Raises RequestError 409.
    """
    if (todays := of_today(model)) is None:
        message = f"model {model.name} has today's defaults: nothing is to be upgraded"
        hint = "Name another learner in models[].challenger to compare it"
        raise RequestError(409, "nothing_to_upgrade", message, None, hint)
    if challenger is not None and challenger["params"] != todays.params:
        message = f"model {model.name} has a challenger already: {challenger['learner']}"
        raise RequestError(409, "has_challenger", message, None, "Take it out of the settings")
    if not can:
        message = "a challenger learns in a process of its own, and this service has one"
        raise RequestError(409, "one_process", message, None, "Start it with `online serve`")
    return todays
