"""The losses, against numbers worked out by hand."""

import math

import dots
import pytest
import torch

from efm_core.errors import BadRequest
from efm_learner.network import build_network
from efm_learner.objectives import (
    SftObjective,
    cloning_loss,
    head_weights,
    steps_to_go_losses,
)


def test_cloning_is_the_mean_negative_log_probability_of_the_tokens():
    logits = torch.log(torch.tensor([[[[0.5, 0.5], [0.25, 0.75]]]]))
    assert cloning_loss(logits, torch.tensor([[[0, 1]]])).item() == pytest.approx(
        -(math.log(0.5) + math.log(0.75)) / 2
    )


def test_tokens_that_are_not_there_count_for_nothing():
    logits = torch.randn(2, 2, 1, 5)
    tokens = torch.tensor([[[3], [-1]], [[1], [2]]])
    rows = [cloning_loss(logits[:1, :1], tokens[:1, :1]), cloning_loss(logits[1:], tokens[1:])]
    assert cloning_loss(logits, tokens).item() == pytest.approx((rows[0] + rows[1]).item() / 2)


def test_a_bound_is_met_by_all_the_probability_at_or_above_it():
    probabilities = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    logits = torch.log(probabilities).expand(4, 1, 4)
    losses = steps_to_go_losses(
        logits, torch.tensor([0, 2, 2, 3]), torch.tensor([True, True, False, True])
    ).flatten()
    assert losses.tolist() == pytest.approx([0.0, -math.log(0.7), -math.log(0.3), -math.log(0.4)], abs=1e-6)


def test_a_bound_far_beyond_the_prediction_gives_a_finite_loss_and_gradient():
    logits = torch.tensor([[[80.0, 0.0, 0.0, -80.0]]], requires_grad=True)
    loss = steps_to_go_losses(logits, torch.tensor([3]), torch.tensor([True])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(160, rel=1e-3) and torch.isfinite(logits.grad).all()


def test_every_head_of_an_ensemble_sees_its_own_episodes_and_all_weigh_the_same():
    weights = head_weights(torch.arange(4000), heads=3, fraction=0.8, seed=1)
    assert weights.mean(dim=0).tolist() == pytest.approx([1.0] * 3, abs=0.05)
    assert (weights[:, 0] != weights[:, 1]).any()
    assert (head_weights(torch.arange(5), heads=1, fraction=0.5, seed=1) == 1).all()


def test_later_states_without_a_state_are_refused_with_what_to_do():
    network = build_network(dots.embodiment(state=None), {"name": "small", "patch": 8})
    with pytest.raises(BadRequest, match="needs a state.*'dots' has none; set foresight_weight to 0"):
        SftObjective(network, foresight_weight=1.0)
