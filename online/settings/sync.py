"""Settings of the exchange between a replica and the parameter server."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from online.settings.tree import Tree

Merge = Literal["auto", "sum", "average", "compensated", "ordered", "overlay", "lagging"]


class Sync(Tree):
    """How often a replica exchanges deltas with the server: after a time or a number of rows."""

    interval_ms: float = Field(
        20, ge=1, le=10_000,
        description="time between two exchanges; with `cluster: embedded` costly ones are up to "
        "five times as far apart",
    )  # fmt: skip
    updates: int = Field(64, ge=1, le=100_000, description="own rows that start an exchange early")
    merge: Merge = Field(
        "auto",
        description="sum adds deltas; average scales them by the others' pushes; compensated "
        "(auto, where the model has curvature) corrects them for concurrent changes; ordered: each "
        "replica learns all rows in the journal's order; overlay: one process does, and each "
        "replica learns its own rows on top of what that publishes; lagging: overlay without them",
    )
    vectors: Literal["float32", "float16"] = Field(
        "float32",
        description="numbers of a table's vectors in a push (fm with table: true); float16: they "
        "are rounded, and what rounding leaves over is pushed with the row's next change",
    )

    share_tables: bool = Field(
        False,
        description="replicas on the parameter server's host read one copy of the table in shared "
        "memory (fm with table: true)",
    )

    @model_validator(mode="after")
    def _has_pushes(self) -> Sync:
        if self.vectors == "float16" and self.merge in ("ordered", "overlay", "lagging"):
            raise ValueError(
                f"vectors: float16 is for pushes, and with merge: {self.merge} there are none: "
                "leave one of the two out"
            )
        return self
