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

from efm_core.embodiment import Camera, Embodiment
from efm_core.errors import BadRequest
from efm_learner.backbones import INSTRUCTION, STATE, Batch, image_input, read_settings
from efm_learner.backbones.parts import StateNormalisation, perceptron

# Added to attention scores of padding; finite, so that an empty instruction attends evenly instead of NaN.
PADDING_SCORE = -1e4

# Standard deviation of the attention scores of an untrained network, roughly.
SHARPNESS = 6.0


@dataclass(frozen=True)
class SmallSettings:
    """Settings of the backbone.

    Attributes:
        patch: Side of a visual token in pixels; what is left over at the right and lower edge is not seen.
        channels: Features of a patch, then of each 3 x 3 convolution that follows.
        slots: Places that the network can look at, per camera.
        width: Length of word vectors, queries and keys.
        value_size: Length of the feature that a slot brings back, besides its two coordinates.
        hidden: Units of the layers after the slots; the last one is the feature.
        dropout: Share of what the slots bring back, and of the features, that training leaves out at random.
        instruction: Specification of the instruction input; hashed words by default, or kind "none".
    """

    patch: int = 4
    channels: tuple[int, ...] = (32, 64)
    slots: int = 16
    width: int = 64
    value_size: int = 32
    hidden: tuple[int, ...] = (256, 256)
    dropout: float = 0.0
    instruction: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.patch < 1 or not self.channels or min(self.channels) < 1:
            raise BadRequest(
                f"backbone 'small': expected `patch` and `channels` of 1 or more, found {self.patch} and "
                f"{list(self.channels)}"
            )


class Stem(nn.Module):
    """Frames of one camera -> visual tokens: a linear map of every patch, then small convolutions.

    Channels stay last in memory from the camera's bytes to the tokens, so that nothing is copied about.
    """

    places: torch.Tensor

    def __init__(self, camera: Camera, settings: SmallSettings) -> None:
        super().__init__()
        self.patch = settings.patch
        self.rows, self.columns = camera.height // self.patch, camera.width // self.patch
        if min(self.rows, self.columns) < 1:
            raise BadRequest(
                f"backbone 'small': expected images of {self.patch} pixels or more each way, found "
                f"{camera.width} x {camera.height} of camera '{camera.name}'; make `patch` smaller"
            )
        first, *rest = settings.channels
        self.patches = nn.Linear(camera.frames * self.patch**2 * 3, first)
        sizes = zip(settings.channels, rest, strict=False)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in sizes)
        self.norm = nn.LayerNorm(settings.channels[-1])
        y = torch.linspace(-1, 1, self.rows).view(-1, 1).expand(self.rows, self.columns)
        x = torch.linspace(-1, 1, self.columns).view(1, -1).expand(self.rows, self.columns)
        places = torch.stack([x, y], dim=-1).reshape(self.rows * self.columns, 2)
        self.register_buffer("places", places, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns tokens [B, N, channels] of images uint8 [B, T, H, W, 3], at `places` [N, 2] (x, y)."""
        batch, frames = images.shape[:2]
        patch, rows, columns = self.patch, self.rows, self.columns
        seen = images[:, :, : rows * patch, : columns * patch]
        seen = seen.reshape(batch, frames, rows, patch, columns, patch * 3).permute(0, 2, 4, 1, 3, 5)
        pixels = seen.reshape(-1, frames * patch**2 * 3).float()
        # Of pixels from -1 to 1, without a pass over all of them.
        weight, bias = self.patches.weight, self.patches.bias
        grid = torch.relu(nn.functional.linear(pixels, weight * (2 / 255), bias - weight.sum(1)))
        grid = grid.reshape(batch, rows, columns, -1).permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            grid = torch.relu(convolution(grid))
        return self.norm(grid.permute(0, 2, 3, 1).reshape(batch, rows * columns, -1))


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

        token_size = chosen.channels[-1]
        self.stems = nn.ModuleList(Stem(camera, chosen) for camera in embodiment.cameras)
        self.keys = nn.ModuleList(nn.Linear(token_size, chosen.width) for _ in self.cameras)
        self.places = nn.ModuleList(nn.Linear(2, chosen.width, bias=False) for _ in self.cameras)
        for place in self.places:
            nn.init.zeros_(place.weight)  # Slots look for what is there before they prefer where it is.
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
        self.dropout = nn.Dropout(chosen.dropout)
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
            stem = self.stems[index]
            tokens = stem(batch[image_input(camera)])
            mine = queries[:, index * slots : (index + 1) * slots]
            # Slots are fewer than tokens: their queries and what they find go through the linear maps of keys
            # and values, which gives the same.
            key, places = self.keys[index], self.places[index](stem.places)
            scores = (mine @ key.weight) @ tokens.transpose(1, 2) + mine @ (places + key.bias).T
            attention = torch.softmax(scores, dim=-1)
            seen.append(self.dropout(self.values[index](attention @ tokens).flatten(1)))
            seen.append((attention @ stem.places).flatten(1))
        if self.normalise is not None:
            seen.append(self.normalise(batch[STATE]))
        return self.dropout(self.layers(torch.cat(seen, dim=1)))

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the convolutional stems."""
        return list(self.stems.parameters())

    def settings_dict(self) -> dict[str, Any]:
        """Returns the dict that makes this backbone again."""
        return {"name": "small", **asdict(self.settings), "instruction": self.instruction}
