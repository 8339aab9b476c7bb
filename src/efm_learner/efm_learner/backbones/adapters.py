"""LoRA adapters for large backbones, by `peft`: put in before training, merged into the weights at export."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from efm_core.errors import BadRequest

Module = TypeVar("Module", bound=nn.Module)


def with_adapters(module: Module, rank: int, alpha: int, targets: Sequence[str]) -> Module:
    """Freezes a module, and gives its layers of the names `targets` adapters that can be trained.

    Args:
        module: Changed in place.
        rank: Of the adapters, 1 or more.
        alpha: Their scale is alpha / rank.
        targets: Last parts of the names of linear layers, such as q_proj.

    Raises:
        BadRequest: The module has no such layers.
    """
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    try:
        return peft.inject_adapter_in_model(config, module.requires_grad_(False))
    except ValueError as error:
        names = {
            name.rpartition(".")[2] for name, layer in module.named_modules() if isinstance(layer, nn.Linear)
        }
        raise BadRequest(
            f"backbone.lora_targets: expected names of linear layers, of {', '.join(sorted(names))}, found "
            f"{', '.join(targets)}"
        ) from error


def merged(network: Module) -> Module:
    """Returns the network itself, or where it has adapters a copy with plain layers that compute the same."""
    if not any(_is_adapter(layer) for layer in network.modules()):
        return network
    plain = copy.deepcopy(network)
    for parent in list(plain.modules()):
        for name, layer in list(parent.named_children()):
            if _is_adapter(layer):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
    return plain


def _is_adapter(layer: nn.Module) -> bool:
    """Whether a layer is one of peft's; tells without importing it."""
    return hasattr(layer, "merge") and hasattr(layer, "get_base_layer")
