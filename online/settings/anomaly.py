"""Settings of anomaly detection."""

from __future__ import annotations

from pydantic import Field

from online.settings.tree import Tree


class Anomaly(Tree):
    """When a row is reported as an anomaly."""

    threshold: float = Field(
        0.99,
        ge=0.5,
        le=0.999,
        description="a row is an anomaly if it scores higher than this share of the rows learned "
        "lately",
    )
