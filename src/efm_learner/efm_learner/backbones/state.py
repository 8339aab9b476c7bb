"""Backbone `state`: a multilayer perceptron over the state vector, with the instruction as extra inputs.

For worlds whose state shows everything, the point mass first of all. The instruction is flattened word by
word, so that word order survives. Images are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest
from efm_learner.backbones import INSTRUCTION, STATE, Batch, read_settings
from efm_learner.backbones.parts import StateNormalisation, perceptron


@dataclass(frozen=True)
class StateSettings:
    """Settings of the backbone.

    Attributes:
        hidden: Units of each hidden layer; the last one is the feature.
        instruction: Specification of the instruction input; kind "none" ignores instructions.
        word_size: Length of a word's vector.
    """

    hidden: tuple[int, ...] = (256, 256, 256)
    instruction: dict[str, Any] | None = None
    word_size: int = 8


class StateBackbone(nn.Module):
    """See the module's description."""

    cameras: tuple[str, ...] = ()
    uses_state = True

    def __init__(self, embodiment: Embodiment, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = read_settings(StateSettings, settings, "backbone 'state'")
        if embodiment.state is None:
            raise BadRequest(
                f"backbone 'state': the embodiment '{embodiment.name}' has no state; use 'small'"
            )
        self.instruction = dict(self.settings.instruction or {"kind": "none"})
        size = embodiment.state_size
        self.normalise = StateNormalisation(embodiment.state)
        self.words: nn.Embedding | None = None
        if self.instruction["kind"] == "hashed_words":
            self.words = nn.Embedding(
                int(self.instruction["buckets"]), self.settings.word_size, padding_idx=0
            )
            size += self.settings.word_size * int(self.instruction["length"])
        elif self.instruction["kind"] != "none":
            raise BadRequest(
                f"backbone 'state': expected instructions of kind 'none' or 'hashed_words', found "
                f"{self.instruction['kind']!r}"
            )
        self.layers = perceptron(size, self.settings.hidden)
        self.feature_size = self.settings.hidden[-1]

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns features float32 [B, F]."""
        inputs = self.normalise(batch[STATE])
        if self.words is not None:
            inputs = torch.cat([inputs, self.words(batch[INSTRUCTION]).flatten(1)], dim=1)
        return self.layers(inputs)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Returns nothing: there is no image encoder."""
        return []

    def settings_dict(self) -> dict[str, Any]:
        """Returns the dict that makes this backbone again."""
        return {"name": "state", **asdict(self.settings), "instruction": self.instruction}
