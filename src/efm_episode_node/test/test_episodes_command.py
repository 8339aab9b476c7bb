"""`efm episodes` on good and on damaged recordings: every damaged one is named, with what is wrong."""

import errno
import shutil

import numpy as np
import pytest

from efm_core.embodiment import load_embodiment
from efm_core.errors import BadRequest, EpisodeInvalid, EpisodeTruncated, SpoolFull
from efm_core.summary import Actor, EndReason, Mode, Outcome, Summary
from efm_episode_node import episodes_command
from efm_episode_node.lerobot.episode_maker import make_episode

POINTMASS = load_embodiment("pointmass")
STEPS = 5


def record(folder, name, instruction="reach the goal"):
    summary = Summary(
        name,
        1_000_000_000,
        1_000_000_000 + STEPS * round(1e9 / POINTMASS.control_rate_hz),
        instruction=instruction,
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
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match="found a file"):
        episodes_command.main(["list", str(tmp_path / "file")])


def test_an_instruction_is_shown_as_it_was_given(tmp_path, capsys):
    """Brackets were taken for colours, and dollars for formulas."""
    words = "press [red] or [/red] for $x^$"
    record(tmp_path / "robot_1", "odd", words)
    assert episodes_command.main(["list", str(tmp_path)]) == 0
    assert words in capsys.readouterr().out
    assert episodes_command.main(["show", str(tmp_path / "robot_1/odd")]) == 0
    assert words in capsys.readouterr().out
    out = tmp_path / "odd.png"
    assert episodes_command.main(["plot", str(tmp_path / "robot_1/odd"), "--out", str(out)]) == 0


@pytest.mark.parametrize(("name", "found"), [("one.foo", "the ending '.foo'"), ("", "a folder")])
def test_a_picture_that_cannot_be_drawn_is_refused(spool, tmp_path, name, found):
    with pytest.raises(BadRequest, match=found):
        episodes_command.main(["plot", str(spool / "robot_1/good"), "--out", str(tmp_path / name)])


def test_a_picture_that_finds_no_room_on_the_disk_leaves_the_one_before(spool, tmp_path, monkeypatch):
    def full(path, data):
        path.write_bytes(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "one.png").write_bytes(b"before")
    monkeypatch.setattr("efm_core.files.write_synced", full)
    with pytest.raises(SpoolFull, match="one.png cannot be written"):
        episodes_command.main(["plot", str(spool / "robot_1/good"), "--out", str(tmp_path / "one.png")])
    assert {path.name for path in tmp_path.iterdir()} == {"robot_1", "one.png"}
    assert (tmp_path / "one.png").read_bytes() == b"before"


def test_an_episode_of_a_folder_that_is_named_twice_is_exported_once(spool, tmp_path, capsys):
    folders = [str(spool), str(spool / "robot_1")]
    assert episodes_command.main(["export", "--to", "lerobot", *folders, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("1 episodes exported")
