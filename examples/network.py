"""A torch module with its optimizer.  It merges: any number of replicas.

models:
  - name: clicks
    task: binary
    learner: examples/network.py:build
    params: {inputs: [a, b, c], hidden: 32}
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from online.models.network import Network, weights_from


def build(
    inputs: Sequence[str] = ("a", "b", "c"),
    hidden: int = 32,
    lr: float = 0.05,
    artifact: str | None = None,
) -> Network:
    """Two layers by SGD, one row at a time, behind running standardisation.

    ``artifact``, a file that the settings name, holds weights to start from.
    """
    module = torch.nn.Sequential(
        torch.nn.Linear(len(inputs), hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1)
    )
    if artifact is not None:
        module.load_state_dict(weights_from(artifact))
    return Network(module, inputs, partial(torch.optim.SGD, lr=lr))
