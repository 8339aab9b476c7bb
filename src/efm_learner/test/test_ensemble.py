"""Several rewards as one: the most pessimistic head of all counts, on a detector chosen anew."""

from __future__ import annotations

import json

import dots
import numpy as np
import pytest

from efm_core.bundle import load_bundle
from efm_core.episode import read_episode
from efm_core.errors import BadRequest, BundleInvalid, EmbodimentMismatch, EpisodeInvalid
from efm_learner import ensemble_command
from efm_learner.ensemble import ensemble
from efm_learner.export import load_network, recalibrated
from efm_learner.labelling import Judge
from efm_learner.network import RewardEnsemble
from efm_learner.random_bundle import write_random_bundle
from efm_learner.sft_config import SftConfig

TRAINING = {"stage": "sft", **SftConfig().lasting(), "labelling": {"rest_steps": dots.REST}}


def reward(folder, seed, trained_on=(), embodiment=None, training=TRAINING, **options):
    """A reward as `efm sft` leaves it, but for its weights."""
    made = write_random_bundle(embodiment or dots.embodiment(), folder, "reward", seed, **options)
    return recalibrated(made, folder, training=training, data_ids=list(trained_on), combine="max")


@pytest.fixture
def demonstrations(tmp_path):
    for episode in dots.episodes(8, 4):
        dots.record(tmp_path / "demonstrations", episode)
    return tmp_path / "demonstrations"


def test_the_most_pessimistic_head_of_all_rewards_counts(demonstrations, tmp_path, capsys):
    ids = sorted(path.name for path in demonstrations.iterdir())
    first = reward(tmp_path, 1, ids[:3], heads=3)
    second = reward(tmp_path, 2, ids[2:5], heads=2, backbone="small")
    code = ensemble_command.main(
        ["--rewards", str(first.path), str(second.path), "--episodes", str(demonstrations),
         "--out", str(tmp_path / "out")]
    )  # fmt: skip
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "on 3 successful and 4 failed episodes" in told.out
    named = json.loads((tmp_path / "out/result.json").read_text())
    made = load_bundle(tmp_path / "out/bundles" / named["reward"])
    assert f"reward  {made.path}" in told.out
    assert made.manifest.heads == 5
    assert made.manifest.data_ids == ids[:5]
    assert made.manifest.training["members"] == [first.id, second.id]
    assert made.manifest.success_threshold is not None
    assert set(made.manifest.inputs) == {"observation.images.top", "observation.state", "instruction"}
    episode = read_episode(demonstrations / ids[0])
    each = [Judge(bundle).steps_to_go(episode) for bundle in (first, second)]
    assert Judge(made).steps_to_go(episode) == pytest.approx(np.maximum(*each), abs=1e-3)


def test_episodes_that_a_reward_was_trained_on_choose_no_detector(demonstrations, tmp_path):
    ids = [path.name for path in demonstrations.iterdir()]
    rewards = [reward(tmp_path, 1, ids[::2]), reward(tmp_path, 2, ids[1::2])]
    with pytest.raises(EpisodeInvalid, match="no reward was trained on, found 0 of 12"):
        ensemble(rewards, demonstrations, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_judge_together_is_refused(demonstrations, tmp_path):
    first, out = reward(tmp_path, 1), tmp_path / "out"
    with pytest.raises(BadRequest, match="2 or more different rewards"):
        ensemble([first, first], demonstrations, out)
    with pytest.raises(BadRequest, match="was not made by efm sft or efm refit"):
        ensemble([reward(tmp_path, 2, training={}), first], demonstrations, out)
    foreign = reward(tmp_path, 2, embodiment=dots.embodiment(frames=1))
    with pytest.raises(EmbodimentMismatch):
        ensemble([first, foreign], demonstrations, out)
    words = [{"instruction": {"kind": "hashed_words", "length": 4, "buckets": size}} for size in (16, 32)]
    networks = [load_network(reward(tmp_path, 2, settings=settings)) for settings in words]
    with pytest.raises(BadRequest, match="network 2 reads instructions as"):
        RewardEnsemble(networks)


def test_an_ensemble_is_not_trained_further(demonstrations, tmp_path):
    made, _ = ensemble([reward(tmp_path, 1), reward(tmp_path, 2)], demonstrations, tmp_path / "out")
    with pytest.raises(BundleInvalid, match="cannot be trained; take its parent"):
        load_network(made)
