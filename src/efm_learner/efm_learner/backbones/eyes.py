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
from torch.nn import functional

from efm_core.errors import BadRequest

# Side of images, about, for towers that take any [px].
USUAL_SIZE = 224


class Eyes(nn.Module):
    """Vision tower and projector of a model.

    Args:
        model: Without its language head.
        asked: Side of images that is wanted [px]; None leaves it to the model.

    Attributes:
        image_size: Side of the square images that it takes [px].

    Raises:
        BadRequest: The tower does not take images of the size that was asked for.
    """

    def __init__(self, model: Any, asked: int | None = None) -> None:
        super().__init__()
        self.image_size = self._size(model.config.vision_config, asked)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns embeddings [B, N, F] of normalised pixels [B, 3, S, S].

        Where the language model adds more of the image after its first D layers, they are [B, N, (1 + D) F].
        """
        raise NotImplementedError

    def positions(self, images: int, others: int) -> torch.Tensor | None:
        """Returns the positions, int64 [3, 1, L], of some images and what follows; None: counted through."""
        return None

    def _size(self, vision: Any, asked: int | None) -> int:
        own = int(vision.image_size)
        if asked not in (None, own):
            raise BadRequest(
                f"backbone.image_size: expected {own} px, which is all that this model takes, found {asked}; "
                "leave it out"
            )
        return own


class PackedEyes(Eyes):
    """SmolVLM and Idefics3: the tower takes images of any shape with a mask; here all of it is shown."""

    def __init__(self, model: Any, asked: int | None = None) -> None:
        super().__init__(model, asked)
        self.tower, self.connector = model.vision_model, model.connector
        self.patches = self.image_size // self.tower.patch_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Eyes`."""
        shape = (pixels.shape[0], self.patches, self.patches)
        shown = torch.ones(shape, dtype=torch.bool, device=pixels.device)
        return self.connector(self.tower(pixels, patch_attention_mask=shown).last_hidden_state)


class ProjectorEyes(Eyes):
    """PaliGemma and Gemma 3: a projector reads the tower's last layer."""

    def __init__(self, model: Any, asked: int | None = None) -> None:
        super().__init__(model, asked)
        self.tower, self.projector = model.vision_tower, model.multi_modal_projector

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Eyes`."""
        return self.projector(self.tower(pixels).last_hidden_state)


class LlavaEyes(Eyes):
    """LLaVA: a projector reads one of the tower's inner layers, mostly without the class token."""

    def __init__(self, model: Any, asked: int | None = None) -> None:
        super().__init__(model, asked)
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


class GridEyes(Eyes):
    """Qwen-VL: a tower for patches of images of any size, whose positions in the language model are a grid.

    At home all patches of a batch are one long sequence that is cut again in every layer. Here every image is
    a row of the batch; what depends on nothing but its size is computed once. Patches that become one
    embedding follow one another, as the merger wants them.
    """

    cosine: torch.Tensor
    sine: torch.Tensor
    in_window: torch.Tensor

    def __init__(self, model: Any, asked: int | None = None) -> None:
        super().__init__(model, asked)
        vision, self.tower = model.config.vision_config, model.visual
        self.patch, self.merge = vision.patch_size, vision.spatial_merge_size
        self.side = self.image_size // self.patch
        self.across = self.side // self.merge
        self.feature_size = model.config.text_config.hidden_size
        # Qwen3-VL: layers whose output is merged too, and added deeper in the language model.
        self.deep = list(getattr(self.tower, "deepstack_visual_indexes", ()))
        if self.deep:
            model.language_model._deepstack_process = _add_to_images
        # Qwen2.5-VL: most layers look at no more than the window that a patch lies in.
        everywhere = getattr(self.tower, "fullatt_block_indexes", range(len(self.tower.blocks)))
        self.windowed = set(range(len(self.tower.blocks))) - set(everywhere)

        count = torch.arange(self.side)
        where = self._ordered(torch.stack(torch.meshgrid(count, count, indexing="ij"), dim=-1))
        angles = (where.unsqueeze(-1) * self.tower.rotary_pos_emb.inv_freq.cpu()).flatten(1).repeat(1, 2)
        window = getattr(vision, "window_size", self.image_size) // self.patch // self.merge * self.merge
        window_of = where // window
        for name, value in {
            "cosine": angles.cos(),
            "sine": angles.sin(),
            "in_window": (window_of.unsqueeze(1) == window_of).all(dim=-1),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Eyes`."""
        hidden, deeper = self._embedded(pixels), []
        for index, block in enumerate(self.tower.blocks):
            hidden = hidden + self._attended(block.attn, block.norm1(hidden), index in self.windowed)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if index in self.deep:
                merger = self.tower.deepstack_merger_list[self.deep.index(index)]
                deeper.append(self._merged(merger, hidden))
        return torch.cat([self._merged(self.tower.merger, hidden), *deeper], dim=2)

    def positions(self, images: int, others: int) -> torch.Tensor | None:
        """See `Eyes`: time, row and column; an image counts as many as it is wide, whatever its patches."""
        count = torch.arange(self.across, device=self.cosine.device)
        rows, columns = torch.meshgrid(count, count, indexing="ij")
        grid = torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1)
        rest = torch.arange(others, device=count.device).expand(3, -1)
        parts = [grid + index * self.across for index in range(images)] + [rest + images * self.across]
        return torch.cat(parts, dim=1).unsqueeze(1)

    def _size(self, vision: Any, asked: int | None) -> int:
        step = int(vision.patch_size * vision.spatial_merge_size)
        size = max(step, USUAL_SIZE // step * step) if asked is None else asked
        if size < step or size % step:
            raise BadRequest(f"backbone.image_size: expected a multiple of {step} px, found {asked}")
        return size

    def _ordered(self, grid: torch.Tensor) -> torch.Tensor:
        """Returns what belongs to the patches, [side, side, ...], in the order of the tower, [N, ...]."""
        blocks = (self.across, self.merge)
        return grid.unflatten(1, blocks).unflatten(0, blocks).transpose(1, 2).flatten(0, 3)

    def _embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns what goes into the first layer, [B, N, E].

        The tower takes short films. A still image is one in which nothing moves, so the weights of its
        moments add up; as each covers a patch, their convolution is a product of matrices.
        """
        cut = (self.side, self.patch)
        patches = self._ordered(pixels.unflatten(3, cut).unflatten(2, cut).permute(2, 4, 0, 1, 3, 5))
        layer = self.tower.patch_embed.proj
        weight = layer.weight.sum(dim=2).flatten(1)
        hidden = functional.linear(patches.transpose(0, 1).flatten(2), weight, layer.bias)
        if not hasattr(self.tower, "pos_embed"):
            return hidden
        learnt = self.tower.pos_embed.weight.unflatten(0, (self.tower.num_grid_per_side, -1)).permute(2, 0, 1)
        fitted = functional.interpolate(
            learnt.unsqueeze(0), (self.side, self.side), mode="bilinear", align_corners=True
        )
        return hidden + self._ordered(fitted.squeeze(0).permute(1, 2, 0))

    def _attended(self, attention: Any, hidden: torch.Tensor, windowed: bool) -> torch.Tensor:
        """Returns what a layer's attention makes of [B, N, E], each image for itself."""
        shape = (3, attention.num_heads, -1)
        query, key, value = attention.qkv(hidden).unflatten(2, shape).permute(2, 0, 3, 1, 4).unbind(0)
        query, key = (self._turned(item).to(value.dtype) for item in (query, key))
        mask = self.in_window if windowed else None
        seen = functional.scaled_dot_product_attention(query, key, value, mask)
        return attention.proj(seen.transpose(1, 2).flatten(2))

    def _turned(self, vectors: torch.Tensor) -> torch.Tensor:
        first, second = vectors.chunk(2, dim=-1)
        return vectors * self.cosine + torch.cat([-second, first], dim=-1) * self.sine

    def _merged(self, merger: Any, hidden: torch.Tensor) -> torch.Tensor:
        return merger(hidden).view(-1, self.across**2, self.feature_size)


def _add_to_images(hidden: torch.Tensor, _: object, more: torch.Tensor) -> torch.Tensor:
    """Adds to the hidden states of images, which come first; in place of a look for where they are."""
    return hidden + functional.pad(more, (0, 0, 0, hidden.shape[1] - more.shape[1]))


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
    "qwen2_vl": Family(GridEyes),
    "qwen2_5_vl": Family(GridEyes),
    "qwen3_vl": Family(GridEyes),
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
