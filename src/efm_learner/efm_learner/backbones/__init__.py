"""The seam between a network's heads and what looks at an observation: a backbone turns inputs into features.

A backbone is chosen by a dict, for example `{"name": "small", "width": 64}`, which is recorded in every
checkpoint and bundle. Its other keys are the fields of the backbone's settings; unknown ones are refused.
A backbone normalises its own inputs, so that normalisation is part of the exported graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest, nearest
from efm_learner.settings import read_settings

__all__ = [
    "BACKBONES",
    "INSTRUCTION",
    "STATE",
    "Backbone",
    "Batch",
    "image_input",
    "instruction_size",
    "make_backbone",
    "read_settings",
]

# Name -> "module:class". The modules are imported when they are asked for.
BACKBONES: Mapping[str, str] = {
    "state": "efm_learner.backbones.state:StateBackbone",
    "small": "efm_learner.backbones.small:SmallBackbone",
    "vlm": "efm_learner.backbones.vlm:VlmBackbone",
}

Batch = Mapping[str, torch.Tensor]

INSTRUCTION = "instruction"
STATE = "observation.state"


class Backbone(Protocol):
    """What the heads need; an `nn.Module` with these members.

    Attributes:
        feature_size: Length F of the features.
        instruction: Specification for `efm_core.instruction.encode_instruction`; kind "none" means that the
            backbone has no instruction input.
        cameras: Names of the cameras that it looks at, in order.
        uses_state: Whether it reads `observation.state`.
    """

    feature_size: int
    instruction: dict[str, Any]
    cameras: tuple[str, ...]
    uses_state: bool

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Returns features float32 [B, F] of inputs named as in the bundle."""

    def encoder_parameters(self) -> list[torch.nn.Parameter]:
        """Returns the parameters of the image encoder, which practice can keep as Stage 1 left them."""

    def settings_dict(self) -> dict[str, Any]:
        """Returns the dict that makes this backbone again, with every default filled in."""


def image_input(camera: str) -> str:
    """Returns the name of a camera's input."""
    return f"observation.images.{camera}"


def make_backbone(embodiment: Embodiment, settings: Mapping[str, Any]) -> Backbone:
    """Makes a backbone.

    Args:
        embodiment: Cameras and state that it must read.
        settings: `name` and the fields of that backbone's settings.

    Raises:
        BadRequest: Unknown name or field, or an embodiment that the backbone cannot serve.
    """
    name = str(settings.get("name", ""))
    if name not in BACKBONES:
        raise BadRequest(
            f"backbone: expected one of {', '.join(BACKBONES)}, found {name!r}{nearest(name, BACKBONES)}"
        )
    module, _, attribute = BACKBONES[name].partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    return cast(Backbone, factory(embodiment, {k: v for k, v in settings.items() if k != "name"}))


def instruction_size(spec: Mapping[str, Any]) -> int:
    """Returns the length L of encoded instructions; 0 for a backbone without instructions."""
    return 0 if spec["kind"] == "none" else int(spec["length"])
