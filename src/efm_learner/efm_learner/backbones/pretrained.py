"""Where the model of backbone `vlm` comes from: a local folder, the hub, or the record in a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import cached_file

from efm_core.errors import BadRequest
from efm_learner.backbones.eyes import family_of

TOKENIZER_FILE = "tokenizer.json"
# Where image processors keep their settings, the older file first.
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_NEUTRAL = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Pretrained:
    """A loaded model.

    Attributes:
        model: With language head.
        tokenizer: Its tokenizer.json.
        architecture: Its configuration, as plain JSON.
        image_mean: Mean of pixels in [0, 1] that it expects, by channel.
        image_std: Their standard deviation.
    """

    model: nn.Module
    tokenizer: Path
    architecture: dict[str, Any]
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]


def load_pretrained(source: str) -> Pretrained:
    """Loads a model with its weights.

    Args:
        source: Local folder or hub id.

    Raises:
        BadRequest: There is no such model, the hub does not answer, or the model is of a kind that does not
            serve here; says what to do.
    """
    if not source:
        raise BadRequest(
            "backbone 'vlm': expected a model, found none; set backbone.model to a local folder or a hub id"
        )
    path = Path(source).expanduser()
    if not path.is_dir() and (source.startswith(("/", "~", ".")) or source.count("/") > 1):
        raise BadRequest(
            f"backbone.model: expected a folder, found nothing at {path}; or give a hub id: ORGANISATION/NAME"
        )
    source = str(path) if path.is_dir() else source
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        family_of(config.model_type, f"the model {source!r}")
        tokenizer = Path(cached_file(source, TOKENIZER_FILE))
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            source, dtype=torch.float32, attn_implementation="eager"
        )
        pictures = _image_settings(source)
    except (OSError, ValueError) as error:
        what = "is incomplete or damaged" if path.is_dir() else "cannot be had from the hub"
        advice = (
            "download it again with `hf download`"
            if path.is_dir()
            else "download it where there is a network with `hf download`, and give its folder"
        )
        first = str(error).strip().splitlines()[0][:300]
        raise BadRequest(f"backbone.model: {source!r} {what}; {advice}; found: {first}") from error
    return Pretrained(
        model=model,
        tokenizer=tokenizer,
        architecture=json.loads(model.config.to_json_string(use_diff=False)),
        image_mean=tuple(pictures.get("image_mean") or _NEUTRAL),
        image_std=tuple(pictures.get("image_std") or _NEUTRAL),
    )


def untrained(architecture: Mapping[str, Any]) -> nn.Module:
    """Makes a model of a recorded configuration; its weights are for the caller to load."""
    values = {key: value for key, value in architecture.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(architecture["model_type"], **values)
    model = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    return model.float()


def _image_settings(source: str) -> dict[str, Any]:
    """Returns the settings of a model's image processor."""
    for name in _PROCESSORS:
        file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if file is not None:
            found = json.loads(Path(file).read_text())
            return dict(found.get("image_processor", found))
    return {}
