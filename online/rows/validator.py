"""Validates the values of a request: converts them to canonical features and labels, or refuses.

river changes a scaler's state before a later step fails on a value, and silently learns NaN; so
everything is checked here, before any state changes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from online.errors import RequestError, invalid
from online.messages.sender import sender
from online.models.choices.interactions import ACTION
from online.rows.crossing import Crossing
from online.rows.schema import schema_of
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.settings.tokens import WEIGHT_MAX
from replay.example import UNLABELLED, Features, Label, label_text
from replay.plain import is_plain, plain

INTEGER_MAX: Final = 2**53
"""Largest integer: beyond it a JSON number may not be the integer that was written."""
NUMBER_MAX: Final = 1e100
"""Largest feature value: squares, and sums of squares over all rows, stay finite."""
TIME_MAX: Final = 1e14
"""Largest distance of an event's time from 1970 in seconds; calendars of programs end beyond it."""
_NUMBERS: Final[frozenset[type]] = frozenset({float, int, bool})
_DECLARED_NUMBERS: Final[frozenset[type]] = frozenset({float, int})
_NUMBERS_ONLY: Final = (
    "This model takes numbers only; `learner: linear` and `auto` take texts, too: "
    "docs/models.md#text-categories-missing-values"
)


class Validator:
    """Checks the input of one model: names, types and ranges of features and labels.

    Attributes:
        schema: The features declared in the settings; None: any name and type is accepted.
        numbers: Accepted types of values in a row of numbers only (:meth:`takes`).
        crossing: Counts feature products; None: the model does not choose.
    """

    def __init__(self, settings: ModelSettings, limits: Limits, *, numeric_only: bool) -> None:
        self._limits = limits
        self._numeric_only = numeric_only
        self._keys = frozenset(settings.entity or ())
        self._task = settings.task
        self._unlabelled = settings.purpose.unlabelled
        self._rewards = settings.reward_range
        self._bounded = settings.filters != "none"
        self.schema = schema_of(settings)
        self.numbers: frozenset[type] = _NUMBERS if self.schema is None else _DECLARED_NUMBERS
        self.crossing: Crossing | None = None
        if settings.choose is not None:
            text = settings.params.get("text", ())
            self.crossing = Crossing([x for x in text if isinstance(x, str)], limits.products_max)
        classes = settings.classes or {"negative": False, "positive": True}
        self._names: dict[bool, Label] = {False: classes["negative"], True: classes["positive"]}

    def features(self, value: Any, field: str, *, recorded: bool = False) -> Features:
        """Return the checked features, with the numbers exactly as sent.

        ``recorded``: they may be a repeat of a journal row, whose names may have been valid then
        but no longer are (:meth:`odd_name`).
        """
        if not isinstance(value, dict):
            raise invalid(
                field, f"an object is needed, got {_kind(value)}", 'Send {"name": number}'
            )
        if not value:
            raise invalid(field, "no features", "Send at least one name and value")
        if len(value) > self._limits.features_max:
            raise invalid(
                field,
                f"{len(value)} features, at most {self._limits.features_max}",
                "Send fewer, or raise limits.features_max",
            )
        if self.schema is not None:
            if not recorded and (error := self.schema.refusal(value, field)) is not None:
                raise error
            value = self.schema.known(value)
        for name, item in value.items():
            if type(item) is float:
                if not -NUMBER_MAX <= item <= NUMBER_MAX:  # NaN too
                    raise invalid(
                        f"{field}.{name}",
                        f"{item} is not a number in ±{NUMBER_MAX:g}",
                        "Scale it, or leave it out",
                    )
            else:
                self._check_other(item, f"{field}.{name}", key=name in self._keys)
            if len(name) > self._limits.text_bytes_max:
                raise invalid(field, f"a name of {len(name)} characters", "Use a shorter name")
        if not recorded and (odd := self.odd_name(value)) is not None:
            raise not_plain(field, "a name", odd)
        if self.crossing is not None:
            self.crossing.check_rows([value], field)
        features: Features = value
        return features

    def takes(self, names: Sequence[str]) -> bool:
        """Whether a row of numbers may have these names."""
        fit = 1 <= len(names) <= self._limits.features_max
        short = all(len(name) <= self._limits.text_bytes_max for name in names)
        if self.schema is not None and not self.schema.only_numbers(names):
            return False
        row = dict.fromkeys(names)
        narrow = self.crossing is None or self.crossing.takes(row)
        return fit and short and narrow and self.odd_name(row) is None

    def undeclared(self, features: Any, field: str) -> RequestError | None:
        """Return why a new row with these features is refused; None: it is not.

        The declaration refuses it, or it has no action, of which it would teach the reward.
        """
        if not isinstance(features, dict) or not features:
            return None
        if self.lacks_action(features):
            hint = f"Reward a choice by its id, or name the action as {ACTION!r} among the features"
            return invalid(f"{field}.{ACTION}", "no action, and the model chooses actions", hint)
        return None if self.schema is None else self.schema.refusal(features, field)

    def lacks_action(self, names: Collection[str]) -> bool:
        """Whether a row with these names teaches nothing, because the model chooses actions."""
        return self.crossing is not None and ACTION not in names

    def odd_name(self, features: Any) -> str | None:
        """Return a name that contains terminal control characters; None if there is none."""
        if not isinstance(features, dict) or "".join(features).isprintable():
            return None
        return next((name for name in features if not is_plain(name)), None)

    def many(self, instances: list[dict[str, Any]]) -> list[Features]:
        """Return the checked features of many rows."""
        rows = [self.features(x, f"instances[{i}]") for i, x in enumerate(instances)]
        if self.crossing is not None:
            self.crossing.check_rows(rows, "instances")
        return rows

    def _check_other(self, item: Any, field: str, *, key: bool) -> None:
        if isinstance(item, int):  # bool too: river computes with it as 0 or 1
            if abs(item) > INTEGER_MAX:
                raise invalid(field, f"{item} is beyond 2^53", "Send it as text, or scale it")
            return
        if self._numeric_only and not key:
            hint = "Leave a missing value out" if item is None else _NUMBERS_ONLY
            raise invalid(field, f"a number is needed, got {_kind(item)}", hint)
        if isinstance(item, str):
            if len(item) > self._limits.text_bytes_max:
                raise invalid(
                    field,
                    f"text of {len(item)} characters, at most {self._limits.text_bytes_max}",
                    "Shorten it, or raise limits.text_bytes_max",
                )
        elif item is not None:
            raise invalid(field, f"got {_kind(item)}", "Send a number, text, true, false or null")

    def label(self, value: Any, field: str, *, recorded: bool = False) -> Label:
        """Convert a label to the canonical form of the task; ``recorded`` as in :meth:`features`.

        With ``task: anomaly`` it may be null or absent.
        """
        if self._unlabelled and (value is None or value is msgspec.UNSET):
            return UNLABELLED
        if self._task == "binary":
            return self._binary(value, field)
        if self._task == "regression":
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not -NUMBER_MAX <= value <= NUMBER_MAX:
                least, most = self._rewards or (-NUMBER_MAX, NUMBER_MAX)
                hint = f"Send a number in [{least:g}, {most:g}]"
                raise invalid(field, f"a number is needed, got {_show(value)}", hint)
            if self._rewards is not None and not self._rewards[0] <= value <= self._rewards[1]:
                least, most = self._rewards
                hint = f"Send a number in [{least:g}, {most:g}], or change choose.reward_range"
                raise invalid(field, f"a reward of {value:g}", hint)
            return float(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 3 and 3.0 are one class
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            hint = "Send text or a whole number; for two classes use task: binary"
            raise invalid(field, f"not a class: {_show(value)}", hint)
        if isinstance(value, int) and abs(value) > INTEGER_MAX:
            raise invalid(field, f"{value} is beyond 2^53", "Send it as text")
        if isinstance(value, str) and len(value) > self._limits.text_bytes_max:
            raise invalid(field, f"a class name of {len(value)} characters", "Shorten it")
        if isinstance(value, str) and not recorded and not is_plain(value):
            raise not_plain(field, "a class", value)
        return value

    def _binary(self, value: Any, field: str) -> bool:
        for canonical, name in self._names.items():
            if type(value) is type(name) and value == name:
                return canonical
        default_names = all(isinstance(name, bool) for name in self._names.values())
        if default_names and type(value) in (int, float) and value in (0, 1):
            return bool(value)
        names = " or ".join(json.dumps(name) for name in self._names.values())
        raise invalid(field, f"not a label of this model: {_show(value)}", f"Send {names}")

    def weight(self, value: Any, field: str) -> float:
        """Check the weight of an event: finite, > 0, at most 10^6.  See :meth:`weight_max`."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= WEIGHT_MAX:
            hint = f"Send a number in (0, {self.weight_max:.15g}]"
            raise invalid(field, f"not a weight: {_show(value)}", hint)
        return float(value)

    @property
    def weight_max(self) -> float:
        """The largest weight of a new event, by its token or the settings.

        Without filters any weight is accepted, as by the plain library.
        """
        if not self._bounded:
            return WEIGHT_MAX
        own = sender.get().weight_max
        return self._limits.weight_max if own is None else own

    def show(self, label: Label | None) -> Label | None:
        """Convert a label to the name that callers use."""
        if self._unlabelled and label == UNLABELLED:
            return None
        if self._task == "binary" and isinstance(label, bool):
            return self._names[label]
        return label

    def text(self, label: Label) -> str:
        """Key of a label in ``probabilities``: its JSON text, but text labels unquoted."""
        shown = self.show(label)
        return shown if isinstance(shown, str) else label_text(label if shown is None else shown)

    def shares(self, probabilities: Mapping[Label, float]) -> dict[str, float]:
        """Return probabilities by :meth:`text`; "3" beside the number 3 has its JSON text."""
        text = self.text
        out = {text(label): p for label, p in probabilities.items()}
        if len(out) == len(probabilities):
            return out
        numbers = {text(label) for label in probabilities if type(label) is not str}
        return {
            label_text(label) if type(label) is str and label in numbers else text(label): p
            for label, p in probabilities.items()
        }


def not_plain(field: str, what: str, text: str) -> RequestError:
    """Return the error 422 for text with control characters, which affect terminals and logs."""
    hint = "Leave control characters out: line breaks, tabs, escapes, marks of direction"
    return invalid(field, f"{what} with control characters: {plain(text[:80])}", hint)


def is_time(value: float) -> bool:
    """Whether the number may be the time of an event; NaN and infinities may not."""
    return -TIME_MAX <= value <= TIME_MAX


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", str: "text", dict: "an object", list: "an array"}
    names |= {int: "a number", float: "a number"}
    return names.get(type(value), "no type of JSON")


def _show(value: Any) -> str:
    """Return the value as the caller spelled it, or its kind if it has no spelling in JSON.

    msgpack has keys and values that JSON lacks, and decoders accept deeper nesting than `json`.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, RecursionError):
        text = _kind(value)
    return text if len(text) <= 80 else text[:77] + "..."
