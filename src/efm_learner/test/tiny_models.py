"""Tiny, randomly initialised vision-language models of real architectures, saved as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dots
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE_TOKEN = 63


def config(kind: str) -> Any:
    """The configuration of a model that trains in milliseconds."""
    llama, gemma = {"model_type": "llama", **TEXT}, {"model_type": "gemma", **TEXT}
    siglip = {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION}
    clip = {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}
    packed = {"vision_config": VISION, "text_config": llama, "scale_factor": 2, "image_token_id": IMAGE_TOKEN}
    image = {"image_token_index": IMAGE_TOKEN}
    wanted: dict[str, dict[str, Any]] = {
        "smolvlm": packed,
        "idefics3": packed,
        "paligemma": {
            "vision_config": {"projection_dim": 32, **siglip},
            "text_config": gemma,
            "projection_dim": 32,
            **image,
        },
        "gemma3": {"vision_config": siglip, "text_config": TEXT, "mm_tokens_per_image": 4, **image},
        "llava": {"vision_config": clip, "text_config": llama, **image},
    }
    return transformers.AutoConfig.for_model(kind, **wanted[kind])


def make(kind: str) -> Any:
    """A model with random weights, all of them large enough to matter."""
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config(kind), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save(kind: str, folder: Path) -> Path:
    """Writes a model's folder: weights, configuration, tokenizer, image processor."""
    make(kind).save_pretrained(folder)
    words = sorted({word for text in dots.INSTRUCTIONS for word in text.split()})
    numbers = {
        "<pad>": 0,
        "<bos>": 1,
        "<eos>": 2,
        "<unk>": 3,
        **{word: 4 + i for i, word in enumerate(words)},
    }
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer.enable_padding(pad_id=0, length=20)
    tokenizer.save(str(folder / "tokenizer.json"))
    pictures = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    return folder
