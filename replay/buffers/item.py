"""Defines the item, which a buffer stores for one event."""

from __future__ import annotations

import msgspec

from replay.example import Features, Label

Logits = dict[str, float]
"""A model's raw outputs by the JSON text of the label that each stands for."""


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One example for rehearsal.  Its mappings must not be changed after it was created.

    Attributes:
        key: The journal row's key: 16 bytes, unique within the model.
        features: Features as parsed from the request, before any transform.
        label: The true label in canonical form.  Labels that compare equal are one class.
        weight: Importance of the event, finite and > 0.
        source: The sender of the feedback, by which :meth:`~replay.buffers.base.Buffer.purge`
            removes items.
        logits: The model's outputs when the item was stored (dark experience replay), or None.
            They are stored by class, so that they stay valid when the model learns more classes.
        at: Number of rows offered before it, ≥ 0, from which its age follows.
    """

    key: bytes
    features: Features
    label: Label
    weight: float = 1.0
    source: str = ""
    logits: Logits | None = None
    at: int = 0
