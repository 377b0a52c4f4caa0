"""Embedding layer: a torch network's first layer, which looks identifiers up in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn


class Embedded(nn.Module):
    """Passes numbers through and replaces each identifier by a learned vector.

    It is the first layer of a :class:`~online.models.network.Network`'s ``Sequential``; the
    network's ``ids`` turn identifiers into rows of the tables.

    Parameters:
        inputs: Names of all features, in the network's order.
        ids: The identifiers among them, with the number of rows of their tables, as in the network.
        width: Length of a vector.
    """

    def __init__(self, inputs: Sequence[str], ids: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.inputs, self.ids, self.width = tuple(inputs), dict(ids), width
        self._numbers = [i for i, name in enumerate(self.inputs) if name not in ids]
        self._places = [self.inputs.index(name) for name in ids]
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for rows in ids.values())

    @property
    def outputs(self) -> int:
        """Return the number of outputs."""
        return len(self._numbers) + self.width * len(self.tables)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map a tensor of shape (rows, inputs) to one of shape (rows, outputs)."""
        vectors = [
            table(x[:, at].long() % rows)
            for at, table, rows in zip(self._places, self.tables, self.ids.values(), strict=True)
        ]
        return torch.cat([x[:, self._numbers], *vectors], 1)

    def extra_repr(self) -> str:
        """Return the names for the module's text, which is part of the spec."""
        return f"{self.inputs!r}, {self.ids!r}"
