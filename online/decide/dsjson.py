"""Export of choices in VowpalWabbit's format "dsjson": one line of JSON for each choice."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from online.decide.record import Choice
from replay.example import Features


def line(choice: Choice, reward: float, event: str, at: float) -> str:
    """Format one choice with its reward, without a newline.

    ``at`` is the time at which the reward was recorded, in POSIX seconds.  Excluded actions are
    left out, since the format needs a probability above 0 for each action.
    """
    order = [i for i in choice.ranking() if choice.probabilities[i] > 0.0]
    listed = [i for i in range(len(choice.actions)) if i in order]
    number = {place: n for n, place in enumerate(listed, 1)}
    record = {
        "_label_cost": -reward,
        "_label_probability": choice.propensity,
        "_label_Action": number[choice.chosen],
        "_labelIndex": number[choice.chosen] - 1,
        "o": [{"v": reward, "EventId": event, "ActionTaken": True}],
        "Timestamp": datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z"),
        "Version": "1",
        "EventId": event,
        "a": [number[i] for i in order],
        "c": {
            "context": _plain(choice.context),
            "_multi": [
                {"action": {"id": name, **_plain(features)}}
                for name, features in (choice.actions[i] for i in listed)
            ],
        },
        "p": [choice.probabilities[i] for i in order],
        "VWState": {"m": choice.policy},
    }
    return json.dumps(record, separators=(",", ":"))


def _plain(features: Features) -> Features:
    """Return the features without nulls, which the format does not have."""
    return {name: value for name, value in features.items() if value is not None}
