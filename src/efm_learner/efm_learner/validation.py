"""Runs a network over held-out rows: the losses that choose weights, and predictions for calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from efm_core.steps_to_go import StepsToGoBins, combine
from efm_learner.network import ACTION_LOGITS, STEPS_TO_GO_LOGITS, EfmNetwork, Network, input_specs
from efm_learner.objectives import cloning_loss, steps_to_go_losses
from efm_learner.samples import IntArray, StepTable

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class ValidationLosses:
    """Losses on held-out episodes.

    Attributes:
        cloning: -log p of the demonstrated tokens [nats per token].
        action_agreement: Share of tokens that the most likely one hits.
        exact: -log p of the steps-to-go bin, on successful episodes [nats].
        censored: -log P(at least the bound), on unsuccessful ones [nats]; NaN without any.
        steps_to_go: Both, weighted as in training: what chooses the reward's weights.
    """

    cloning: float
    action_agreement: float
    exact: float
    censored: float
    steps_to_go: float


def validate(
    network: EfmNetwork, table: StepTable, censored_share: float, most_rows: int = 4096
) -> ValidationLosses:
    """Returns the losses on at most `most_rows` rows of each kind, always the same ones."""
    clone = _some(np.flatnonzero(table.imitate), most_rows)
    goal = _some(np.flatnonzero(~table.censored & np.isfinite(table.steps_to_go)), most_rows)
    bound = _some(np.flatnonzero(table.censored), most_rows)
    cloning, hits = [], []
    for rows, logits in predictions(network, table, clone, ACTION_LOGITS):
        tokens = torch.from_numpy(table.tokens[rows])
        cloning.append(float(cloning_loss(logits, tokens)) * len(rows))
        hits.append(float((logits.argmax(-1) == tokens)[tokens >= 0].float().mean()) * len(rows))
    exact = _steps_loss(network, table, goal)
    censored = _steps_loss(network, table, bound)
    share = censored_share if len(bound) else 0.0
    return ValidationLosses(
        cloning=sum(cloning) / max(1, len(clone)) if cloning else float("nan"),
        action_agreement=sum(hits) / max(1, len(clone)) if hits else float("nan"),
        exact=exact,
        censored=censored,
        steps_to_go=(1 - share) * exact + (share * censored if share else 0.0),
    )


def predictions(
    network: Network,
    table: StepTable,
    rows: IntArray,
    output: str,
    instruction: IntArray | None = None,
) -> Iterator[tuple[IntArray, torch.Tensor]]:
    """Yields (rows, logits on the CPU) in pieces; dropout off, no gradients.

    Args:
        network: Left in the mode that it was found in.
        table: Held-out data.
        rows: Which rows.
        output: One of the network's outputs.
        instruction: Numbers of instructions to show instead of the episodes' own.
    """
    names = tuple(input_specs(network))
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(rows), ROWS_AT_ONCE):
                piece = rows[start : start + ROWS_AT_ONCE]
                shown = None if instruction is None else instruction[start : start + ROWS_AT_ONCE]
                inputs = table.inputs(piece, network.embodiment, names, network.instruction, shown)
                logits = network({name: value.to(device) for name, value in inputs.items()}, (output,))
                yield piece, logits[output].cpu()
    finally:
        network.train(was_training)


def predicted_steps(
    network: Network,
    table: StepTable,
    rows: IntArray,
    how: str,
    instruction: IntArray | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns d [n] in control steps and the distributions [n, K], heads combined as the bundle will."""
    steps = network.embodiment.steps_to_go
    bins = StepsToGoBins(steps.bins, steps.width)
    d, distributions = [], []
    for _, logits in predictions(network, table, rows, STEPS_TO_GO_LOGITS, instruction):
        expectation, _, _, probabilities = combine(logits.numpy().astype(np.float64), how, bins)
        d.append(expectation)
        distributions.append(probabilities)
    if not d:
        return np.zeros(0), np.zeros((0, steps.bins))
    return np.concatenate(d), np.concatenate(distributions)


def episode_rows(table: StepTable, episodes: Sequence[int]) -> IntArray:
    """Returns the rows of some episodes, one episode after the other."""
    last = table.last
    pieces = [np.arange(table.first[episode], last[episode] + 1) for episode in episodes]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def _steps_loss(network: EfmNetwork, table: StepTable, rows: IntArray) -> float:
    if not len(rows):
        return float("nan")
    steps = network.embodiment.steps_to_go
    bins = torch.from_numpy(StepsToGoBins(steps.bins, steps.width).bin_of(table.steps_to_go[rows]))
    censored, total, done = torch.from_numpy(table.censored[rows]), 0.0, 0
    for piece, logits in predictions(network, table, rows, STEPS_TO_GO_LOGITS):
        part = slice(done, done + len(piece))
        total += float(steps_to_go_losses(logits, bins[part], censored[part]).mean(dim=1).sum())
        done += len(piece)
    return total / len(rows)


def _some(rows: IntArray, most: int) -> IntArray:
    """Returns at most `most` rows, evenly spread."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
