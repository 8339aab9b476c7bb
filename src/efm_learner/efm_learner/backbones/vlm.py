"""Backbone `vlm`: a pretrained image-text-to-text model of Hugging Face, whole or with LoRA.

Every frame of every camera becomes image embeddings, the state becomes one more, the instruction's tokens
follow, and the feature is the language model's last hidden state at the last token. Categorical heads then
take the place of the language head: an action is a choice of bins, as when it is spelt in tokens, without
decoding one token after another. Which models are taken is said in `eyes.py`, where they come from in
`pretrained.py`.

A bundle holds configuration, weights and tokenizer: it needs neither the model's folder nor the hub again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest
from efm_learner.backbones import INSTRUCTION, STATE, Batch, image_input, read_settings
from efm_learner.backbones.adapters import with_adapters
from efm_learner.backbones.eyes import family_of
from efm_learner.backbones.parts import StateNormalisation
from efm_learner.backbones.pretrained import TOKENIZER_FILE, load_pretrained, untrained

# Added to the attention scores of what may not be seen; finite in half precision, too.
UNSEEN = -1e4


@dataclass(frozen=True)
class VlmSettings:
    """Settings of the backbone.

    Attributes:
        model: Local folder or hub id of the pretrained model.
        instruction_length: Greatest number of tokens of an instruction.
        lora_rank: Rank of the LoRA adapters of the language model; 0 trains all of its weights.
        lora_alpha: Scale of the adapters, times their rank.
        lora_targets: Names of the layers that get adapters.
        freeze_vision: Leave vision tower and projector as they are.
        image_size: Side of the square that every frame is scaled to [px]; None: the model's own, or about 224
            where it takes any.
        image_mean: Mean of pixels in [0, 1] that the vision tower expects; None: found in `model`.
        image_std: Their standard deviation; None: found in `model`.
        architecture: Configuration of the model; None: found in `model`. A bundle records it.
    """

    model: str = ""
    instruction_length: int = 32
    lora_rank: int = 0
    lora_alpha: int = 16
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    freeze_vision: bool = True
    image_size: int | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    architecture: dict[str, Any] | None = None


class VlmBackbone(nn.Module):
    """See the module's description.

    Where the settings name an architecture, the weights are random and the tokenizer is called by the name
    of its file: whoever loads a bundle fills them in.
    """

    image_mean: torch.Tensor
    image_std: torch.Tensor

    def __init__(self, embodiment: Embodiment, settings: Mapping[str, Any]) -> None:
        super().__init__()
        chosen = read_settings(VlmSettings, settings, "backbone 'vlm'")
        _check(chosen, embodiment)
        tokenizer = TOKENIZER_FILE
        if chosen.architecture is None:
            found = load_pretrained(chosen.model)
            model, tokenizer = found.model, str(found.tokenizer)
            chosen = dataclasses.replace(
                chosen,
                architecture=found.architecture,
                image_mean=chosen.image_mean or found.image_mean,
                image_std=chosen.image_std or found.image_std,
            )
        else:
            model = untrained(chosen.architecture)
        self.cameras = tuple(camera.name for camera in embodiment.cameras)
        self.uses_state = embodiment.state is not None
        self.instruction = {"kind": "tokenizer", "file": tokenizer, "length": chosen.instruction_length}

        self.family = family_of(model.config.model_type, "the model")
        self.eyes = self.family.eyes(model.model, chosen.image_size)
        self.settings = dataclasses.replace(chosen, image_size=self.eyes.image_size)
        self.language = getattr(model.model, self.family.language)
        self.feature_size = int(self.language.config.hidden_size)
        self.normalise = None if embodiment.state is None else StateNormalisation(embodiment.state)
        if embodiment.state is not None:
            self.state_token = nn.Linear(embodiment.state_size, self.feature_size)
        for name in ("image_mean", "image_std"):
            self.register_buffer(name, torch.tensor(getattr(chosen, name)).view(1, 3, 1, 1))
        if chosen.freeze_vision:
            self.eyes.requires_grad_(False)
        if chosen.lora_rank:
            self.language = with_adapters(
                self.language, chosen.lora_rank, chosen.lora_alpha, chosen.lora_targets
            )

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns features [B, F]."""
        instruction = batch[INSTRUCTION]
        frames = [frame for name in self.cameras for frame in batch[image_input(name)].unbind(dim=1)]
        images = [self.eyes(self._pixels(frame)) for frame in frames]
        image_sizes = [image.shape[1] for image in images]
        first, *deeper = torch.cat(images, dim=1).split(self.feature_size, dim=2)
        seen = [first]
        if self.normalise is not None:
            seen.append(self.state_token(self.normalise(batch[STATE])).unsqueeze(1))
        words = self.language.get_input_embeddings()(instruction.clamp(min=0))
        before = torch.cat(seen, dim=1)
        tokens = torch.cat([before, words.to(before.dtype)], dim=1)

        # The encoding fills up with -1, which is no token.
        told = instruction >= 0
        real = torch.cat([torch.ones_like(before[:, :, 0]), told.to(before.dtype)], dim=1)
        allowed = self._allowed(image_sizes, tokens.shape[1]).to(tokens) * real.unsqueeze(1)
        hidden = self.language(
            inputs_embeds=tokens,
            attention_mask=((1 - allowed) * UNSEEN).unsqueeze(1),
            position_ids=self.eyes.positions(len(frames), tokens.shape[1] - sum(image_sizes)),
            use_cache=False,
            **({"deepstack_visual_embeds": deeper} if deeper else {}),
        ).last_hidden_state
        last = before.shape[1] - 1 + told.sum(dim=1)
        return hidden.gather(1, last.view(-1, 1, 1).expand(-1, 1, self.feature_size)).squeeze(1)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of vision tower and projector."""
        return list(self.eyes.parameters())

    def settings_dict(self) -> dict[str, Any]:
        """Returns the dict that makes this backbone again, but for weights and tokenizer."""
        return {"name": "vlm", **dataclasses.asdict(self.settings)}

    def _pixels(self, frame: torch.Tensor) -> torch.Tensor:
        """Returns pixels [B, 3, S, S] as the vision tower wants them, of a frame uint8 [B, H, W, 3]."""
        pixels = frame.permute(0, 3, 1, 2).float() / 255
        size = (self.eyes.image_size, self.eyes.image_size)
        if pixels.shape[2:] != size:
            pixels = functional.interpolate(pixels, size, mode="bilinear", align_corners=False)
        return (pixels - self.image_mean) / self.image_std

    def _allowed(self, image_sizes: list[int], length: int) -> torch.Tensor:
        """Returns which position may look at which, bool [L, L], as the model was pretrained."""
        allowed = torch.ones(length, length, dtype=torch.bool).tril()
        if self.family.both_ways == "prompt":
            return torch.ones_like(allowed)
        if self.family.both_ways == "image":
            start = 0
            for size in image_sizes:
                allowed[start : start + size, start : start + size] = True
                start += size
        return allowed


def _check(settings: VlmSettings, embodiment: Embodiment) -> None:
    if not embodiment.cameras:
        raise BadRequest(f"backbone 'vlm': the embodiment '{embodiment.name}' has no camera; use 'state'")
    if settings.instruction_length < 1 or settings.lora_rank < 0 or settings.lora_alpha < 1:
        raise BadRequest(
            "backbone 'vlm': expected instruction_length and lora_alpha of 1 or more and lora_rank of 0 or "
            f"more, found {settings.instruction_length}, {settings.lora_alpha}, {settings.lora_rank}"
        )
