"""How vision-language models see: pixels of one image -> embeddings for the language model.

One class per way of building such a model. Each calls the model's own layers, so that what it was pretrained
for stays true, but for a fixed image size and a free batch size, which is what a graph can be traced with.
Models that are built in other ways are refused: a projector called in the wrong way would give numbers too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from efm_core.errors import BadRequest


class Eyes(nn.Module):
    """Vision tower and projector of a model.

    Attributes:
        image_size: Side of the square images that it wants [px].
    """

    image_size: int

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns embeddings [B, N, F] of normalised pixels [B, 3, S, S]."""
        raise NotImplementedError

    def positions(self, images: int, others: int) -> torch.Tensor | None:
        """Returns the positions, int64 [3, 1, L], of some images and what follows; None: counted through."""
        return None


class PackedEyes(Eyes):
    """SmolVLM and Idefics3: the tower takes images of any shape with a mask; here all of it is shown."""

    def __init__(self, model: Any, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.tower, self.connector = model.vision_model, model.connector
        self.patches = image_size // self.tower.patch_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Eyes`."""
        shape = (pixels.shape[0], self.patches, self.patches)
        shown = torch.ones(shape, dtype=torch.bool, device=pixels.device)
        return self.connector(self.tower(pixels, patch_attention_mask=shown).last_hidden_state)


class ProjectorEyes(Eyes):
    """PaliGemma and Gemma 3: a projector reads the tower's last layer."""

    def __init__(self, model: Any, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.tower, self.projector = model.vision_tower, model.multi_modal_projector

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Eyes`."""
        return self.projector(self.tower(pixels).last_hidden_state)


class LlavaEyes(Eyes):
    """LLaVA: a projector reads one of the tower's inner layers, mostly without the class token."""

    def __init__(self, model: Any, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.tower, self.projector = model.vision_tower, model.multi_modal_projector
        self.layer = model.config.vision_feature_layer
        if not isinstance(self.layer, int):
            raise BadRequest(
                f"backbone 'vlm': expected one layer of the vision tower to be read, found {self.layer}"
            )
        self.without_first = model.config.vision_feature_select_strategy == "default"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Eyes`."""
        seen = self.tower(pixels, output_hidden_states=True).hidden_states[self.layer]
        return self.projector(seen[:, 1:] if self.without_first else seen)


@dataclass(frozen=True)
class Family:
    """A way of building vision-language models.

    Attributes:
        eyes: Class of its eyes.
        language: Attribute of the model that is the language model.
        both_ways: What attends to what follows it as well: "nothing", each "image" within itself, or all of
            the "prompt".
    """

    eyes: type[Eyes]
    language: str = "language_model"
    both_ways: str = "nothing"


# By `model_type` of the model's config.json.
FAMILIES: Mapping[str, Family] = {
    "smolvlm": Family(PackedEyes, "text_model"),
    "idefics3": Family(PackedEyes, "text_model"),
    "paligemma": Family(ProjectorEyes, both_ways="prompt"),
    "gemma3": Family(ProjectorEyes, both_ways="image"),
    "llava": Family(LlavaEyes),
}


def family_of(model_type: str, where: str) -> Family:
    """Returns how a kind of model is built.

    Raises:
        BadRequest: It is none that can be traced into a graph here.
    """
    if model_type not in FAMILIES:
        raise BadRequest(
            f"backbone 'vlm': {where} is of type {model_type!r}; expected one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]
