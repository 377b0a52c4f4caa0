"""The setting `replicas`: a number of them, or a range in which the load decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Discriminator, Field, Tag, model_validator

from online.settings.tree import Tree


class ReplicaRange(Tree):
    """A range of replicas, of which as many run as the load needs: see
    :mod:`online.service.on_ray.scaling`."""

    min: int = Field(1, ge=1, le=64, description="replicas that run without any load")
    max: int = Field(ge=1, le=64, description="replicas under the most of it")
    up_s: float = Field(10, ge=1, description="more once the load has lasted so long")
    down_s: float = Field(120, ge=1, description="fewer once it has been gone so long")

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
"""Those of the line above: in errors they are no part of a setting's name."""
