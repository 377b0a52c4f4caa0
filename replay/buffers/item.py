"""An item is what a buffer keeps of one event."""

from __future__ import annotations

import msgspec

from replay.example import Features, Label

Logits = dict[str, float]
"""A model's raw outputs by the JSON text of the label that each stands for."""


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One example to learn again.  Whoever makes it gives its mappings away: nobody changes them.

    Attributes:
        key: The journal row's key: 16 bytes, unique within the model.
        features: As parsed by the service, before any transform.
        label: The true label, canonical.  Labels that compare equal are one class.
        weight: Importance of the event, finite and > 0.
        source: Who sent the feedback; what :meth:`~replay.buffers.base.Buffer.purge` takes out.
        logits: What the model said as the item was kept (dark experience replay), None if nothing
            was kept.  They are kept by class, so that they still fit when the model knows more
            classes.
        at: How many rows were offered before it, ≥ 0: its age is what has been offered since.
    """

    key: bytes
    features: Features
    label: Label
    weight: float = 1.0
    source: str = ""
    logits: Logits | None = None
    at: int = 0
