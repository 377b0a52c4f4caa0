"""Ids looked up in tables: what a torch network of categories begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn


class Embedded(nn.Module):
    """Numbers as they come, then a learned vector for each id.

    The first part of a :class:`~online.models.network.Network`'s ``Sequential``; the network's own
    ``ids`` make rows of the ids.

    Parameters:
        inputs: Names of all features, in the network's order.
        ids: Of these, rows of the table by name; in the network the same.
        width: Numbers of a vector.
    """

    def __init__(self, inputs: Sequence[str], ids: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.inputs, self.ids, self.width = tuple(inputs), dict(ids), width
        self._numbers = [i for i, name in enumerate(self.inputs) if name not in ids]
        self._places = [self.inputs.index(name) for name in ids]
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for rows in ids.values())

    @property
    def outputs(self) -> int:
        """How many numbers come out."""
        return len(self._numbers) + self.width * len(self.tables)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (rows, inputs) to (rows, outputs)."""
        found = [
            table(x[:, at].long() % rows)
            for at, table, rows in zip(self._places, self.tables, self.ids.values(), strict=True)
        ]
        return torch.cat([x[:, self._numbers], *found], 1)

    def extra_repr(self) -> str:
        """The names belong to what the module is."""
        return f"{self.inputs!r}, {self.ids!r}"
