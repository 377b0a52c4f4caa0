"""The rows of a table that the service takes under the settings that are written for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Final

from online.errors import RequestError
from online.rows.validator import Validator
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from replay.example import Features, Label

if TYPE_CHECKING:
    from online.tables.guess import Guess

_MOST: Final = 1 << 15  # of what a limit is raised to: such a row still fits into a body


class Taken:
    """Plays only what the service would take, and notes which limits that needs.

    Attributes:
        refused: Rows that were left out.
        why: The reason for the first of them.
    """

    def __init__(self, model: ModelSettings, guess: Guess, most: int) -> None:
        wide = Limits(features_max=_MOST, text_bytes_max=_MOST)
        self._validator = Validator(model, wide, numeric_only=False)
        self._guess, self._most = guess, most
        self._needs = dict.fromkeys(("features_max", "text_bytes_max"), 0)
        self.refused, self.why = 0, ""

    def pairs(self, most: int) -> Iterator[tuple[Features, Label]]:
        """Yield the features and labels of the first rows with a label, at most ``most``."""
        self.refused = 0
        for row in islice(self._guess.rows(), min(most, self._most)):
            try:
                features = self._validator.features(row.features, "features")
                self._validator.label(row.label, "label")
            except RequestError as error:
                self.why = self.why or f"{error.field}: {error.message}"
                self.refused += 1
                continue
            self._note(features, row.label)
            yield features, self._guess.canonical(row.label)

    def _note(self, features: Features, label: Label) -> None:
        needs = self._needs
        needs["features_max"] = max(needs["features_max"], len(features))
        texts = (len(x) for x in (*features, *features.values(), label) if isinstance(x, str))
        needs["text_bytes_max"] = max(needs["text_bytes_max"], *texts)

    @property
    def limits(self) -> Mapping[str, int]:
        """The limits that have to be raised for these rows, and to what."""
        usual = Limits()
        return {
            name: 1 << (need - 1).bit_length()
            for name, need in self._needs.items()
            if need > getattr(usual, name)
        }
