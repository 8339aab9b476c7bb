"""Backbone `small`: an image encoder with spatial tokens and an instruction that looks where it points.

At most one million trained parameters, so that two CPU cores can train it. A short convolutional stem makes a
grid of visual tokens that keep their coordinates. The words of the instruction, in order, go through one
self-attention layer; a few slots read from them what to look for and attend to the visual tokens. The
attended features and coordinates of all slots are concatenated with what they look for and with the state.
There is no global average pooling, which would lose positions, and no pooled sentence vector, which would
lose who pushes what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest
from efm_learner.backbones import INSTRUCTION, STATE, Batch, image_input, read_settings
from efm_learner.backbones.parts import StateNormalisation, perceptron

# Added to attention scores of padding; finite, so that an empty instruction attends evenly instead of NaN.
PADDING_SCORE = -1e4

# Standard deviation of the attention scores of an untrained network, roughly.
SHARPNESS = 3.0


@dataclass(frozen=True)
class SmallSettings:
    """Settings of the backbone.

    Attributes:
        channels: Channels of each convolution of the stem.
        kernels: Kernel size of each convolution.
        strides: Stride of each convolution; their product is the size of a visual token in pixels.
        slots: Places that the network can look at, per camera.
        width: Length of word vectors, queries and keys.
        value_size: Length of the feature that a slot brings back, besides its two coordinates.
        hidden: Units of the layers after the slots; the last one is the feature.
        instruction: Specification of the instruction input; hashed words by default, or kind "none".
    """

    channels: tuple[int, ...] = (32, 64, 64)
    kernels: tuple[int, ...] = (6, 3, 3)
    strides: tuple[int, ...] = (4, 1, 2)
    slots: int = 16
    width: int = 64
    value_size: int = 32
    hidden: tuple[int, ...] = (256, 256)
    instruction: dict[str, Any] | None = None


class Stem(nn.Module):
    """Frames of one camera -> visual tokens with coordinates."""

    def __init__(self, frames: int, settings: SmallSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3 * frames
        for units, kernel, stride in zip(settings.channels, settings.kernels, settings.strides, strict=True):
            layers += [nn.Conv2d(inputs, units, kernel, stride, padding=(kernel - 1) // 2), nn.ReLU()]
            inputs = units
        self.convolutions = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(inputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns tokens [B, N, channels + 2] for images uint8 [B, T, H, W, 3]; the last two are x, y."""
        batch, frames, height, width, _ = images.shape
        stacked = images.permute(0, 1, 4, 2, 3).reshape(batch, frames * 3, height, width)
        grid = self.convolutions(stacked.float() * (2 / 255) - 1)
        rows, columns = grid.shape[2], grid.shape[3]
        y = torch.linspace(-1, 1, rows, device=grid.device).view(rows, 1).expand(rows, columns)
        x = torch.linspace(-1, 1, columns, device=grid.device).view(1, columns).expand(rows, columns)
        place = torch.stack([x, y], dim=-1).reshape(1, rows * columns, 2).expand(batch, -1, -1)
        return torch.cat([self.norm(grid.flatten(2).transpose(1, 2)), place], dim=2)


class InstructionReader(nn.Module):
    """Words in order -> vectors in context -> what each slot looks for."""

    def __init__(self, spec: Mapping[str, Any], slots: int, width: int) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.words = nn.Embedding(int(spec["buckets"]), width, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(int(spec["length"]), width) * 0.3)
        self.mix = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)
        self.slots = nn.Parameter(torch.randn(slots, width) * 0.5)
        self.keys_values = nn.Linear(width, 2 * width)

    def forward(self, instruction: torch.Tensor) -> torch.Tensor:
        """Returns [B, slots, width] for word ids int64 [B, L]."""
        padding = (instruction == 0).to(self.positions.dtype).unsqueeze(1) * PADDING_SCORE
        words = self.words(instruction) + self.positions
        query, key, value = self.mix(words).chunk(3, dim=2)
        words = self.norm(
            words + torch.softmax(query @ key.transpose(1, 2) * self.scale + padding, -1) @ value
        )
        key, value = self.keys_values(words).chunk(2, dim=2)
        return self.slots + torch.softmax(self.slots @ key.transpose(1, 2) * self.scale + padding, -1) @ value


class SmallBackbone(nn.Module):
    """See the module's description."""

    def __init__(self, embodiment: Embodiment, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = read_settings(SmallSettings, settings, "backbone 'small'")
        chosen = self.settings
        if not embodiment.cameras:
            raise BadRequest(
                f"backbone 'small': the embodiment '{embodiment.name}' has no camera; use 'state'"
            )
        self.cameras = tuple(camera.name for camera in embodiment.cameras)
        self.uses_state = embodiment.state is not None
        self.instruction = dict(chosen.instruction or {"kind": "hashed_words", "buckets": 1024, "length": 16})
        self.normalise = None if embodiment.state is None else StateNormalisation(embodiment.state)

        token_size = chosen.channels[-1] + 2
        self.stems = nn.ModuleList(Stem(camera.frames, chosen) for camera in embodiment.cameras)
        self.keys = nn.ModuleList(nn.Linear(token_size, chosen.width) for _ in self.cameras)
        self.values = nn.ModuleList(nn.Linear(token_size, chosen.value_size) for _ in self.cameras)
        slots = chosen.slots * len(self.cameras)
        if self.instruction["kind"] == "hashed_words":
            self.reader: InstructionReader | None = InstructionReader(self.instruction, slots, chosen.width)
        elif self.instruction["kind"] == "none":
            self.reader = None
            self.free_slots = nn.Parameter(torch.randn(slots, chosen.width) * 0.5)
        else:
            raise BadRequest(
                f"backbone 'small': expected instructions of kind 'none' or 'hashed_words', found "
                f"{self.instruction['kind']!r}"
            )
        self.queries = nn.Sequential(nn.LayerNorm(chosen.width), nn.Linear(chosen.width, chosen.width))
        # Attention must differ between places from the start, or no gradient tells it where to look.
        self.sharpness = nn.Parameter(torch.full((slots, 1), SHARPNESS * chosen.width**-0.5))
        self.gist = nn.Linear(slots * chosen.width, chosen.width)
        size = slots * (chosen.value_size + 2) + chosen.width + embodiment.state_size
        self.layers = perceptron(size, chosen.hidden)
        self.feature_size = chosen.hidden[-1]

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns features float32 [B, F]."""
        first = batch[image_input(self.cameras[0])]
        if self.reader is None:
            wanted = self.free_slots.expand(first.shape[0], -1, -1)
        else:
            wanted = self.reader(batch[INSTRUCTION])
        queries = self.queries(wanted) * self.sharpness
        seen: list[torch.Tensor] = [self.gist(wanted.flatten(1))]
        slots = self.settings.slots
        for index, camera in enumerate(self.cameras):
            tokens = self.stems[index](batch[image_input(camera)])
            mine = queries[:, index * slots : (index + 1) * slots]
            attention = torch.softmax(mine @ self.keys[index](tokens).transpose(1, 2), dim=-1)
            brought = torch.cat([self.values[index](tokens), tokens[:, :, -2:]], dim=2)
            seen.append((attention @ brought).flatten(1))
        if self.normalise is not None:
            seen.append(self.normalise(batch[STATE]))
        return self.layers(torch.cat(seen, dim=1))

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the convolutional stems."""
        return list(self.stems.parameters())

    def settings_dict(self) -> dict[str, Any]:
        """Returns the dict that makes this backbone again."""
        return {"name": "small", **asdict(self.settings), "instruction": self.instruction}
