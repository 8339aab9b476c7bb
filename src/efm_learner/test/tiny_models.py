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
# Of models that take images of any size, the one that tests ask for [px]: not all windows of it are whole.
ASKED_SIZE = {kind: 24 for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")}


def config(kind: str) -> Any:
    """The configuration of a model that trains in milliseconds."""
    llama, gemma = {"model_type": "llama", **TEXT}, {"model_type": "gemma", **TEXT}
    siglip = {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION}
    clip = {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}
    # As many tokens as a patch has pixels along a side: transformers before 5.24 can merge no others.
    seen = {**VISION, "image_size": 16, "patch_size": 4}
    packed = {"vision_config": seen, "text_config": llama, "scale_factor": 2, "image_token_id": IMAGE_TOKEN}
    image = {"image_token_index": IMAGE_TOKEN}
    sections = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    grid = {"text_config": {**TEXT, "rope_parameters": sections}, "image_token_id": IMAGE_TOKEN}
    patches = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "intermediate_size": 48}
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
        "qwen2_vl": {**grid, "vision_config": {**patches, "embed_dim": 24, "mlp_ratio": 2, "num_heads": 2}},
        "qwen2_5_vl": {
            **grid,
            "vision_config": {
                **patches,
                "out_hidden_size": 32,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
        },
        "qwen3_vl": {
            **grid,
            "vision_config": {
                **patches,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
        },
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


def shown(kind: str, pixels: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model of a kind is told at home of one image for each of some prompts.

    Args:
        kind: Of the model.
        pixels: Normalised, [B, 3, S, S].
        ids: Tokens of the prompts [B, L].
    """
    is_image = (ids == IMAGE_TOKEN).long()
    if kind in ("smolvlm", "idefics3"):
        return {"pixel_values": pixels[:, None]}
    if kind in ("paligemma", "gemma3"):  # What is an image (Gemma 3), what is the answer (PaliGemma).
        return {"pixel_values": pixels, "token_type_ids": is_image * (kind == "gemma3")}
    if kind in ASKED_SIZE:
        side = pixels.shape[2] // 4
        grid = torch.tensor([[1, side, side]]).expand(len(pixels), -1)
        return {"pixel_values": film(pixels), "image_grid_thw": grid, "mm_token_type_ids": is_image}
    return {"pixel_values": pixels}


def film(pixels: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, S, S] as Qwen-VL takes them: their patches, the four of one embedding in a row."""
    corners = range(0, pixels.shape[2], 8)
    return torch.stack(
        [
            torch.stack([image[:, y : y + 4, x : x + 4]] * 2, dim=1).flatten()
            for image in pixels
            for block_y in corners
            for block_x in corners
            for y in (block_y, block_y + 4)
            for x in (block_x, block_x + 4)
        ]
    )


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
