"""The last linear layer of a network: its gradients, for the filters, and deltas of devices."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from online.models.device_delta import numbers
from online.models.gradients import Slope
from online.models.networks.head import Head
from online.models.networks.rehearsal import error_of
from replay.example import Moved


class LastLayer:
    """The last ``nn.Linear`` of a module, if it has one.

    Attributes:
        slope_size: Length of a gradient by weights and bias; 1 without such a layer.
    """

    def __init__(self, module: nn.Module) -> None:
        *_, last = (None, *(m for m in module.modules() if isinstance(m, nn.Linear)))
        self._layer: nn.Linear | None = last
        self.slope_size = last.out_features * (last.in_features + 1) if last is not None else 1

    def slope(
        self, module: nn.Module, head: Head, x: torch.Tensor, targets: torch.Tensor
    ) -> Slope | None:
        """Return the mean gradient of the rows' loss; None if it is not known in closed form.

        Parameters:
            module: The module whose last layer this is.
            x, targets: Arrays of shape (rows, inputs) and (rows, targets).
        """
        if (layer := self._layer) is None or head.closed_form is None:
            return None
        seen: list[torch.Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            with torch.no_grad():
                outputs = module(x)
        finally:
            hook.remove()
        if len(seen) != 1 or seen[0].shape != (len(x), layer.in_features):
            return None  # the layer is not the last step for each row
        inputs = torch.cat([seen[0], torch.ones(len(x), 1, dtype=x.dtype)], 1)
        mean = error_of(head, outputs, targets).T @ inputs / len(x)
        return np.asarray(mean.reshape(-1).numpy(), dtype=np.float32)

    def misfit(self, moved: Moved) -> str | None:
        """Return why a device's delta does not fit the layer; None if it does."""
        layer = self._layer
        if moved.columns or layer is None or layer.bias is None:
            return "a delta of linear weights, or a network without a linear last layer with a bias"
        sizes = numbers(moved.weights).size, numbers(moved.bias).size
        if sizes != (layer.weight.numel(), layer.bias.numel()):
            wanted = f"{layer.weight.numel()} and {layer.bias.numel()}"
            return f"{sizes[0]} weights and {sizes[1]} numbers of bias, the last layer has {wanted}"
        return None

    def move(
        self, moved: Moved, weight: float, averages: Iterable[tuple[torch.Tensor, torch.Tensor]]
    ) -> float:
        """Add a device's delta to the layer and its averages; return the sum of the layer's values.

        ``averages`` has pairs of an average and its parameter.
        """
        assert self._layer is not None, "the delta was compared with the model"
        layer = (self._layer.weight, self._layer.bias)
        with torch.no_grad():
            for tensor, by in zip(layer, (moved.weights, moved.bias), strict=True):
                change = torch.from_numpy(weight * numbers(by)).to(tensor.dtype)
                change = change.reshape(tensor.shape)
                tensor.add_(change)
                for average, of in averages:
                    if of is tensor:  # a delta is a whole direction, not one noisy step to average
                        average.add_(change)
            return sum(float(tensor.sum()) for tensor in layer)

    def moved_slope(self, moved: Moved) -> Slope:
        """Return a device's negated delta, in the form of :meth:`slope`."""
        bias = numbers(moved.bias)
        weights = numbers(moved.weights).reshape(len(bias), -1)
        return -np.concatenate([weights, bias[:, None]], axis=1).reshape(-1).astype(np.float32)
