"""Recordings that were cut off, damaged or contradict themselves: never taken for whole, always told why."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import write_steps

from efm_core.episode import (
    Actor,
    EpisodeWriter,
    Mode,
    check_episode,
    list_episodes,
    read_episode,
    read_summary,
)
from efm_core.errors import (
    EpisodeInvalid,
    EpisodeTruncated,
)
from efm_core.spool import Spool


def test_a_recorder_killed_at_any_moment_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    program = (
        "import sys, recorded\n"
        "from pathlib import Path\n"
        "for number in range(10_000):\n"
        "    recorded.record(Path(sys.argv[1]), f'e{number}', steps=3)\n"
        "    print(number, flush=True)\n"
    )
    rng = random.Random(1)
    whole = 0
    for attempt in range(4):
        spool = tmp_path / str(attempt)
        command = [sys.executable, "-c", program, str(spool)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.2))
            process.send_signal(signal.SIGKILL)
        with Spool(spool, 1 << 40, 0) as owner:
            pending = owner.pending()
            assert len(owner.broken) <= 1
        for folder in pending:
            assert check_episode(folder) == []
        assert pending == list_episodes(spool)
        whole += len(pending)
    assert whole >= 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded.record(tmp_path_factory.mktemp("whole"), steps=4)


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "ep")


def test_a_file_cut_off_anywhere_is_truncated(whole: Path, tmp_path: Path) -> None:
    data = (whole / "ep.mcap").read_bytes()
    folder = shutil.copytree(whole, tmp_path / "ep")
    for size in {*range(0, len(data), 97), *range(len(data) - 60, len(data))}:
        (folder / "ep.mcap").write_bytes(data[:size])
        with pytest.raises(EpisodeTruncated, match=r"cut off|found none"):
            read_episode(folder)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_is_found_or_does_no_harm(whole: Path, copied: Path, data: st.DataObject) -> None:
    content = bytearray((whole / "ep.mcap").read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    (copied / "ep.mcap").write_bytes(content)
    try:
        episode = read_episode(copied)
        images = episode.images["top"]
    except (EpisodeInvalid, EpisodeTruncated):
        return
    original = read_episode(whole)
    np.testing.assert_array_equal(images, original.images["top"])
    np.testing.assert_array_equal(episode.actions, original.actions)
    np.testing.assert_array_equal(episode.tokens, original.tokens)
    np.testing.assert_array_equal(episode.state, original.state)


def test_a_folder_that_is_no_episode_says_what_is_missing(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(EpisodeInvalid, match="found nothing"):
        read_episode(tmp_path / "none")
    (copied / "metadata.yaml").rename(copied / "other.yaml")
    with pytest.raises(EpisodeInvalid, match=r"metadata\.yaml"):
        read_episode(copied)
    (copied / "other.yaml").rename(copied / "metadata.yaml")
    with pytest.raises(EpisodeInvalid, match="cannot be renamed"):
        (copied / "ep.mcap").rename(copied / "new.mcap")
        read_episode(copied.rename(tmp_path / "new"))


def test_other_bytes_are_no_mcap_file(copied: Path) -> None:
    (copied / "ep.mcap").write_bytes(b"x" * 5000)
    for read in (read_episode, read_summary):
        with pytest.raises(EpisodeInvalid, match="expected an MCAP file"):
            read(copied)


def test_a_metadata_file_that_contradicts_the_recording_is_a_problem(copied: Path) -> None:
    path = copied / "metadata.yaml"
    path.write_text(path.read_text().replace("message_count: 5", "message_count: 6"))
    assert len(read_episode(copied)) == 5
    assert any("the file holds" in problem for problem in check_episode(copied))
    path.write_text("]")
    assert any("rosbags cannot read it" in problem for problem in check_episode(copied))


Change = Callable[[EpisodeWriter], None]


def record_with(directory: Path, change: Change, steps: int = 4, **summary: Any) -> Path:
    """Records an episode whose observations are as usual and whose other messages `change` writes."""
    writer = EpisodeWriter(directory, "ep", recorded.embodiment())
    for step in range(steps + 1):
        recorded.write_observation(writer, step)
    change(writer)
    return writer.close(recorded.summary("ep", steps, **summary))


def test_an_episode_without_any_command_is_refused(tmp_path: Path) -> None:
    folder = record_with(tmp_path, lambda writer: None)
    with pytest.raises(EpisodeInvalid, match="control steps on 'policy_step' or commands on 'commands'"):
        read_episode(folder)
    assert "policy_step" in check_episode(folder)[0]


@pytest.mark.parametrize("missing", ["camera", "state"])
def test_an_episode_without_an_input_is_refused(tmp_path: Path, missing: str) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    write_steps(writer)
    if missing == "camera":
        writer.write(*recorded.STATE, recorded.stamp(0), recorded.joint_state(recorded.stamp(0), 0, 0))
        expected = "camera 'top' on topic 'camera/top/image_raw/compressed', found no message; there are"
    else:
        writer.write_image("top", recorded.stamp(0), recorded.picture(0))
        expected = "the state on topic 'joint_states'"
    with pytest.raises(EpisodeInvalid, match=expected):
        read_episode(writer.close(recorded.summary("ep", 4)))


def test_inputs_from_before_the_start_do_not_count(tmp_path: Path) -> None:
    folder = record_with(tmp_path, write_steps, start_ns=recorded.stamp(5), stamp_ns=recorded.stamp(9))
    with pytest.raises(EpisodeInvalid, match="between the episode's start"):
        read_episode(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda writer: write_steps(writer, [0, 2, 1, 3]), "expected stamps that rise"),
        (
            lambda writer: write_steps(writer, command=np.zeros(3)),
            "expected 2 numbers a step, found 3 in the command",
        ),
        (
            lambda writer: write_steps(writer, tokens=np.zeros(1, np.uint16)),
            "and 1 tokens in step 0",
        ),
        (
            lambda writer: write_steps(writer, tokens=np.array([21, 0], np.uint16)),
            "within the embodiment's bins",
        ),
        (
            lambda writer: write_steps(writer, command=np.array([np.nan, 0])),
            "expected finite commands",
        ),
        (
            lambda writer: write_steps(writer, [0.5, 1.5, 2, 3]),
            "lacks the observations of 2 of 4 control steps",
        ),
        (
            lambda writer: writer.write(*recorded.STEP, 0, b"\x00\x01\x00\x00garbage"),
            "expected a message of type",
        ),
        (
            lambda writer: writer.write(
                "policy_step", recorded.ARRAY, recorded.stamp(0), recorded.array([0, 0])
            ),
            "of type efm_msgs/msg/PolicyStep, found std_msgs",
        ),
    ],
)
def test_control_steps_that_contradict_the_episode_are_refused(
    tmp_path: Path, change: Change, words: str
) -> None:
    with pytest.raises(EpisodeInvalid, match=words):
        read_episode(record_with(tmp_path, change))


def test_a_clock_that_was_set_back_is_told(tmp_path: Path) -> None:
    def change(writer: EpisodeWriter) -> None:
        write_steps(writer)
        recorded.write_observation(writer, 2)

    with pytest.raises(EpisodeInvalid, match="the clock was set back"):
        read_episode(record_with(tmp_path, change))


def test_a_camera_that_stopped_is_told(tmp_path: Path) -> None:
    embodiment = recorded.embodiment(cameras=[recorded.camera("top"), recorded.camera("side")])
    writer = EpisodeWriter(tmp_path, "ep", embodiment)
    for step in range(9):
        for name in ("top", "side") if step < 4 else ("top",):
            writer.write_image(name, recorded.stamp(step), recorded.picture(step))
        writer.write(*recorded.STATE, recorded.stamp(step), recorded.joint_state(recorded.stamp(step), 0, 0))
    write_steps(writer, range(8))
    with pytest.raises(EpisodeInvalid, match="camera 'side' at most 0.2 s .* found 0.500 s: it stopped"):
        read_episode(writer.close(recorded.summary("ep", 8)))


def test_a_state_that_is_not_finite_or_lacks_a_joint_is_refused(tmp_path: Path) -> None:
    for number, wrong in enumerate((recorded.joint_state(recorded.stamp(0), np.inf, 0), None)):
        embodiment = recorded.embodiment()
        if wrong is None:
            plain = embodiment.to_dict()
            plain["state"]["entries"][0]["name"] = "z"
            embodiment, wrong = (
                recorded.embodiment(state=plain["state"]),
                recorded.joint_state(recorded.stamp(0), 0, 0),
            )
        writer = EpisodeWriter(tmp_path / str(number), "ep", embodiment)
        writer.write_image("top", recorded.stamp(0), recorded.picture(0))
        writer.write(*recorded.STATE, recorded.stamp(0), wrong)
        with pytest.raises(EpisodeInvalid, match=("expected finite states", "no joint 'z'")[number]):
            read_episode(writer.close(recorded.summary("ep", 0)))


def test_an_image_that_cannot_be_decoded_is_found_when_it_is_asked_for(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    recorded.write_observation(writer, 0)
    writer.write_image("top", recorded.stamp(1), b"no image", image_format="jpeg")
    writer.write(*recorded.STATE, recorded.stamp(1), recorded.joint_state(recorded.stamp(1), 0, 0))
    write_steps(writer, [0])
    folder = writer.close(recorded.summary("ep", 1))
    episode = read_episode(folder)
    with pytest.raises(EpisodeInvalid, match="image 1 of camera 'top'"):
        episode.images["top"]
    assert "image 1 of camera 'top'" in check_episode(folder)[0]


def test_ground_truth_in_practice_is_a_problem_and_is_never_read(tmp_path: Path) -> None:
    def change(writer: EpisodeWriter) -> None:
        write_steps(writer)
        writer.write("ground_truth", "efm_msgs/msg/GroundTruth", recorded.stamp(0), b"not even a message")

    folder = record_with(tmp_path, change)
    assert len(read_episode(folder)) == 5
    assert any("only evaluation may record it" in problem for problem in check_episode(folder))
    evaluated = record_with(tmp_path / "evaluated", change, mode=Mode.EVALUATE)
    assert check_episode(evaluated) == []


def _patched(folder: Path, old: bytes, new: bytes) -> Path:
    """Changes a text in the metadata of the bag file, which has no checksum of its own."""
    path = folder / "ep.mcap"
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return folder


def test_an_embodiment_that_was_changed_does_not_fit_the_summary(copied: Path) -> None:
    with pytest.raises(EpisodeInvalid, match="the summary names embodiment"):
        read_episode(_patched(copied, b'"control_rate_hz": 10.0', b'"control_rate_hz": 20.0'))


def test_a_recording_of_another_format_is_refused(copied: Path) -> None:
    with pytest.raises(EpisodeInvalid, match=r"expected custom data efm\.format = 1, found '2'"):
        read_episode(_patched(copied, b"efm.format: '1'", b"efm.format: '2'"))


def test_a_bag_that_was_not_made_by_efm_is_refused(copied: Path) -> None:
    with pytest.raises(EpisodeInvalid, match="was not recorded by EFM"):
        read_episode(_patched(copied, b"custom_data:", b"other__data:"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"episode_id": "other"}, "expected episode_id ep, found 'other'"),
        ({"embodiment_digest": "0" * 16}, "expected embodiment_digest"),
        ({"stamp_ns": 5}, "expected 0 <= start <= header.stamp"),
    ],
)
def test_a_summary_that_contradicts_the_episode_is_refused_and_can_be_corrected(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    recorded.write_observation(writer, 0)
    good = recorded.summary("ep", 0)
    with pytest.raises(EpisodeInvalid, match=words):
        writer.close(dataclasses.replace(good, **changes))
    assert len(read_episode(writer.close(good))) == 1
    with pytest.raises(EpisodeInvalid, match="closed"):
        writer.close(good)


def test_an_unknown_field_or_constant_of_a_summary_is_refused(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    with pytest.raises(EpisodeInvalid, match="did you mean 'outcome'"):
        writer.close({"episode_id": "ep", "start_ns": 0, "stamp_ns": 0, "outcom": 1})
    with pytest.raises(EpisodeInvalid, match=r"summary\.mode: expected 0 UNSET.*, found 9"):
        writer.close({"episode_id": "ep", "start_ns": 0, "stamp_ns": 0, "mode": 9})
    with pytest.raises(EpisodeInvalid, match="expected the field 'start_ns'"):
        writer.close({"episode_id": "ep"})


def test_the_embodiment_lies_in_metadata_too(whole: Path) -> None:
    import yaml

    plain = yaml.safe_load((whole / "metadata.yaml").read_text())["rosbag2_bagfile_information"][
        "custom_data"
    ]
    assert plain["efm.format"] == "1"
    assert json.loads(plain["efm.embodiment"]) == recorded.embodiment().to_dict()


def test_an_actor_that_holds_still_is_a_row_only_where_nobody_else_answered(tmp_path: Path) -> None:
    def change(writer: EpisodeWriter) -> None:
        for step, actor in (
            (0, Actor.HOLD),
            (1, Actor.POLICY),
            (1, Actor.HOLD),
            (1.5, Actor.HOLD),
            (2, Actor.HOLD),
        ):
            stamp = recorded.stamp(step)
            writer.write(*recorded.STEP, stamp, recorded.policy_step(stamp, 0, actor=int(actor)))

    episode = read_episode(record_with(tmp_path, change))
    assert episode.actors.tolist() == [Actor.HOLD, Actor.POLICY, Actor.HOLD, Actor.UNSET]
