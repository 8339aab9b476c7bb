"""One batched inference for many robots, each with its own randomness; one that fails fails alone."""

import numpy as np
import pytest
from policy_fakes import bundle_of, embodiment_of

from efm_core.errors import BundleUnusable, EmbodimentMismatch, ObservationInvalid
from efm_core.observation import Observation
from efm_policy_node.onnx_policy import Decision, OnnxPolicy, Request, load_policy


def observation(embodiment, state=(0.1, -0.2), brightness=100) -> Observation:
    images = {
        c.name: np.full((c.frames, c.height, c.width, 3), brightness, np.uint8) for c in embodiment.cameras
    }
    return Observation(1, images, np.array(state, np.float32))


def request(embodiment, seed=7, temperature=1.0, **seen) -> Request:
    return Request(observation(embodiment, **seen), "go", temperature, np.random.default_rng(seed))


@pytest.fixture
def policy(embodiment, tmp_path):
    return load_policy(bundle_of(embodiment, tmp_path).path, embodiment, robots=3)


def test_the_same_seed_gives_the_same_actions_and_another_seed_others(policy, embodiment):
    def ten(seed):
        wish = request(embodiment, seed)
        return [policy.decide([wish])[0].tokens.tolist() for _ in range(10)]

    assert ten(1) == ten(1)
    assert ten(1) != ten(2)


def test_a_robot_gets_the_same_actions_alone_and_in_a_batch(policy, embodiment):
    wishes = [request(embodiment, seed=s, state=(0.1 * s, 0.0)) for s in range(3)]
    together = policy.decide(wishes)
    alone = [policy.decide([request(embodiment, seed=s, state=(0.1 * s, 0.0))])[0] for s in range(3)]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-5)


def test_greedy_takes_the_likeliest_bin_and_actions_are_bin_centres(embodiment, tmp_path):
    policy = load_policy(bundle_of(embodiment, tmp_path, tokens=(20, 5)).path, embodiment, robots=1)
    decision = policy.decide([request(embodiment, temperature=0.0)])[0]
    assert decision.tokens.tolist() == [[20, 5]]
    assert decision.actions.tolist() == [[1.0, 0.0]]
    assert decision.log_prob[0] == pytest.approx(0.0, abs=1e-4)


def test_log_prob_is_at_temperature_one_whatever_the_sampling_temperature(policy, embodiment):
    def log_prob_of(temperature):
        decision = policy.decide([request(embodiment, temperature=temperature, seed=3)])[0]
        logits = policy._logits([request(embodiment)])[0, 0].astype(np.float64)
        shifted = logits - logits.max(-1, keepdims=True)
        table = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        expected = sum(table[d, token] for d, token in enumerate(decision.tokens[0]))
        return decision.log_prob[0], expected

    for temperature in (0.0, 0.5, 1.0, 3.0):
        found, expected = log_prob_of(temperature)
        assert found == pytest.approx(expected, abs=1e-5)


def test_one_bad_observation_fails_alone(embodiment, tmp_path):
    bundle = bundle_of(embodiment, tmp_path, nan_above=0.5)
    policy = load_policy(bundle.path, embodiment, robots=3)
    wishes = [
        request(embodiment),
        request(embodiment, state=(0.9, 0.0)),
        request(embodiment, state=(0.2, 0.0)),
    ]
    good, bad, also_good = policy.decide(wishes)
    assert isinstance(good, Decision) and isinstance(also_good, Decision)
    assert isinstance(bad, BundleUnusable)
    broken = Request(Observation(1, {}, np.zeros(2, np.float32)), "go", 1.0, np.random.default_rng(0))
    outcomes = policy.decide([request(embodiment), broken])
    assert isinstance(outcomes[0], Decision) and isinstance(outcomes[1], ObservationInvalid)


def test_a_bundle_of_another_embodiment_is_refused_and_says_how(tmp_path):
    bundle = bundle_of(embodiment_of(), tmp_path)
    with pytest.raises(EmbodimentMismatch, match="control_rate"):
        load_policy(bundle.path, embodiment_of(control_rate_hz=10.0), robots=1)


def test_a_reward_bundle_cannot_act(embodiment, tmp_path):
    bundle = bundle_of(embodiment, tmp_path, kind="reward")
    with pytest.raises(BundleUnusable, match="expected kind policy or both"):
        OnnxPolicy(bundle, embodiment)


def test_a_bundle_whose_outputs_are_never_finite_is_refused_at_warm_up(embodiment, tmp_path):
    bundle = bundle_of(embodiment, tmp_path, nan_above=-1.0)
    with pytest.raises(BundleUnusable, match="finite"):
        load_policy(bundle.path, embodiment, robots=1)
