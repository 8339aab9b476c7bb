"""Recorded episodes -> rollouts: the learner sees what the policy saw, and nothing of the ground truth."""

from __future__ import annotations

import ast
import dataclasses
import math
from pathlib import Path

import dots
import numpy as np
import practised
import pytest
import torch

import efm_learner
from efm_core.episode import (
    Actor,
    EndReason,
    EpisodeWriter,
    LazyImages,
    Mode,
    Outcome,
    Summary,
    observations_of,
    read_episode,
)
from efm_core.errors import EmbodimentMismatch, EpisodeInvalid
from efm_core.onnx_model import OnnxModel
from efm_core.policy import sample_actions
from efm_core.schemas import make_header, message_class, serialize
from efm_learner.export import load_network
from efm_learner.labelling import Judge
from efm_learner.network import ACTION_LOGITS
from efm_learner.random_bundle import write_random_bundle
from efm_learner.rollouts import check_practised, rollout_of

ROBOT = practised.pointmass()


@pytest.fixture(scope="module")
def network(bundles):
    return load_network(bundles["policy"])


@pytest.fixture(scope="module")
def judge(bundles):
    return Judge(bundles["reward"])


def learner_log_probs(network, rollout):
    with torch.no_grad():
        inputs = {name: torch.as_tensor(value) for name, value in rollout.inputs.items()}
        table = network(inputs, (ACTION_LOGITS,))[ACTION_LOGITS].log_softmax(-1)
    tokens = torch.as_tensor(rollout.tokens)
    chosen = table.gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (chosen * (tokens >= 0)).sum((1, 2)).numpy()


def test_log_probabilities_of_the_onnx_policy_equal_the_learner_s_on_recorded_episodes(
    tmp_path, bundles, network, judge
):
    for number in range(5):
        episode = read_episode(practised.record_episode(tmp_path, bundles["policy"], number, steps=30))
        rollout = rollout_of(episode, network, judge, 0)
        np.testing.assert_allclose(learner_log_probs(network, rollout), rollout.log_probs, atol=1e-4)
        assert rollout.tokens.shape == (30, 1, 2)
        assert rollout.steps_to_go.shape == (31,)


def test_with_images_and_words_the_log_probabilities_are_the_same_too(tmp_path):
    robot = dots.embodiment()
    policy = write_random_bundle(robot, tmp_path, backbone="small")
    arrays = dots.episode(1)
    recorded = read_episode(dots.record(tmp_path / "episodes", arrays))
    model = OnnxModel(policy)
    logits = model.run(
        observations_of(recorded, 0, len(recorded) - 1), [recorded.instruction] * (len(recorded) - 1)
    ).action_logits
    tokens, log_probs = sample_actions(logits, 1.0, np.random.default_rng(0))
    folder = _record_dots(tmp_path / "practice", policy.id, arrays, tokens[:, 0], log_probs[:, 0])
    rollout = rollout_of(read_episode(folder), load_network(policy), Judge(policy), 0)
    assert set(rollout.inputs) == {"observation.images.top", "observation.state", "instruction"}
    np.testing.assert_allclose(learner_log_probs(load_network(policy), rollout), rollout.log_probs, atol=1e-4)


def test_live_labels_of_the_run_s_reward_are_taken_and_all_others_judged_anew(
    tmp_path, bundles, network, judge
):
    live = np.linspace(20, 3, 13).astype(np.float32)
    for number, (labels, expected) in enumerate(
        {
            "its own": ((bundles["reward"].id, live), live),
            "another bundle": ((bundles["verifier"].id, live), None),
            "none": (None, None),
            "with a gap": ((bundles["reward"].id, live), None),
        }.values()
    ):
        folder = practised.record_episode(tmp_path, bundles["policy"], number, labels=labels)
        episode = read_episode(folder)
        if number == 3:
            episode.steps_to_go[4] = np.nan
        found = rollout_of(episode, network, judge, 0).steps_to_go
        np.testing.assert_allclose(found, judge.steps_to_go(episode) if expected is None else expected)


def test_steps_of_a_person_carry_no_tokens_but_stay_in_the_returns(tmp_path, bundles, network, judge):
    episode = read_episode(practised.record_episode(tmp_path, bundles["policy"], 1, human=(0, 5, 6)))
    rollout = rollout_of(episode, network, judge, 0)
    assert len(rollout) == 12
    assert rollout.learnable == 9
    assert (rollout.tokens[[0, 5, 6]] == -1).all()
    assert (rollout.log_probs[[0, 5, 6]] == 0).all()
    assert len(rollout.returns(0.9)) == 12


def test_an_episode_that_a_person_decided_alone_is_refused(tmp_path, bundles, network, judge):
    episode = read_episode(practised.record_episode(tmp_path, bundles["policy"], 1, human=range(12)))
    with pytest.raises(EpisodeInvalid, match="the policy decided no step"):
        rollout_of(episode, network, judge, 0)


def test_greedy_episodes_are_refused_since_they_try_nothing(tmp_path, bundles, network, judge):
    episode = read_episode(practised.record_episode(tmp_path, bundles["policy"], 1, temperature=0.0))
    with pytest.raises(EpisodeInvalid, match="acted greedily"):
        rollout_of(episode, network, judge, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": Mode.COLLECT}, "expected mode PRACTICE, found COLLECT"),
        ({"mode": Mode.EVALUATE}, "expected mode PRACTICE, found EVALUATE"),
        ({"outcome": Outcome.DISCARDED}, "found DISCARDED after MAX_STEPS"),
        ({"end_reason": EndReason.FAULT}, "found FAILURE after FAULT"),
        ({"end_reason": EndReason.TRUTH}, "ended by the world's ground truth"),
        ({"detected": True, "reward_bundle_id": "0" * 16}, "detected by reward bundle 0000000000000000"),
        ({"truth": b"\0" * 400}, "holds or was ended by the world's ground truth"),
    ],
)
def test_what_must_not_be_learned_from_is_refused_with_the_reason(tmp_path, bundles, changes, words):
    episode = read_episode(practised.record_episode(tmp_path, bundles["policy"], 1, **changes))
    with pytest.raises(EpisodeInvalid, match=words):
        check_practised(episode, ROBOT, bundles["reward"].id)


def test_ordinary_ends_are_fine(tmp_path, bundles):
    ends = (EndReason.MAX_STEPS, EndReason.PERSON, EndReason.SAFETY, EndReason.ACTOR_DONE)
    for number, end in enumerate(ends):
        folder = practised.record_episode(tmp_path, bundles["policy"], number, end_reason=end)
        check_practised(read_episode(folder), ROBOT, bundles["reward"].id)
    own = {"detected": True, "reward_bundle_id": bundles["reward"].id}
    folder = practised.record_episode(tmp_path, bundles["policy"], 9, **own)
    check_practised(read_episode(folder), ROBOT, bundles["reward"].id)


def test_another_robot_s_episode_is_refused_and_told_what_differs(tmp_path, bundles):
    episode = read_episode(dots.record(tmp_path, dots.episode(0), mode=Mode.PRACTICE))
    with pytest.raises(EmbodimentMismatch, match="recorded on 'dots', this run is for 'pointmass'"):
        check_practised(episode, ROBOT, bundles["reward"].id)


# No ground truth


def test_ground_truth_in_a_bag_changes_nothing_of_what_is_read(tmp_path, bundles, network, judge):
    """The same episode with and without a truth, even one of broken bytes: nobody opens it."""
    plain = practised.record_episode(tmp_path / "plain", bundles["policy"], 1)
    told = practised.record_episode(tmp_path / "told", bundles["policy"], 1, truth=b"no message at all")
    first, second = (rollout_of(read_episode(path), network, judge, 0) for path in (plain, told))
    for name in first.inputs:
        np.testing.assert_array_equal(first.inputs[name], second.inputs[name])
    for name in ("tokens", "log_probs", "steps_to_go"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.detected == second.detected


def test_no_module_of_the_learner_names_the_ground_truth_but_to_refuse_it():
    """Neither the topic nor its message: what is not named cannot be read."""
    named = {}
    for path in Path(efm_learner.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        words = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
        words += [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
        words += [n.name for n in ast.walk(tree) if isinstance(n, ast.alias)]
        docstrings = {
            ast.get_docstring(n, clean=False)
            for n in ast.walk(tree)
            if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        }
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        words += [text for text in texts if text not in docstrings]
        hits = [w for w in words if "truth" in w.lower()]
        if hits:
            named[path.name] = sorted(set(hits))
    assert list(named) == ["rollouts.py"]
    refusal = "holds or was ended by the world's ground truth, from which nobody may learn"
    assert named["rollouts.py"] == sorted(["TRUTH", "TRUTH_TOPIC", refusal])


# Chunks


def test_the_steps_of_a_chunk_belong_to_the_observation_that_it_was_inferred_from(tmp_path):
    steps = [(row, row % 3) for row in range(7)]  # Three steps of each chunk, the last one cut short.
    rollout = _chunked(tmp_path, steps)
    assert rollout.inputs["observation.state"][:, 0].tolist() == [0.0, 3.0, 6.0]
    assert (rollout.tokens >= 0).all(axis=2).tolist() == [[True] * 3, [True] * 3, [True, False, False]]
    assert rollout.log_probs.tolist() == [-3.0, -12.0, -6.0]
    assert len(rollout.steps_to_go) == 4


def test_a_chunk_that_came_late_is_learned_from_its_own_observation(tmp_path):
    """Asynchronous inference: the second chunk was inferred at row 2, and its first step is its third one."""
    rollout = _chunked(tmp_path, [(0, 0), (1, 1), (2, 2), (3, 1), (4, 2), (5, 0)])
    assert rollout.inputs["observation.state"][:, 0].tolist() == [0.0, 2.0, 5.0]
    assert (rollout.tokens[1] >= 0).all(axis=1).tolist() == [False, True, True]


def test_a_step_whose_observation_is_missing_is_not_learned_from(tmp_path):
    episode, network, judge = _recorded_chunks(tmp_path, [(0, 0), (1, 0), (2, 1), (3, 2), (4, 0)])
    kept = [0, 2, 3, 4, 5]  # The recorder lost the observation that the second chunk was inferred from.
    rows = {
        field.name: getattr(episode, field.name)[kept]
        for field in dataclasses.fields(episode)
        if isinstance(getattr(episode, field.name), np.ndarray)
    }
    frames = episode.images._cameras["top"]
    images = LazyImages({"top": dataclasses.replace(frames, index=frames.index[kept])}, "here")
    lossy = dataclasses.replace(episode, images=images, **rows)
    rollout = rollout_of(lossy, network, judge, 0)
    assert (rollout.tokens >= 0).any(axis=(1, 2)).tolist() == [True, False, False, True]
    assert rollout.inputs["observation.state"][[0, 3], 0].tolist() == [0.0, 4.0]


def _chunked(tmp_path, steps):
    return rollout_of(*_recorded_chunks(tmp_path, steps), 0)


def _recorded_chunks(tmp_path, steps):
    """Records an episode of (row, chunk index) on a robot with chunks of 3, whose state is the row."""
    robot = dots.embodiment(chunk=3)
    policy = write_random_bundle(robot, tmp_path, backbone="state", settings=practised.SMALL)
    length = len(steps) + 1
    writer = EpisodeWriter(tmp_path, "chunks", robot)
    for row in range(length):
        _write_dots_observation(writer, row, float(row))
        if row < length - 1:
            index = steps[row][1]
            _write_step(writer, row, policy.id, "chunks", np.array([row % 5, 1]), -float(row), index)
    episode = read_episode(writer.close(_summary("chunks", length - 1, policy.id)))
    return episode, load_network(policy), Judge(policy)


def _record_dots(directory, bundle_id, arrays, tokens, log_probs):
    writer = EpisodeWriter(directory, arrays.id, dots.embodiment())
    for row in range(len(arrays)):
        _write_dots_observation(writer, row, float(arrays.state[row, 0]), arrays.images["top"][row])
        if row < len(arrays) - 1:
            _write_step(writer, row, bundle_id, arrays.id, tokens[row], log_probs[row])
    summary = _summary(arrays.id, len(arrays) - 1, bundle_id, instruction=arrays.instruction)
    return writer.close(summary)


def _write_dots_observation(writer, row, x, image=None):
    stamp = (row + 1) * dots.PERIOD_NS
    writer.write_image("top", stamp, dots.picture(int(x) % dots.SIZE) if image is None else image)
    joints = message_class("sensor_msgs/msg/JointState")
    message = joints(make_header(stamp), ["x"], np.array([x]), np.zeros(0), np.zeros(0))
    writer.write("joint_states", "sensor_msgs/msg/JointState", stamp, serialize(message))


def _write_step(writer, row, bundle_id, episode_id, tokens, log_prob, index=0):
    stamp = (row + 1) * dots.PERIOD_NS
    message = message_class("efm_msgs/msg/PolicyStep")(
        header=make_header(stamp - index * dots.PERIOD_NS), episode_id=episode_id, bundle_id=bundle_id,
        step=row, chunk_index=index, actor=int(Actor.POLICY), gate=0, tokens=np.asarray(tokens, np.uint16),
        log_prob=float(log_prob), temperature=1.0, action=np.zeros(2), command=np.zeros(2), latency=math.nan,
    )  # fmt: skip
    writer.write("policy_step", "efm_msgs/msg/PolicyStep", stamp, serialize(message))


def _summary(episode_id, steps, bundle_id, **changes):
    known = {
        "episode_id": episode_id,
        "start_ns": dots.PERIOD_NS,
        "stamp_ns": (steps + 1) * dots.PERIOD_NS,
        "mode": Mode.PRACTICE,
        "outcome": Outcome.FAILURE,
        "end_reason": EndReason.MAX_STEPS,
        "actor": Actor.POLICY,
        "steps": steps,
        "policy_bundle_id": bundle_id,
    }
    return Summary(**{**known, **changes})
