"""The network: a backbone, a head over action bins, and an ensemble of heads over steps-to-go bins.

Inputs and outputs carry the names of the ONNX graph, and normalisation happens inside, so training, export
and serving share one definition. Losses live in `objectives.py`, files in `checkpoint.py` and `export.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from efm_core.action_tokens import ActionTokenizer
from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest
from efm_learner.backbones import (
    INSTRUCTION,
    STATE,
    Backbone,
    Batch,
    image_input,
    instruction_size,
    make_backbone,
)

ACTION_LOGITS = "action_logits"
STEPS_TO_GO_LOGITS = "steps_to_go_logits"
OUTPUTS = (ACTION_LOGITS, STEPS_TO_GO_LOGITS)

# Name of the free dimension of every input and output.
BATCH = "batch"

# Added to the logits of bins that a dimension does not have: their probability is exactly 0 in float32.
NO_BIN = -1e9


class StepsToGoHeads(nn.Module):
    """E heads over K bins; with more than one, each has its own hidden layer and so its own opinion."""

    def __init__(self, features: int, heads: int, bins: int, hidden: int = 64) -> None:
        super().__init__()
        self.heads, self.bins, self.hidden = heads, bins, hidden
        if heads == 1:
            self.out = nn.Linear(features, bins)
        else:
            self.first = nn.Linear(features, heads * hidden)
            bound = hidden**-0.5
            self.weight = nn.Parameter(torch.empty(heads, hidden, bins).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.zeros(heads, bins))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns logits float32 [B, E, K] for features [B, F]."""
        if self.heads == 1:
            return self.out(features).unsqueeze(1)
        hidden = torch.relu(self.first(features)).view(-1, self.heads, self.hidden)
        return torch.einsum("beh,ehk->bek", hidden, self.weight) + self.bias


class EfmNetwork(nn.Module):
    """One network for both objectives.

    With `shared_trunk` the two heads read one backbone; without it each has its own, as in the authors'
    point-mass notebook.

    Attributes:
        embodiment: What it was made for.
        policy_backbone: The trunk, or with separate trunks that of the action head.
        steps_backbone: The trunk of the steps-to-go heads; None with a shared trunk.
        instruction: Specification of the instruction input; kind "none" where there is no such input.
    """

    bin_mask: torch.Tensor

    def __init__(self, embodiment: Embodiment, backbone: Mapping[str, Any], heads: int = 1) -> None:
        super().__init__()
        if heads < 1:
            raise BadRequest(f"network: expected 1 or more steps-to-go heads, found {heads}")
        settings = dict(backbone)
        self.shared_trunk = bool(settings.pop("shared_trunk", True))
        self.embodiment = embodiment
        self.heads = heads
        trunk = make_backbone(embodiment, settings)
        self.policy_backbone = cast(nn.Module, trunk)
        # None with a shared trunk, so that every weight has one name.
        self.steps_backbone = (
            None if self.shared_trunk else cast(nn.Module, make_backbone(embodiment, settings))
        )
        self.instruction = trunk.instruction
        self.backbone_settings = {**trunk.settings_dict(), "shared_trunk": self.shared_trunk}

        bins = torch.as_tensor(ActionTokenizer(embodiment.action).bins)
        self.chunk, self.dimensions, self.max_bins = embodiment.action.chunk, len(bins), int(bins.max())
        mask = torch.arange(self.max_bins)[None, :] >= bins[:, None]
        self.register_buffer("bin_mask", mask.float() * NO_BIN)
        self.action_head = nn.Linear(trunk.feature_size, self.chunk * self.dimensions * self.max_bins)
        self.steps_head = StepsToGoHeads(trunk.feature_size, heads, embodiment.steps_to_go.bins)

    def forward(self, batch: Batch, outputs: Sequence[str] = OUTPUTS) -> dict[str, torch.Tensor]:
        """Runs the network.

        Args:
            batch: `observation.images.<camera>` uint8 [B, T, H, W, 3], `observation.state` float32 [B, S],
                `instruction` int64 [B, L]; inputs that the backbone does not use may be left out.
            outputs: Which of `OUTPUTS` to compute.

        Returns:
            `action_logits` float32 [B, C, D, max_bins], `steps_to_go_logits` float32 [B, E, K].
        """
        results: dict[str, torch.Tensor] = {}
        features: torch.Tensor | None = None
        if ACTION_LOGITS in outputs or self.steps_backbone is None:
            features = self.policy_backbone(batch)
        if ACTION_LOGITS in outputs:
            results[ACTION_LOGITS] = self.act(features)
        if STEPS_TO_GO_LOGITS in outputs:
            if self.steps_backbone is not None:
                features = self.steps_backbone(batch)
            results[STEPS_TO_GO_LOGITS] = self.judge(features)
        return results

    def act(self, features: torch.Tensor | None) -> torch.Tensor:
        """Returns action logits float32 [B, C, D, max_bins] for features [B, F] of the policy's backbone."""
        logits = self.action_head(features).float()
        return logits.view(-1, self.chunk, self.dimensions, self.max_bins) + self.bin_mask

    def judge(self, features: torch.Tensor | None) -> torch.Tensor:
        """Returns steps-to-go logits float32 [B, E, K] for features [B, F] of their backbone."""
        return self.steps_head(features).float()

    @property
    def trunk(self) -> Backbone:
        """The policy's backbone, typed as the seam."""
        return cast(Backbone, self.policy_backbone)

    @property
    def trunks(self) -> list[Backbone]:
        """One backbone of each kind that the network reads its inputs with."""
        return [self.trunk]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the policy's image encoder, which practice may freeze."""
        return self.trunk.encoder_parameters()

    def trained_parameters(self) -> int:
        """Returns the number of parameters that training changes."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


class RewardEnsemble(nn.Module):
    """Several networks as one that judges: the steps-to-go heads of all of them.

    Made of trained networks and not trained itself. Attributes as of `EfmNetwork`.

    Raises:
        BadRequest: Fewer than two networks, of different embodiments, or that read instructions differently.
    """

    def __init__(self, members: Sequence[EfmNetwork]) -> None:
        super().__init__()
        if len(members) < 2:
            raise BadRequest(f"ensemble: expected 2 or more networks, found {len(members)}")
        self.embodiment = members[0].embodiment
        spoken = [member.instruction for member in members if instruction_size(member.instruction)]
        self.instruction = (spoken or [members[0].instruction])[0]
        for number, member in enumerate(members[1:], 2):
            if member.embodiment.digest != self.embodiment.digest:
                raise BadRequest(
                    f"ensemble: expected networks of one embodiment, found '{self.embodiment.name}' and "
                    f"'{member.embodiment.name}' ({self.embodiment.digest} and {member.embodiment.digest})"
                )
            if instruction_size(member.instruction) and member.instruction != self.instruction:
                raise BadRequest(
                    f"ensemble: network {number} reads instructions as {dict(member.instruction)}, one "
                    f"before it as {dict(self.instruction)}; train them with the same backbone.instruction"
                )
        self.members = nn.ModuleList(members)
        self.heads = sum(member.heads for member in members)
        self.trunks = [trunk for member in members for trunk in member.trunks]
        parts = [{**member.backbone_settings, "heads": member.heads} for member in members]
        self.backbone_settings = {"name": "ensemble", "members": parts}

    def forward(
        self, batch: Batch, outputs: Sequence[str] = (STEPS_TO_GO_LOGITS,)
    ) -> dict[str, torch.Tensor]:
        """Returns `steps_to_go_logits` float32 [B, E, K] of all members, one after the other."""
        assert tuple(outputs) == (STEPS_TO_GO_LOGITS,)
        logits = [member(batch, outputs)[STEPS_TO_GO_LOGITS] for member in self.members]
        return {STEPS_TO_GO_LOGITS: torch.cat(logits, dim=1)}


Network = EfmNetwork | RewardEnsemble


def build_network(embodiment: Embodiment, backbone: Mapping[str, Any], heads: int = 1) -> EfmNetwork:
    """Makes an untrained network; `torch.manual_seed` before decides its weights.

    Args:
        embodiment: Decides the inputs, the action bins and the steps-to-go bins.
        backbone: `{"name": "state" | "small" | "vlm", "shared_trunk": bool, ...settings of the backbone}`.
        heads: Steps-to-go heads E of the ensemble.
    """
    return EfmNetwork(embodiment, backbone, heads)


def input_specs(network: Network) -> dict[str, dict[str, Any]]:
    """Returns the inputs of the network as the manifest has them: name -> {shape, dtype}."""
    embodiment = network.embodiment
    specs: dict[str, dict[str, Any]] = {}
    for name in (name for trunk in network.trunks for name in trunk.cameras):
        camera = embodiment.camera(name)
        shape = [BATCH, camera.frames, camera.height, camera.width, 3]
        specs[image_input(name)] = {"shape": shape, "dtype": "uint8"}
    if any(trunk.uses_state for trunk in network.trunks):
        specs[STATE] = {"shape": [BATCH, embodiment.state_size], "dtype": "float32"}
    if instruction_size(network.instruction):
        specs[INSTRUCTION] = {"shape": [BATCH, instruction_size(network.instruction)], "dtype": "int64"}
    return specs


def random_batch(network: Network, size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns inputs of the right shapes with random contents, for tracing, warm-up and benchmarks."""
    generator = torch.Generator().manual_seed(seed)
    batch: dict[str, torch.Tensor] = {}
    for name, spec in input_specs(network).items():
        shape = [size, *spec["shape"][1:]]
        if spec["dtype"] == "uint8":
            batch[name] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        elif spec["dtype"] == "int64":
            words = int(network.instruction.get("buckets", 2))
            batch[name] = torch.randint(1, words, shape, generator=generator)
        else:
            batch[name] = torch.rand(shape, generator=generator) * 2 - 1
    return batch
