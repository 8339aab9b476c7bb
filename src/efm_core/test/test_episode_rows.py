"""Control steps of episodes: what an actor saw and what the robot was sent share a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded

from efm_core.embodiment import Embodiment
from efm_core.episode import Actor, EpisodeWriter, check_episode, history_stack, read_episode
from efm_core.errors import EpisodeInvalid
from efm_core.image import prepare_image
from efm_core.observation import ObservationAssembler
from efm_core.safety import Gate
from efm_core.schemas import make_header, message_class, serialize


def write_step(writer: EpisodeWriter, stamp_ns: int, step: int, **changes: Any) -> None:
    writer.write(*recorded.STEP, stamp_ns, recorded.policy_step(stamp_ns, step, **changes))


def test_an_episode_read_back_is_what_the_assembler_gave_live(tmp_path: Path) -> None:
    """Two cameras and a state at rates of their own, none of them the control rate."""
    embodiment = recorded.embodiment(
        cameras=[recorded.camera("top"), {**recorded.camera("side", 16, 12), "frames": 3}]
    )
    rng = np.random.default_rng(3)
    inputs = [("top", time) for time in np.arange(0, 3, 0.03)]
    inputs += [("side", time + 0.007) for time in np.arange(0, 3, 0.05)]
    inputs += [("state", time + 0.002) for time in np.arange(0, 3, 0.01)]
    live = ObservationAssembler(embodiment)
    writer = EpisodeWriter(tmp_path, "ep", embodiment)
    live.start(recorded.START_NS)
    seen = []
    due = 0.1
    for what, time in sorted(inputs, key=lambda item: item[1]):
        stamp_ns = recorded.START_NS + round(time * 1e9)
        if what == "state":
            writer.write(
                *recorded.STATE, stamp_ns, recorded.joint_state(stamp_ns, np.sin(time), np.cos(time))
            )
            live.add_state(stamp_ns, [np.sin(time), np.cos(time)])
        else:
            image = rng.integers(0, 256, (24, 32, 3), np.uint8)
            writer.write_image(what, stamp_ns, image)
            live.add_image(what, stamp_ns, image)
        if time >= due and (observation := live.ready(stamp_ns)) is not None:
            due += 0.1
            seen.append(observation)
            write_step(writer, observation.stamp_ns, len(seen) - 1)
    end_ns = seen[-1].stamp_ns
    episode = read_episode(writer.close(recorded.summary("ep", len(seen) - 1, stamp_ns=end_ns)))
    assert len(episode) == len(seen) > 20
    assert episode.state is not None
    for row, observation in enumerate(seen):
        assert episode.stamps[row] == observation.stamp_ns
        np.testing.assert_array_equal(episode.state[row], observation.state)
        for camera, images in observation.images.items():
            frames = history_stack(len(episode), len(images))[row]
            np.testing.assert_array_equal(episode.images[camera][frames], images)


def test_images_are_brought_to_the_size_of_the_model_as_live(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment(cameras=[recorded.camera("top", 16, 8)]))
    large = recorded.picture(1, 64, 48)
    writer.write_image("top", recorded.stamp(0), large)
    writer.write(*recorded.STATE, recorded.stamp(0), recorded.joint_state(recorded.stamp(0), 0, 0))
    episode = read_episode(writer.close(recorded.summary("ep", 0)))
    np.testing.assert_array_equal(episode.images["top"][0], prepare_image(large, 8, 16))


def test_a_jpeg_is_read_back_nearly_as_it_was(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    smooth = np.full((24, 32, 3), (200, 100, 50), np.uint8)
    writer.write_image("top", recorded.stamp(0), smooth, image_format="jpeg", quality=90)
    writer.write(*recorded.STATE, recorded.stamp(0), recorded.joint_state(recorded.stamp(0), 0, 0))
    episode = read_episode(writer.close(recorded.summary("ep", 0)))
    assert np.abs(episode.images["top"][0].astype(int) - smooth).max() < 6


def observations(directory: Path, count: int, embodiment: Embodiment | None = None) -> EpisodeWriter:
    writer = EpisodeWriter(directory, "ep", embodiment or recorded.embodiment())
    for step in range(count):
        recorded.write_observation(writer, step)
    return writer


def test_what_came_after_the_last_observation_is_dropped(tmp_path: Path) -> None:
    writer = observations(tmp_path, 9)
    for step in range(9):
        write_step(writer, recorded.stamp(step), step)
    episode = read_episode(writer.close(recorded.summary("ep", 5)))
    assert episode.stamps.tolist() == [recorded.stamp(step) for step in range(6)]
    assert np.isfinite(episode.actions[:5]).all() and np.isnan(episode.actions[5]).all()


def test_the_last_row_is_a_real_observation_also_when_the_end_is_later(tmp_path: Path) -> None:
    writer = observations(tmp_path, 5)
    for step in range(5):
        write_step(writer, recorded.stamp(step), step)
    folder = writer.close(recorded.summary("ep", 4, stamp_ns=recorded.stamp(4.6)))
    assert read_episode(folder).stamps.tolist() == [recorded.stamp(step) for step in range(5)]


def test_steps_of_another_episode_and_of_a_dry_run_do_not_count(tmp_path: Path) -> None:
    writer = observations(tmp_path, 4)
    write_step(writer, recorded.stamp(0), 7, episode_id="other")
    write_step(writer, recorded.stamp(-1), 0)
    for step in range(3):
        write_step(writer, recorded.stamp(step), step, gate=int(Gate.DRY_RUN), command=np.array([5.0, 5.0]))
        write_step(writer, recorded.stamp(step), step, episode_id="ep", actor=int(Actor.HUMAN))
    episode = read_episode(writer.close(recorded.summary("ep", 3)))
    assert episode.actors.tolist() == [Actor.HUMAN] * 3 + [Actor.UNSET]
    np.testing.assert_allclose(episode.actions[:3, 0], [0, 0.01, 0.02], rtol=1e-6)


def test_an_episode_of_a_dry_run_says_that_nothing_was_sent(tmp_path: Path) -> None:
    writer = observations(tmp_path, 4)
    for step in range(3):
        write_step(writer, recorded.stamp(step), step, gate=int(Gate.DRY_RUN))
    episode = read_episode(writer.close(recorded.summary("ep", 0, stamp_ns=recorded.stamp(3))))
    assert len(episode) == 1
    assert episode.notes == (
        "'policy_step': none of the 3 steps that were decided was sent: a dry run, or stage shadow",
    )


def test_an_action_without_a_command_counts_as_sent(tmp_path: Path) -> None:
    writer = observations(tmp_path, 2)
    write_step(writer, recorded.stamp(0), 0, command=np.zeros(0), tokens=np.zeros(0, np.uint16))
    episode = read_episode(writer.close(recorded.summary("ep", 1)))
    assert episode.actions[0].tolist() == [9, 9]
    assert episode.tokens[0].tolist() == [-1, -1]


def test_an_episode_that_ended_at_once_has_one_row(tmp_path: Path) -> None:
    episode = read_episode(observations(tmp_path, 1).close(recorded.summary("ep", 0)))
    assert len(episode) == 1
    assert episode.actions.shape == (1, 2) and episode.tokens.shape == (1, 2)


def test_a_few_lost_observations_are_left_out_and_noted(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    for step in range(21):
        if step != 7:
            recorded.write_observation(writer, step)
        write_step(writer, recorded.stamp(step), step)
    folder = writer.close(recorded.summary("ep", 20))
    episode = read_episode(folder)
    assert len(episode) == 20 and recorded.stamp(7) not in episode.stamps
    assert (
        episode.notes[0] == "the recording lacks the observations of 1 of 21 control steps; they are left out"
    )
    assert check_episode(folder) == list(episode.notes)


def test_steps_that_the_recorder_missed_are_noted(tmp_path: Path) -> None:
    writer = observations(tmp_path, 11)
    for step in (0, 1, 2, 6, 7, 8, 9):
        write_step(writer, recorded.stamp(step), step)
    notes = read_episode(writer.close(recorded.summary("ep", 10))).notes
    assert notes == (
        "the summary says 10 control steps, the recording holds 7",
        "0.400 s between the rows 2 and 3, where 0.100 s is usual",
    )


def test_a_step_that_held_still_is_no_step_of_the_summary(tmp_path: Path) -> None:
    """A person lets go for a moment: `efm episodes check` once found something odd about that."""
    writer = observations(tmp_path, 4)
    for step, actor in enumerate((Actor.HUMAN, Actor.HOLD, Actor.HUMAN)):
        write_step(writer, recorded.stamp(step), step, actor=int(actor))
    summary = recorded.summary("ep", 2, stamp_ns=recorded.stamp(3))
    assert read_episode(writer.close(summary)).notes == ()


def test_the_rate_of_a_commander_from_outside_is_its_own(tmp_path: Path) -> None:
    writer = observations(tmp_path, 11)
    for step in range(10):
        write_step(writer, recorded.stamp(step), step, actor=int(Actor.EXTERNAL))
    summary = recorded.summary("ep", 40, actor=Actor.EXTERNAL, stamp_ns=recorded.stamp(10))
    assert read_episode(writer.close(summary)).notes == ()


def test_two_answers_to_one_observation_make_one_row(tmp_path: Path) -> None:
    writer = observations(tmp_path, 2)
    write_step(writer, recorded.stamp(0), 3)
    write_step(writer, recorded.stamp(0), 4)
    episode = read_episode(writer.close(recorded.summary("ep", 1)))
    assert episode.actions[0, 0] == pytest.approx(0.03)
    assert "two steps answer" in episode.notes[0]


def test_every_step_of_a_chunk_gets_the_observation_of_its_own_moment(tmp_path: Path) -> None:
    writer = observations(tmp_path, 8)
    for step in range(7):
        first = recorded.stamp(step - step % 3)
        write_step(writer, first, step, chunk_index=step % 3)
    episode = read_episode(writer.close(recorded.summary("ep", 7)))
    assert episode.stamps.tolist() == [recorded.stamp(step) for step in range(8)]
    assert episode.chunk_index.tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    np.testing.assert_array_equal(episode.images["top"][4], recorded.picture(4))
    assert episode.tokens[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, -1]


def test_chunks_faster_than_the_camera_repeat_its_image_and_never_a_stamp(tmp_path: Path) -> None:
    embodiment = recorded.embodiment(state=None)
    writer = EpisodeWriter(tmp_path, "ep", embodiment)
    for step in range(0, 9, 2):
        writer.write_image("top", recorded.stamp(step), recorded.picture(step))
    for step in range(8):
        write_step(writer, recorded.stamp(step - step % 4), step, chunk_index=step % 4)
    episode = read_episode(writer.close(recorded.summary("ep", 8)))
    assert (np.diff(episode.stamps) > 0).all()
    assert episode.images["top"][:, 0, 0, 1].tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8]


def test_a_person_between_the_steps_of_a_chunk_gets_a_row(tmp_path: Path) -> None:
    writer = observations(tmp_path, 6)
    for step, chunk_index, actor in ((0, 0, 1), (1, 1, 1), (2, 0, 3), (3, 3, 1), (4, 4, 1)):
        stamp = recorded.stamp(step - chunk_index)
        write_step(writer, stamp, step, chunk_index=chunk_index, actor=actor)
    episode = read_episode(writer.close(recorded.summary("ep", 5)))
    assert episode.actors.tolist() == [1, 1, 3, 1, 1, 0]
    assert episode.stamps.tolist() == [recorded.stamp(step) for step in range(6)]


def external(
    directory: Path, commands: list[tuple[float, list[float], str]], steps: int = 6
) -> EpisodeWriter:
    writer = observations(directory, steps + 1)
    for time, values, label in commands:
        writer.write("/commands", recorded.ARRAY, recorded.stamp(time), recorded.array(values, label))
    return writer


def test_commands_that_name_their_observation_make_rows(tmp_path: Path) -> None:
    commands = [(step + 0.3, [step, 0.0], f"stamp_ns={recorded.stamp(step)}") for step in range(6)]
    commands.insert(3, commands[2])  # Sent twice: the world took the first one.
    episode = read_episode(external(tmp_path, commands).close(recorded.summary("ep", 6)))
    assert episode.actions[:6, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert episode.actors.tolist() == [Actor.EXTERNAL] * 6 + [Actor.UNSET]
    assert np.isnan(episode.log_probs).all()
    assert episode.notes == ()


def test_commands_that_are_all_sent_twice_still_name_their_observation(tmp_path: Path) -> None:
    commands = [
        (step + late, [step, 0.0], f"stamp_ns={recorded.stamp(step)}")
        for step in range(6)
        for late in (0.3, 0.6)
    ]
    episode = read_episode(external(tmp_path, commands).close(recorded.summary("ep", 6)))
    assert episode.actions[:6, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_commands_of_their_own_rate_are_read_at_the_control_rate(tmp_path: Path) -> None:
    commands = [(time, [time, 0.0], "") for time in (-0.5, 0.7, 0.9, 1.5, 4.2, 5.5)]
    episode = read_episode(external(tmp_path, commands).close(recorded.summary("ep", 6)))
    np.testing.assert_allclose(episode.actions[:, 0], [0.9, 1.5, 1.5, 1.5, 4.2, 5.5, np.nan], rtol=1e-6)


@pytest.mark.parametrize("start_ns", [1795756146520233025, 1795756154518436633])
def test_a_camera_at_the_control_rate_gives_every_row_although_its_stamps_jitter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_ns: int
) -> None:
    """Of 70 rows 12 were missing, and with stamps of today the first one was at -1 ns."""
    monkeypatch.setattr(recorded, "START_NS", start_ns)
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    jitter = np.random.default_rng(1).normal(0.0, 0.01, 71)
    jitter[0] = 0.0
    stamps = [recorded.stamp(step + late) for step, late in enumerate(jitter)]
    for step, stamp_ns in enumerate(stamps):
        writer.write_image("top", stamp_ns, recorded.picture(step))
        writer.write(*recorded.STATE, stamp_ns, recorded.joint_state(stamp_ns, 0.0, 0.0))
        writer.write("commands", recorded.ARRAY, stamp_ns + 10**7, recorded.array([step / 100, 0.0]))
    episode = read_episode(writer.close(recorded.summary("ep", 70, stamp_ns=stamps[-1])))
    assert episode.stamps.tolist() == stamps
    np.testing.assert_allclose(episode.actions[:70, 0], np.arange(70) / 100, rtol=1e-6)


def test_rows_before_the_first_command_have_no_action(tmp_path: Path) -> None:
    episode = read_episode(external(tmp_path, [(2.5, [1.0, 0.0], "")]).close(recorded.summary("ep", 6)))
    assert np.isnan(episode.actions[:2]).all()
    assert episode.actors.tolist() == [0, 0, *[Actor.EXTERNAL] * 4, 0]


def test_a_command_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    writer = external(tmp_path, [])
    layout = message_class("std_msgs/msg/MultiArrayLayout")([], 0)
    wrong = message_class(recorded.ARRAY)(layout, np.zeros(3))
    writer.write("commands", recorded.ARRAY, recorded.stamp(0), serialize(wrong))
    with pytest.raises(EpisodeInvalid, match="command on 'commands': expected 2 numbers, found 3"):
        read_episode(writer.close(recorded.summary("ep", 6)))


def _twist(stamp_ns: int) -> bytes:
    vector = message_class("geometry_msgs/msg/Vector3")
    twist = message_class("geometry_msgs/msg/Twist")(vector(1.0, 2.0, 3.0), vector(4.0, 5.0, 6.0))
    return serialize(message_class("geometry_msgs/msg/TwistStamped")(make_header(stamp_ns), twist))


def _trajectory(stamp_ns: int) -> bytes:
    def point(positions: list[float], seconds: float) -> Any:
        duration = message_class("builtin_interfaces/msg/Duration")(0, round(seconds * 1e9))
        nothing = np.zeros(0)
        kind = message_class("trajectory_msgs/msg/JointTrajectoryPoint")
        return kind(np.array(positions), nothing, nothing, nothing, duration)

    points = [point([1.0, 2.0], 0.05), point([6.0, 3.0], 0.1), point([9.0, 9.0], 0.2)]
    kind = message_class("trajectory_msgs/msg/JointTrajectory")
    return serialize(kind(make_header(stamp_ns), ["angular.z", "linear.y"], points))


@pytest.mark.parametrize("interface", ["twist_stamped", "joint_trajectory"])
def test_other_interfaces_are_read_by_name(tmp_path: Path, interface: str) -> None:
    unit = "m/s" if interface == "twist_stamped" else "rad"
    dimensions = [
        {"name": name, "low": -9, "high": 9, "bins": 3, "unit": unit, "max_rate": "inf"}
        for name in ("linear.y", "angular.z")
    ]
    action: dict[str, Any] = {"interface": interface, "topic": "/commands", "dimensions": dimensions}
    action |= {"frame_id": "base", "hold_still": "zero" if interface == "twist_stamped" else "last"}
    make = {"twist_stamped": _twist, "joint_trajectory": _trajectory}[interface]
    kind = {
        "twist_stamped": "geometry_msgs/msg/TwistStamped",
        "joint_trajectory": "trajectory_msgs/msg/JointTrajectory",
    }[interface]
    writer = observations(tmp_path, 3, recorded.embodiment(action=action))
    for step in range(2):
        writer.write("commands", kind, recorded.stamp(step), make(recorded.stamp(step)))
    episode = read_episode(writer.close(recorded.summary("ep", 2)))
    expected = [2, 6] if interface == "twist_stamped" else [3, 6]
    assert episode.actions[:2].tolist() == [expected, expected]


def test_a_state_without_cameras_is_an_observation(tmp_path: Path) -> None:
    state = {
        "topic": "state",
        "interface": "float64_multi_array",
        "entries": [{"name": name, "unit": "m", "low": -1, "high": 1} for name in ("x", "y")],
    }
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment(cameras=[], state=state))
    for step in range(4):
        label = f"stamp_ns={recorded.stamp(step)}"
        late = recorded.stamp(step + 0.2)  # Log time: received later than it was made.
        writer.write("state", recorded.ARRAY, late, recorded.array([step, -step], label))
        write_step(writer, recorded.stamp(step), step)
    episode = read_episode(writer.close(recorded.summary("ep", 3)))
    assert episode.stamps.tolist() == [recorded.stamp(step) for step in range(4)]
    assert episode.state is not None and episode.state[:, 1].tolist() == [0, -1, -2, -3]
    assert dict(episode.images) == {}
