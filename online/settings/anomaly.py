"""Settings of a model that finds rows that are unlike the others."""

from __future__ import annotations

from pydantic import Field

from online.settings.tree import Tree


class Anomaly(Tree):
    """When a row is answered as an anomaly."""

    threshold: float = Field(
        0.99,
        ge=0.5,
        le=0.999,
        description="a row is one if more than this share of the rows learned lately were less "
        "unusual",
    )
