"""Layers that several backbones share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from efm_core.embodiment import State
from efm_core.errors import BadRequest


class StateNormalisation(nn.Module):
    """Maps every entry of the state from its bounds [low, high] to [-1, 1], linearly and without clipping."""

    middle: torch.Tensor
    scale: torch.Tensor

    def __init__(self, state: State) -> None:
        super().__init__()
        low = torch.tensor([entry.low for entry in state.entries], dtype=torch.float32)
        high = torch.tensor([entry.high for entry in state.entries], dtype=torch.float32)
        self.register_buffer("middle", (low + high) / 2)
        self.register_buffer("scale", 2 / (high - low))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Returns normalised states, float32 [B, S]."""
        return (state - self.middle) * self.scale


def perceptron(inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """Returns linear layers with a ReLU after each.

    Raises:
        BadRequest: No layer, or one without units.
    """
    if not hidden or min(hidden) < 1:
        raise BadRequest(f"backbone.hidden: expected the units of 1 or more layers, found {list(hidden)}")
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(inputs, units), nn.ReLU()]
        inputs = units
    return nn.Sequential(*layers)
