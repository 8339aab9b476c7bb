"""`efm episodes` on good and on damaged recordings: every damaged one is named, with what is wrong."""

import shutil

import numpy as np
import pytest

from efm_core.embodiment import load_embodiment
from efm_core.errors import BadRequest, EpisodeInvalid, EpisodeTruncated
from efm_core.summary import Actor, EndReason, Mode, Outcome, Summary
from efm_episode_node import episodes_command
from efm_episode_node.lerobot.episode_maker import make_episode

POINTMASS = load_embodiment("pointmass")
STEPS = 5


def record(folder, name):
    summary = Summary(
        name,
        1_000_000_000,
        1_000_000_000 + STEPS * round(1e9 / POINTMASS.control_rate_hz),
        instruction="reach the goal",
        mode=Mode.COLLECT,
        outcome=Outcome.SUCCESS,
        end_reason=EndReason.ACTOR_DONE,
        actor=Actor.EXPERT,
        steps=STEPS,
    )
    state = np.zeros((STEPS + 1, POINTMASS.state_size), np.float32)
    actions = np.zeros((STEPS, POINTMASS.action_size), np.float32)
    return make_episode(folder, POINTMASS, summary, state, actions, np.full(STEPS, int(Actor.EXPERT)), {})


@pytest.fixture
def spool(tmp_path):
    """A good episode, one that was cut off, one without its metadata, and a recording that goes on."""
    record(tmp_path / "robot_1", "good")
    cut = record(tmp_path / "robot_1", "cut")
    file = cut / "cut.mcap"
    file.write_bytes(file.read_bytes()[:-100])
    (record(tmp_path / "robot_1", "bare") / "metadata.yaml").unlink()
    shutil.copytree(tmp_path / "robot_1/good", tmp_path / "robot_1/.later.partial/later")
    return tmp_path


def test_a_list_shows_the_damaged_ones_with_their_whole_names(spool, capsys):
    assert episodes_command.main(["list", str(spool)]) == 1
    said = capsys.readouterr().out
    assert "3 episodes, 5 steps: 1 success, 2 unreadable" in said
    assert "cut.mcap: ends after" in said and "expected a file metadata.yaml, found none" in said
    assert "later" not in said


def test_a_check_fails_when_any_is_damaged(spool, capsys):
    assert episodes_command.main(["check", str(spool)]) == 1
    assert "3 episodes checked, 2 with something to say" in capsys.readouterr().out
    assert episodes_command.main(["check", str(spool / "robot_1/good")]) == 0


@pytest.mark.parametrize("verb", ["show", "plot"])
def test_show_and_plot_say_what_is_wrong(spool, verb, tmp_path, capsys):
    out = ["--out", str(tmp_path / "one.png")] if verb == "plot" else []
    assert episodes_command.main([verb, str(spool / "robot_1/good"), *out]) == 0
    assert capsys.readouterr().out
    with pytest.raises(EpisodeTruncated, match="cut off"):
        episodes_command.main([verb, str(spool / "robot_1/cut"), *out])
    with pytest.raises(EpisodeInvalid, match="metadata.yaml"):
        episodes_command.main([verb, str(spool / "robot_1/bare"), *out])


def test_a_folder_without_episodes_is_told(tmp_path):
    with pytest.raises(BadRequest, match="no episode in it"):
        episodes_command.main(["list", str(tmp_path)])
    with pytest.raises(BadRequest, match="no such folder"):
        episodes_command.main(["check", str(tmp_path / "nowhere")])
