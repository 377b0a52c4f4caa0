"""The row of the journal that promotes a challenger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from online.settings.model import ModelSettings
from paramserver.rewrites import Promote


def decision(
    model: ModelSettings, before: str, after: str, why: str, evidence: Mapping[str, Any]
) -> bytes:
    """The promotion of the model's challenger, as the parameter server takes it."""
    challenging = model.challenging
    assert challenging is not None
    note = Promote(before, after, model.made_of(), challenging.made_of(), why, dict(evidence))
    return msgspec.json.encode(note)
