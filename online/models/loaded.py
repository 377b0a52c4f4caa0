"""This module defines what loading a model returns: the model and the hash of its spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from online.models.base import Model


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model as its settings describe it.

    Attributes:
        model: The model, untrained.
        spec_hash: SHA-256 of ``spec_text``, in hexadecimal.
        spec_text: The spec as canonical JSON.
        build: Makes another untrained model from the same loaded code.
        alike: Hash of the spec that it would have with ``state_of: structure``.
    """

    model: Model
    spec_hash: str
    spec_text: str
    build: Callable[[], Model]
    alike: str
