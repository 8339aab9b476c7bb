"""REINFORCE on the fall of steps-to-go: the sign of the gradient, the switches, a toy that gets better."""

from __future__ import annotations

import math
from dataclasses import replace

import dots
import numpy as np
import practised
import pytest
import torch

from efm_core.errors import BadRequest
from efm_core.reward import discounted_returns, rewards
from efm_learner.network import ACTION_LOGITS, build_network
from efm_learner.practice import Cancelled, PracticeSettings, PracticeTrainer, Rollout

STATE = "observation.state"
SMALL = {"name": "state", "hidden": [32]}


def network(seed=0):
    torch.manual_seed(seed)
    return build_network(practised.pointmass(), SMALL)


def settings(**changes):
    known = {"updates": 1, "batch": 8, "learning_rate": 1e-2, "weight_decay": 0.0, "gradient_norm": 0.0}
    return PracticeSettings(**{"step_kl": 0.0, **known, **changes})


def log_probs(net, states, tokens):
    """log p of the executed tokens, float64 [T]."""
    with torch.no_grad():
        table = net({STATE: torch.as_tensor(states)}, (ACTION_LOGITS,))[ACTION_LOGITS].log_softmax(-1)
    chosen = table.gather(-1, torch.as_tensor(tokens).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (chosen * (torch.as_tensor(tokens) >= 0)).sum((1, 2)).double().numpy()


def rollout(net, steps_to_go, seed=0, tokens=None, **changes):
    """An episode that the network itself decided, in random states."""
    rng = np.random.default_rng(seed)
    length = len(steps_to_go) - 1
    states = rng.uniform(-1, 1, (length, 6)).astype(np.float32)
    chosen = rng.integers(0, 21, (length, 1, 2)) if tokens is None else tokens
    known = {
        "episode_id": f"e{seed}",
        "version": 0,
        "inputs": {STATE: states},
        "tokens": chosen,
        "log_probs": log_probs(net, states, chosen).astype(np.float32),
        "steps_to_go": np.asarray(steps_to_go, np.float32),
        "detected": True,
    }
    return Rollout(**{**known, **changes})


def falling(length):
    return np.arange(length, -1, -1)


def weights_of(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def equal(before, net):
    return all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_actions_that_made_steps_to_go_fall_become_more_likely_and_others_less():
    net = network()
    good = rollout(net, falling(8), seed=1)
    bad = rollout(net, falling(8)[::-1], seed=2)
    PracticeTrainer(net, settings(batch=16)).iterate([good, bad])
    for episode, sign in ((good, 1), (bad, -1)):
        after = log_probs(net, episode.inputs[STATE], episode.tokens)
        assert sign * (after - episode.log_probs).mean() > 0.05


def test_one_update_is_the_gradient_of_minus_c_times_return_times_log_probability():
    net, reference = network(), network()
    episode = rollout(net, [9.0, 7.5, 8.0, 4.0, 3.0, 3.5, 2.0, 1.0, 0.0])
    trainer = PracticeTrainer(net, settings(c=0.05, gamma=0.9))
    trainer.optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    trainer.iterate([episode])

    returns = torch.as_tensor(discounted_returns(rewards(episode.steps_to_go), 0.9), dtype=torch.float32)
    logits = reference({STATE: torch.as_tensor(episode.inputs[STATE])}, (ACTION_LOGITS,))[ACTION_LOGITS]
    chosen = logits.log_softmax(-1).gather(-1, torch.as_tensor(episode.tokens)[..., None])
    (-(0.05 * returns * chosen.sum((1, 2, 3)))).mean().backward()
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            expected = parameter.detach() - parameter.grad
            torch.testing.assert_close(dict(net.named_parameters())[name].detach(), expected)


def test_with_the_cap_a_failed_attempt_costs_no_more_than_it_had_gained():
    net = network()
    attempt = rollout(net, [9.0, 7.0, 5.0, 8.0, 20.0, 30.0, 30.0, 30.0, 30.0])
    assert attempt.returns(1.0)[0] == pytest.approx(-21)
    np.testing.assert_allclose(attempt.returns(1.0, cap_at_start=True), [0, -2, -4, -1, 0, 0, 0, 0])
    plain, capped = (
        PracticeTrainer(network(), settings(cap_at_start=cap)).iterate([attempt]) for cap in (False, True)
    )
    assert plain.mean_return == pytest.approx(attempt.returns(0.9).mean())
    assert capped.mean_return == pytest.approx(attempt.returns(0.9, True).mean())


def test_masked_tokens_give_no_gradient():
    net = network()
    tokens = np.random.default_rng(0).integers(0, 21, (8, 1, 2))
    tokens[:, 0, 1] = -1
    trainer = PracticeTrainer(net, settings())
    trainer.iterate([rollout(net, falling(8), tokens=tokens)])
    bias = net.action_head.bias.grad.view(1, 2, 21)
    assert bias[0, 0].abs().max() > 0
    assert bias[0, 1].abs().max() == 0


def test_decisions_of_a_person_are_neither_learned_from_nor_counted_but_stay_in_the_returns():
    net = network()
    tokens = np.random.default_rng(0).integers(0, 21, (12, 1, 2))
    tokens[4:8] = -1
    episode = rollout(net, falling(12), tokens=tokens)
    assert episode.learnable == 8
    assert len(episode.returns(0.9)) == 12
    report = PracticeTrainer(net, settings(batch=8)).iterate([episode])
    assert report.decisions == 8
    assert report.mean_return == pytest.approx(episode.returns(0.9)[[0, 1, 2, 3, 8, 9, 10, 11]].mean())


def test_a_run_without_any_decision_of_the_policy_is_refused():
    net = network()
    with pytest.raises(BadRequest, match="the policy decided nothing"):
        rollout(net, falling(4), tokens=np.full((4, 1, 2), -1))
    with pytest.raises(BadRequest, match="expected 5 finite steps-to-go"):
        replace(rollout(net, falling(4)), steps_to_go=np.full(5, np.nan, np.float32))
    with pytest.raises(BadRequest, match="at least one batch of 8 decisions, got 4"):
        PracticeTrainer(net, settings()).iterate([rollout(net, falling(4))])


@pytest.mark.parametrize(("step_kl", "whole"), [(0.0, True), (1e3, True), (1e-3, False)])
def test_an_iteration_ends_early_once_the_policy_has_moved_far_from_where_it_began(step_kl, whole):
    net = network()
    trainer = PracticeTrainer(net, settings(updates=8, batch=8, step_kl=step_kl))
    report = trainer.iterate([rollout(net, falling(64))])
    assert (report.updates == 8) == whole
    assert report.updates >= 1
    assert report.decisions == 8 * report.updates


def test_each_decision_is_used_at_most_once_and_what_is_over_is_left_out():
    net = network()
    trainer = PracticeTrainer(net, settings(updates=2, batch=8))
    seen = []
    update = trainer._update

    def watch(inputs, tokens, old, weights):
        seen.append(inputs[STATE].numpy())
        return update(inputs, tokens, old, weights)

    trainer._update = watch
    trainer.iterate([rollout(net, falling(10), seed=seed) for seed in range(2)])
    rows = np.concatenate(seen)
    assert len(seen) == 2
    assert len(np.unique(rows, axis=0)) == 16


def test_the_same_episodes_and_seed_give_the_same_weights():
    results = []
    for _ in range(2):
        net = network()
        trainer = PracticeTrainer(net, settings(updates=3, batch=4))
        trainer.iterate([rollout(network(), falling(12))])
        results.append(weights_of(net))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_reused_decisions_stop_counting_where_the_ratio_leaves_the_clip_range_in_their_favour():
    for sign, moves in ((1, False), (-1, True)):
        net = network()
        before = weights_of(net)
        episode = rollout(net, falling(8)[::sign])
        likelier = replace(episode, log_probs=episode.log_probs - np.float32(math.log(1.3)))
        PracticeTrainer(net, settings(epochs=2, clip=0.2)).iterate([likelier])
        assert equal(before, net) is not moves


def test_reuse_takes_as_many_updates_from_fewer_fresh_decisions():
    net = network()
    trainer = PracticeTrainer(net, settings(updates=16, epochs=4, batch=16))
    assert trainer.settings.decisions == 64
    trainer.iterate([rollout(net, falling(8), seed=seed) for seed in range(8)])
    assert trainer.updates == 16


def test_a_policy_far_from_the_acting_one_still_gives_finite_gradients():
    net = network()
    episode = rollout(net, falling(8))
    far = replace(episode, log_probs=episode.log_probs - np.float32(500.0))
    PracticeTrainer(net, settings(epochs=2)).iterate([far])
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())


def test_the_kl_anchor_pulls_the_policy_back_to_stage_one():
    net = network()
    trainer = PracticeTrainer(net, settings(updates=20, batch=16, kl_anchor=1.0))
    with torch.no_grad():
        net.action_head.weight += 0.3 * torch.randn(
            net.action_head.weight.shape, generator=torch.Generator().manual_seed(0)
        )
    nothing_gained = [rollout(net, np.full(81, 5.0), seed=seed) for seed in range(4)]
    before = trainer.kl_from_anchor({STATE: torch.as_tensor(nothing_gained[0].inputs[STATE])})
    assert trainer.iterate(nothing_gained).kl < 0.3 * before


def test_kl_is_zero_before_the_first_update_and_grows_with_practice():
    net = network()
    trainer = PracticeTrainer(net, settings())
    inputs = {STATE: torch.rand(16, 6)}
    assert trainer.kl_from_anchor(inputs) == pytest.approx(0.0, abs=1e-6)
    trainer.iterate([rollout(net, falling(8))])
    assert trainer.kl_from_anchor(inputs) > 1e-4


def test_the_entropy_bonus_keeps_the_policy_broader():
    entropy = {}
    for bonus in (0.0, 5.0):
        net = network()
        trainer = PracticeTrainer(net, settings(updates=20, batch=16, entropy_bonus=bonus))
        always_the_same = [rollout(net, falling(320), tokens=np.full((320, 1, 2), 3))]
        trainer.iterate(always_the_same)
        entropy[bonus] = trainer.iterate(always_the_same).entropy
    assert entropy[5.0] > 1.5 * entropy[0.0]


def test_normalised_advantages_do_not_depend_on_the_scale_of_steps_to_go():
    weights = []
    for scale in (1.0, 100.0):
        net = network()
        episode = rollout(net, scale * np.array([8.0, 7.0, 7.5, 5.0, 4.0, 4.5, 3.0, 1.0, 0.0]))
        PracticeTrainer(net, settings(normalise_advantages=True)).iterate([episode])
        weights.append(weights_of(net))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)


def test_the_frozen_encoder_stays_as_stage_one_left_it_and_the_rest_learns():
    robot = dots.embodiment()
    torch.manual_seed(0)
    net = build_network(robot, {"name": "small"})
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.integers(0, 5, (8, 1)), rng.integers(0, 2, (8, 1))], axis=-1)
    episode = Rollout(
        episode_id="e",
        version=0,
        inputs={
            "observation.images.top": rng.integers(0, 256, (8, 2, 16, 16, 3), dtype=np.uint8),
            STATE: rng.random((8, 1), np.float32),
            "instruction": np.ones((8, net.instruction["length"]), np.int64),
        },
        tokens=tokens,
        log_probs=np.zeros(8, np.float32),
        steps_to_go=falling(8).astype(np.float32),
        detected=False,
    )
    encoder = [parameter.clone() for parameter in net.encoder_parameters()]
    head = net.action_head.weight.clone()
    steps_head = net.steps_head.out.weight.clone()
    trainer = PracticeTrainer(net, settings(weight_decay=0.1))
    trainer.iterate([episode])
    assert len(encoder) > 0
    assert all(torch.equal(*pair) for pair in zip(encoder, net.encoder_parameters(), strict=True))
    assert not torch.equal(head, net.action_head.weight)
    assert torch.equal(steps_head, net.steps_head.out.weight)
    assert all(parameter.requires_grad is False for parameter in trainer.anchor.parameters())


def test_an_iteration_can_be_cancelled_between_two_updates():
    net = network()
    trainer = PracticeTrainer(net, settings(updates=4, batch=8))
    looks = iter([False, True])
    with pytest.raises(Cancelled, match="after 1 updates"):
        trainer.iterate([rollout(net, falling(32))], cancelled=lambda: next(looks))
    assert trainer.iteration == 0


def test_a_loss_that_is_not_finite_ends_the_iteration_before_it_spoils_the_weights():
    net = network()
    trainer = PracticeTrainer(net, settings())
    before = weights_of(net)
    episode = rollout(net, falling(8))
    with torch.no_grad():
        net.action_head.weight[0, 0] = float("nan")
    before["action_head.weight"][0, 0] = float("nan")
    with pytest.raises(BadRequest, match="loss of update 1 is nan; lower the learning rate"):
        trainer.iterate([episode])
    assert all(
        torch.equal(torch.nan_to_num(value), torch.nan_to_num(before[name]))
        for name, value in net.state_dict().items()
    )


def test_the_report_tells_how_far_the_learner_is_from_the_policy_that_acted():
    net = network()
    same = rollout(net, falling(8))
    other = replace(same, log_probs=same.log_probs + np.float32(0.5))
    assert PracticeTrainer(network(), settings()).iterate([same]).log_prob_gap == pytest.approx(0.0, abs=1e-5)
    assert PracticeTrainer(network(), settings()).iterate([other]).log_prob_gap == pytest.approx(
        0.5, abs=1e-5
    )


def test_the_report_is_plain_numbers_and_says_none_without_a_verifier():
    net = network()
    known = [rollout(net, falling(8), verified=True), rollout(net, falling(8), seed=1, verified=False)]
    report = PracticeTrainer(net, settings()).iterate(known)
    assert (report.episodes, report.detected, report.verified, report.iteration) == (2, 1.0, 0.5, 1)
    assert (report.mean_steps, report.steps_to_go_last, report.updates) == (8.0, 0.0, 1)
    assert PracticeTrainer(net, settings()).iterate([rollout(net, falling(8))]).verified is None


@pytest.mark.parametrize(
    "changes",
    [
        {"gamma": 1.1},
        {"c": 0.0},
        {"c": float("inf")},
        {"learning_rate": float("nan")},
        {"batch": 0},
        {"epochs": 0},
        {"clip": 1.0},
        {"max_staleness": -1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes):
    with pytest.raises(BadRequest, match=next(iter(changes))):
        PracticeSettings(**changes)


def test_the_paper_s_settings_are_the_default():
    default = PracticeSettings()
    assert (default.gamma, default.c, default.updates, default.batch) == (0.9, 0.05, 16, 64)
    assert default.decisions == 1024
    assert (default.epochs, default.kl_anchor, default.entropy_bonus) == (1, 0.0, 0.0)
    assert not default.normalise_advantages


def test_practice_makes_a_toy_better():
    """A point in the plane, d is the number of straight steps to the goal: it must get there faster."""
    net = network()
    trainer = PracticeTrainer(net, PracticeSettings(updates=16, batch=64, learning_rate=3e-3))
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(20):
        walks = _walks(net, rng)
        lengths.append(np.mean([len(walk) for walk in walks]))
        trainer.iterate(walks)
    assert np.mean(lengths[:2]) > 18
    assert np.mean(lengths[-2:]) < 0.6 * np.mean(lengths[:2])


def _walks(net, rng, count=96, most=25):
    """The network moves points until they are near their goals; d is the distance in steps."""
    place, goal = rng.uniform(-1, 1, (2, count, 2))
    states, tokens, chances, d = [], [], [], [np.linalg.norm(place - goal, axis=1) / 0.25]
    for _ in range(most):
        state = np.concatenate([place, np.zeros((count, 2)), goal], axis=1).astype(np.float32)
        with torch.no_grad():
            table = net({STATE: torch.as_tensor(state)}, (ACTION_LOGITS,))[ACTION_LOGITS]
        table = table.log_softmax(-1).numpy().astype(np.float64)
        drawn = (table + rng.gumbel(size=table.shape)).argmax(-1)
        states.append(state)
        tokens.append(drawn)
        chances.append(np.take_along_axis(table, drawn[..., None], -1).sum((1, 2, 3)))
        place = np.clip(place + 0.25 * (drawn[:, 0] - 10) / 10, -1, 1)
        d.append(np.linalg.norm(place - goal, axis=1) / 0.25)
    distances = np.stack(d, axis=1)
    arrived = distances[:, 1:] <= 1.0
    lengths = np.where(arrived.any(axis=1), arrived.argmax(axis=1) + 1, most)
    return [
        Rollout(
            episode_id=f"walk {index}",
            version=0,
            inputs={STATE: np.stack(states)[:length, index]},
            tokens=np.stack(tokens)[:length, index],
            log_probs=np.stack(chances)[:length, index].astype(np.float32),
            steps_to_go=distances[index, : length + 1].astype(np.float32),
            detected=bool(arrived[index].any()),
        )
        for index, length in enumerate(lengths)
    ]
