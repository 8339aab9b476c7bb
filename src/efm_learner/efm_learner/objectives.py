"""The losses of stage 1: behaviour cloning, steps-to-go, and what helps the network to see.

Two more objectives can be added: the instruction from the first and the last image, and the robot's own
later states. An action says only which way to go; where the robot will be some steps later says where the
things lie that it goes to.

Every loss is a mean over rows of a mean within the row, so that batches split over several processes add up
to the same gradient. What a batch is made of is decided in `batches.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest
from efm_learner.network import EfmNetwork

# Control steps after which the robot's own state is told; the last is the end of any demonstration.
HORIZONS = (4, 10, 20, 1_000_000)

# Below any log-probability of float32, but finite.
NEVER = -1e9


@dataclass(frozen=True)
class Targets:
    """What the rows of a batch should give; the rows come in this order.

    Attributes:
        tokens: int64 [b, C, D] for the first b rows; -1 where there is no action.
        bins: int64 [s], steps-to-go bins for the next s rows.
        censored: bool [s], where the bin is the least that the answer may be.
        heads: float32 [s, E], weight of each row for each head of the ensemble, 1 on average.
        words: int64 [w, L], instructions for the last 2 w rows: w first observations, then w last ones.
        later: float32 [b, H, S], states of the first b rows' episodes after `HORIZONS`, each entry with mean
            0 and deviation 1 over the training data; [b, 0, 0] without that objective.
    """

    tokens: torch.Tensor
    bins: torch.Tensor
    censored: torch.Tensor
    heads: torch.Tensor
    words: torch.Tensor
    later: torch.Tensor

    def to(self, device: torch.device) -> Targets:
        """Returns the targets on a device."""
        return Targets(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def cloning_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Returns -log p of the tokens, nats per token.

    Args:
        logits: [B, C, D, bins].
        tokens: int64 [B, C, D]; -1 counts for nothing, every row has at least one other.
    """
    present = tokens >= 0
    log_p = torch.log_softmax(logits, dim=-1).gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    of_rows = (log_p * present).sum(dim=(1, 2)) / present.sum(dim=(1, 2)).clamp(min=1)
    return -of_rows.mean()


def steps_to_go_losses(logits: torch.Tensor, bins: torch.Tensor, censored: torch.Tensor) -> torch.Tensor:
    """Returns -log p of the bin, or -log P(at least this bin) where censored; [B, E] in nats.

    Args:
        logits: [B, E, K].
        bins: int64 [B].
        censored: bool [B].
    """
    log_p = torch.log_softmax(logits, dim=-1)
    exact = log_p.gather(-1, bins.view(-1, 1, 1).expand(-1, log_p.shape[1], 1)).squeeze(-1)
    below = torch.arange(log_p.shape[-1], device=log_p.device) < bins.view(-1, 1, 1)
    at_least = torch.logsumexp(log_p.masked_fill(below, NEVER), dim=-1)
    return -torch.where(censored.unsqueeze(1), at_least, exact)


class InstructionHead(nn.Module):
    """Reads the instruction off the features of the first and the last observation, word by word."""

    def __init__(self, features: int, spec: Mapping[str, object], width: int = 64) -> None:
        super().__init__()
        if spec["kind"] != "hashed_words":
            raise BadRequest(
                "the objective 'instruction from first and last image' needs a backbone with instructions of "
                f"kind 'hashed_words', found {spec['kind']!r}; set instruction_weight to 0"
            )
        self.what = nn.Linear(2 * features, width)
        self.where = nn.Parameter(torch.randn(int(str(spec["length"])), width) * 0.3)
        self.mix = nn.Linear(width, width)
        self.words = nn.Linear(width, int(str(spec["buckets"])))

    def forward(self, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Returns logits [B, L, buckets] for features [B, F] each."""
        seen = torch.relu(self.what(torch.cat([first, last], dim=1)))
        return self.words(torch.relu(self.mix(seen.unsqueeze(1) + self.where)))


class ForesightHead(nn.Module):
    """Tells from the features of an observation where the robot itself will be after each of `HORIZONS`.

    Args:
        features: F.
        embodiment: With a state.

    Raises:
        BadRequest: The embodiment has no state.
    """

    def __init__(self, features: int, embodiment: Embodiment) -> None:
        super().__init__()
        if embodiment.state is None:
            raise BadRequest(
                f"the objective 'later states' needs a state, and the embodiment '{embodiment.name}' has "
                "none; set foresight_weight to 0"
            )
        self.out = nn.Linear(features, len(HORIZONS) * embodiment.state_size)

    def forward(self, features: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """Returns the mean squared error for features [b, F] and states [b, H, S]."""
        return functional.mse_loss(self.out(features).float().view(later.shape), later)


class SftObjective(nn.Module):
    """The network with its losses, as one module that can be spread over processes.

    Args:
        network: To be trained.
        instruction_weight: Weight of the instruction objective; 0 leaves it out.
        foresight_weight: Weight of the objective that tells the robot's own later states; 0 leaves it out.
    """

    def __init__(
        self, network: EfmNetwork, instruction_weight: float = 0.0, foresight_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.network = network
        self.instruction_weight, self.foresight_weight = instruction_weight, foresight_weight
        self.instruction_head = (
            InstructionHead(network.trunk.feature_size, network.instruction) if instruction_weight else None
        )
        self.foresight_head = (
            ForesightHead(network.trunk.feature_size, network.embodiment) if foresight_weight else None
        )

    def forward(self, inputs: Mapping[str, torch.Tensor], targets: Targets) -> dict[str, torch.Tensor]:
        """Returns the losses: "loss", their weighted sum, and each by name."""
        cloned, judged = len(targets.tokens), len(targets.bins)
        network = self.network
        if network.steps_backbone is None:
            features = network.policy_backbone(inputs)
            judged_features = features[cloned : cloned + judged]
            retold = features[cloned + judged :]
        else:
            features = network.policy_backbone(rows_of(inputs, 0, cloned))
            judged_features = network.steps_backbone(rows_of(inputs, cloned, cloned + judged))
        losses = {"cloning": cloning_loss(network.act(features[:cloned]), targets.tokens)}
        of_heads = steps_to_go_losses(network.judge(judged_features), targets.bins, targets.censored)
        losses["steps_to_go"] = (of_heads * targets.heads).mean()
        total = losses["cloning"] + losses["steps_to_go"]
        if self.instruction_head is not None:
            if network.steps_backbone is not None:
                retold = network.policy_backbone(rows_of(inputs, cloned + judged, None))
            told = len(targets.words)
            logits = self.instruction_head(retold[:told], retold[told:])
            losses["instruction"] = functional.cross_entropy(logits.flatten(0, 1), targets.words.flatten())
            total = total + self.instruction_weight * losses["instruction"]
        if self.foresight_head is not None:
            losses["foresight"] = self.foresight_head(features[:cloned], targets.later)
            total = total + self.foresight_weight * losses["foresight"]
        return {"loss": total, **losses}


def rows_of(inputs: Mapping[str, torch.Tensor], start: int, stop: int | None) -> dict[str, torch.Tensor]:
    """Returns a range of rows of every input."""
    return {name: value[start:stop] for name, value in inputs.items()}


def head_weights(episodes: torch.Tensor, heads: int, fraction: float, seed: int) -> torch.Tensor:
    """Returns which head sees which episode, float32 [B, E], 1 on average over many episodes.

    Each head of an ensemble is trained on its own random share of the episodes, so that heads differ where
    data are few.

    Args:
        episodes: int64 [B], number of each row's episode.
        heads: E.
        fraction: Share of episodes that a head sees; 1 gives ones.
        seed: Of the shares.
    """
    if heads == 1 or fraction >= 1.0:
        return torch.ones(len(episodes), heads)
    largest = int(episodes.max()) + 1 if len(episodes) else 0
    drawn = torch.rand(largest, heads, generator=torch.Generator().manual_seed(seed)) < fraction
    return drawn[episodes].float() / fraction
