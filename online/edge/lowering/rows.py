"""Converts rows of features to a model's columns and tokens: the reference for clients."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import mmh3
import numpy as np

from online.edge.lowering.ir import EdgeModel, Floats, Tokens

_WORD: Final = re.compile(r"\w+")


class Row(NamedTuple):
    """Numbers by column (NaN: missing), and rows of the token table with their numbers."""

    x: Floats
    tokens: list[tuple[int, float]]


def spell(tokens: Tokens, name: str, value: Any) -> list[tuple[str, float]]:
    """The texts under which a value is looked up, with their numbers."""
    if isinstance(value, bool):
        if tokens.spelling == "river":
            return [(name, float(value))]
        text = str(value) if tokens.spelling == "onehot" else json.dumps(value)
        return [(f"{name}{'_' if tokens.spelling == 'onehot' else '='}{text}", 1.0)]
    if isinstance(value, (int, float)):
        if tokens.spelling == "onehot":
            return [(f"{name}_{value}", 1.0)]
        return [(name, float(value))] if tokens.numbers else []
    if tokens.spelling != "service":
        if value is None:
            return []
        return [(f"{name}{'_' if tokens.spelling == 'onehot' else '='}{value}", 1.0)]
    if value is None:
        return [(f"{name}\0", 1.0)]
    if name in tokens.text:
        return [(f"{name}\1{word}", 1.0) for word in dict.fromkeys(_WORD.findall(value.lower()))]
    return [(f"{name}={json.dumps(value)}", 1.0)]


def place(tokens: Tokens, text: str) -> tuple[int, float]:
    """The hash of a text, and the sign of its number."""
    if tokens.spelling == "river":
        h = mmh3.hash(text, tokens.seed, signed=True)
        return h % tokens.buckets, -1.0 if tokens.signed and h < 0 else 1.0
    return mmh3.hash(text, tokens.seed, signed=False) & (tokens.buckets - 1), 1.0


class Encoder:
    """Encodes rows for one model."""

    def __init__(self, model: EdgeModel) -> None:
        columns, self._tokens = model.columns, model.tokens
        self._at = {name: i for i, name in enumerate(columns.names)}
        self._codes = {
            name: {word: float(i) for i, word in enumerate(words)}
            for name, words in columns.vocabularies.items()
        }
        self._rows: dict[Any, int] = {}
        if self._tokens is not None:
            texts: Sequence[Any] = self._tokens.words or self._tokens.keys.tolist()
            self._rows = {key: i for i, key in enumerate(texts)}

    def row(self, features: Mapping[str, Any]) -> Row:
        """Encode one row.  NaN, null and non-numbers count as missing in a column."""
        x = np.full(len(self._at), math.nan)
        tokens: list[tuple[int, float]] = []
        for name, value in features.items():
            if (column := self._at.get(name)) is not None:
                if (codes := self._codes.get(name)) is not None:
                    if value is not None:
                        x[column] = codes.get(value, -1.0)
                elif isinstance(value, (int, float)) and not (
                    self._tokens is not None and isinstance(value, bool)
                ):
                    x[column] = float(value)
        for text, number in self.texts(features):
            assert self._tokens is not None, "texts come from tokens"
            key: Any = text
            if self._tokens.spelling != "onehot":
                key, sign = place(self._tokens, text)
                number *= sign
            if (at := self._rows.get(key)) is not None:
                tokens.append((at, number))
        return Row(x, tokens)

    def texts(self, features: Mapping[str, Any]) -> list[tuple[str, float]]:
        """The tokens of a row as texts with their numbers, before the lookup."""
        if (tokens := self._tokens) is None:
            return []
        return [
            spelled
            for name, value in features.items()
            if not (name in self._at and _is_number(value))
            for spelled in spell(tokens, name, value)
        ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
