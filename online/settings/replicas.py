"""The setting `replicas`: a number, or a range within which the load decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Discriminator, Field, Tag, model_validator

from online.settings.tree import Tree


class ReplicaRange(Tree):
    """A range of replicas that is scaled with the load, see
    :mod:`online.service.on_ray.scaling`."""

    min: int = Field(1, ge=1, le=64, description="replicas without load")
    max: int = Field(ge=1, le=64, description="replicas under full load")
    up_s: float = Field(10, ge=1, description="how long high load lasts before replicas are added")
    down_s: float = Field(
        120, ge=1, description="how long low load lasts before replicas are removed"
    )

    @model_validator(mode="after")
    def _in_order(self) -> ReplicaRange:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, above max, {self.max}")
        return self


Replicas = Annotated[
    Annotated[int, Field(ge=1, le=64), Tag("fixed")] | Annotated[ReplicaRange, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, Mapping | ReplicaRange) else "fixed"),
]
TAGS: Final = ("fixed", "range")
"""Union tags, which pydantic's error locations contain."""
