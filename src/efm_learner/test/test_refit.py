"""Refitting: what the verifier confirms becomes success, what fooled the detector becomes far."""

from __future__ import annotations

import json
from dataclasses import replace

import dots
import numpy as np
import pytest
import yaml

from efm_core.bundle import load_bundle
from efm_core.episode import Actor, EndReason, Mode, Outcome, read_episode
from efm_core.errors import BadRequest
from efm_learner import refit_command, sft_command
from efm_learner.export import recalibrated
from efm_learner.labelling import Judge
from efm_learner.random_bundle import write_random_bundle
from efm_learner.refit import _relabelled, refit
from efm_learner.samples import EpisodeArrays, Labelling, make_table

FAKE = 8.0  # Where the dot stands still in the middle, and the detector was fooled.
GOAL = 1.0


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory):
    """Demonstrations, and a reward made of them."""
    folder = tmp_path_factory.mktemp("stage_one")
    for episode in dots.episodes(16, 4):
        dots.record(folder / "demonstrations", episode)
    embodiment = folder / "dots.yaml"
    embodiment.write_text(yaml.safe_dump(dots.embodiment().to_dict()))
    code = sft_command.main(
        ["--episodes", str(folder / "demonstrations"), "--embodiment", str(embodiment),
         "--out", str(folder / "sft"), "--backbone", "state", "--steps", "200",
         "--batch-size", "64", "--set", "warmup_steps=5",
         "--learning-rate", "0.005", "--rest-steps", str(dots.REST), "--validation-share", "0.25"]
    )  # fmt: skip
    assert code == 0
    result = json.loads((folder / "sft" / "result.json").read_text())
    return folder, load_bundle(folder / "sft" / "bundles" / result["reward"])


def practise(run, number, places, reward, detected=True, **changes):
    """Records a practice episode that went through these places under 'go to the left side'."""
    length = len(places)
    arrays = EpisodeArrays(
        id=f"practice_{number:03d}",
        instruction=dots.INSTRUCTIONS[0],
        images={"top": np.stack([dots.picture(int(place)) for place in places])},
        state=np.array(places, np.float32)[:, None],
        actions=np.concatenate([np.zeros((length - 1, 2)), np.full((1, 2), np.nan)]).astype(np.float32),
        imitate=np.zeros(length, bool),
        success=False,
    )
    known = {
        "mode": Mode.PRACTICE,
        "outcome": Outcome.SUCCESS if detected else Outcome.FAILURE,
        "end_reason": EndReason.SUCCESS_DETECTED if detected else EndReason.MAX_STEPS,
        "reward_bundle_id": reward.id,
    }
    return dots.record(run / "episodes", arrays, Actor.POLICY, **{**known, **changes})


def record_run(run, reward):
    """Twelve episodes that fooled the detector, eight that arrived, three that do not count."""
    for number in range(12):
        practise(run, number, [6.0 + number % 4, 8.0, FAKE, FAKE, FAKE], reward)
    for number in range(12, 20):
        practise(run, number, [7.0, 5.0, 3.0, GOAL, GOAL], reward)
    practise(run, 20, [7.0, 5.0], reward, mode=Mode.EVALUATE)
    practise(run, 21, [7.0, 5.0], reward, outcome=Outcome.DISCARDED)
    (practise(run, 22, [7.0, 5.0], reward) / "metadata.yaml").unlink()


def verifier_for(reward, folder):
    """The same model with another threshold: it sees success at the goal and not in the middle."""
    return recalibrated(reward, folder, success_threshold=2.0, success_hold=2)


def test_refitting_teaches_what_fooled_the_detector_and_keeps_what_was_confirmed(stage_one, tmp_path, capsys):
    folder, trained = stage_one
    reward = recalibrated(trained, tmp_path / "bundles", success_threshold=6.0, success_hold=2)
    verifier = verifier_for(trained, tmp_path / "bundles")
    record_run(tmp_path / "run", reward)
    fooled = read_episode(tmp_path / "run/episodes/practice_000")
    arrived = read_episode(tmp_path / "run/episodes/practice_012")
    before = Judge(reward)
    assert not Judge(verifier).agrees(fooled, 2.0)
    assert Judge(verifier).agrees(arrived, 2.0)

    arguments = ["--run", "run", "--episodes", "demonstrations", "--out", "out"]
    places = {"run": tmp_path / "run", "demonstrations": folder / "demonstrations", "out": tmp_path / "out"}
    code = refit_command.main(
        [*(str(places.get(item, item)) for item in arguments),
         "--reward", str(reward.path), "--verifier", str(verifier.path)]
    )  # fmt: skip
    assert code == 0
    told = capsys.readouterr().out
    assert "practice episodes: 12 censored, 8 successful, 3 left out" in told
    assert "1.00 before, 0.00 after" in told
    assert "train a new verifier for the next run" in told
    named = json.loads((tmp_path / "out/result.json").read_text())
    bundle = load_bundle(tmp_path / "out/bundles" / named["reward"])
    assert (bundle.manifest.kind, bundle.manifest.parent_id) == ("reward", reward.id)
    assert bundle.manifest.training["stage"] == "refit"
    assert bundle.manifest.training["verifier"] == verifier.id
    assert bundle.manifest.success_threshold is not None
    after = Judge(bundle)
    assert after.steps_to_go(fooled)[-1] > before.steps_to_go(fooled)[-1] + 3
    assert after.steps_to_go(arrived)[-1] < 1.5


def test_targets_of_confirmed_episodes_end_where_the_detector_began_to_hold(stage_one, tmp_path):
    demonstration, own = dots.episode(0), replace(dots.episode(2), id="own")
    table = make_table([demonstration, own], dots.embodiment(), Labelling(rest_steps=dots.REST))
    targets = _relabelled(table, {"own"}, hold=2).steps_to_go
    length = len(demonstration)
    assert targets[:length].tolist() == table.steps_to_go[:length].tolist()
    assert targets[-4:].tolist() == [2.0, 1.0, 0.0, 0.0]


def test_refitting_says_what_is_missing(stage_one, tmp_path):
    folder, reward = stage_one
    verifier = verifier_for(reward, tmp_path)
    demonstrations, out = folder / "demonstrations", tmp_path / "out"
    with pytest.raises(BadRequest, match="expected the folder of a practice run"):
        refit(tmp_path / "empty", reward, verifier, demonstrations, out)
    with pytest.raises(BadRequest, match="the verifier is the reward itself"):
        refit(tmp_path / "run", reward, reward, demonstrations, out)
    foreign = write_random_bundle(dots.embodiment(), tmp_path, "reward")
    with pytest.raises(BadRequest, match="was not made by efm sft or efm refit"):
        refit(tmp_path / "run", foreign, verifier, demonstrations, out)
