"""Observations: the newest of everything, nothing twice, nothing too old, on any clock."""

from __future__ import annotations

import numpy as np
import pytest
from example_robots import TABLE, table_robot
from hypothesis import given
from hypothesis import strategies as st

from efm_core.embodiment import Embodiment
from efm_core.errors import ObservationInvalid
from efm_core.observation import ObservationAssembler

S = 1_000_000_000
MS = 1_000_000
START = 100 * S
SIDE = {**TABLE["cameras"][0], "name": "side", "topic": "camera/side/image_raw", "frames": 1}
TWO_CAMERAS = table_robot(cameras=[*TABLE["cameras"], SIDE])
STATE_ONLY = table_robot(cameras=[])
IMAGES_ONLY = table_robot(state=None)


def image(shade: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), shade, np.uint8)


def shades(stack: np.ndarray) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in stack]


def started(robot: Embodiment | None = None) -> ObservationAssembler:
    assembler = ObservationAssembler(robot or table_robot())
    assembler.start(START)
    return assembler


def feed(assembler: ObservationAssembler, stamp_ns: int, shade: int = 1) -> None:
    assembler.add_image("top", stamp_ns, image(shade))
    assembler.add_state(stamp_ns, [shade / 100, 0.0])


def test_the_newest_of_every_input_is_handed_out():
    assembler = started()
    feed(assembler, START, shade=1)
    feed(assembler, START + 50 * MS, shade=2)
    seen = assembler.ready(START + 60 * MS)
    assert seen is not None and seen.stamp_ns == START + 50 * MS
    assert shades(seen.images["top"]) == [2, 2]
    np.testing.assert_allclose(seen.state, [0.02, 0])
    assert seen.state.dtype == np.float32 and seen.images["top"].shape == (2, 6, 8, 3)


def test_an_observation_is_handed_out_once():
    assembler = started()
    feed(assembler, START)
    assert assembler.ready(START) is not None
    assert assembler.ready(START) is None
    assert assembler.why_not_ready(START) == "nothing new since the observation of 100.000 s"


def test_the_history_goes_by_control_ticks_and_the_first_frame_is_repeated():
    assembler = started(table_robot(cameras__0__frames=3))
    stacks = []
    for tick in range(4):
        for part in range(3):  # Three images a tick: only the newest of each tick is seen.
            feed(assembler, START + (3 * tick + part) * 30 * MS, shade=3 * tick + part)
        stacks.append(shades(assembler.ready(START + (3 * tick + 2) * 30 * MS).images["top"]))
    assert stacks == [[2, 2, 2], [2, 2, 5], [2, 5, 8], [5, 8, 11]]


def test_an_episode_begins_without_the_history_of_the_one_before():
    assembler = started()
    for tick in range(3):
        feed(assembler, START + tick * 100 * MS, shade=tick)
        assembler.ready(START + tick * 100 * MS)
    assembler.start(START + S)
    assert "no image of camera 'top'" in assembler.why_not_ready(START + S)
    feed(assembler, START + S, shade=9)
    assert shades(assembler.ready(START + S).images["top"]) == [9, 9]


def test_inputs_from_before_the_start_do_not_count():
    assembler = started()
    assert not assembler.add_image("top", START - 1, image(1))
    assert not assembler.add_state(START - 1, [0, 0])
    assert assembler.why_not_ready(START).endswith("since the start at 100.000 s")


def test_the_observation_that_a_reset_gave_is_kept_and_handed_out_again():
    # In lockstep it is the only one that the world will show: losing it would be a deadlock.
    assembler = started()
    feed(assembler, START + S)
    assert assembler.ready(START + S, synchronous=True) is not None
    assembler.start(START + S)
    assert not assembler.add_image("top", START + S, image(1))
    seen = assembler.ready(START + S, synchronous=True)
    assert seen is not None and seen.stamp_ns == START + S


def test_the_reasons_name_every_input_that_is_missing_with_its_topic():
    assembler = ObservationAssembler(table_robot(cameras__0__transport="compressed"))
    assert assembler.why_not_ready(START) == (
        "no image of camera 'top' on 'camera/top/image_raw/compressed'; no state on 'joint_states'"
    )
    assert assembler.ready(START) is None


def test_an_input_that_is_too_old_is_named_with_its_age():
    assembler = started()
    feed(assembler, START)
    assembler.add_image("top", START + 150 * MS, image(2))
    assert assembler.ready(START + 250 * MS) is None
    assert assembler.why_not_ready(START + 250 * MS) == "the state is 0.250 s old, more than 0.2 s"
    assembler.add_state(START + 240 * MS, [0, 0])
    assert assembler.ready(START + 250 * MS) is not None


def test_every_input_has_its_own_limit_of_age():
    assembler = started(table_robot(state__max_age_s=5.0))
    assembler.add_state(START, [0, 0])
    assembler.add_image("top", START + 3 * S, image(1))
    assert assembler.ready(START + 3 * S) is not None


def test_a_driver_without_stamps_and_a_foreign_clock_are_told_apart():
    assembler = ObservationAssembler(table_robot())
    assembler.add_image("top", 0, image(1))
    assembler.add_state(START + 60 * S, [0, 0])
    reasons = assembler.why_not_ready(START)
    assert "camera 'top' has no stamp: its driver must fill in header.stamp" in reasons
    assert "the state is stamped 60.000 s ahead of the clock: is use_sim_time the same?" in reasons


def test_the_state_is_that_of_the_moment_of_the_image():
    assembler = started()
    for index in range(20):
        assembler.add_state(START + index * 10 * MS, [index / 100, 0])
    assembler.add_image("top", START + 75 * MS, image(1))
    seen = assembler.ready(START + 190 * MS)
    np.testing.assert_allclose(seen.state, [0.07, 0])
    assert seen.stamp_ns == START + 75 * MS


def test_an_image_older_than_all_states_gets_the_oldest_state():
    assembler = started()
    assembler.add_state(START + 20 * MS, [0.1, 0])
    assembler.add_state(START + 30 * MS, [0.2, 0])
    assembler.add_image("top", START + 10 * MS, image(1))
    np.testing.assert_allclose(assembler.ready(START + 30 * MS).state, [0.1, 0])


def test_a_new_state_alone_makes_no_new_observation():
    assembler = started()
    feed(assembler, START)
    assembler.ready(START)
    assembler.add_state(START + 10 * MS, [0, 0])
    assert assembler.ready(START + 10 * MS) is None


def test_of_several_cameras_a_slow_one_shows_its_newest_image_again():
    assembler = started(TWO_CAMERAS)
    assembler.add_image("side", START, image(7))
    stamps = []
    for tick in range(2):
        feed(assembler, START + tick * 100 * MS, shade=tick)
        seen = assembler.ready(START + tick * 100 * MS)
        stamps.append(seen.stamp_ns)
        assert shades(seen.images["side"]) == [7]
    assert stamps == [START, START + 100 * MS]


def test_robots_without_cameras_go_by_the_state_and_robots_without_state_by_images():
    assembler = started(STATE_ONLY)
    assembler.add_state(START, [0.1, 0.2])
    seen = assembler.ready(START)
    assert seen.images == {} and seen.stamp_ns == START
    assembler.add_state(START + 1, [0.1, 0.2])
    assert assembler.ready(START + 1).stamp_ns == START + 1
    assembler = started(IMAGES_ONLY)
    assembler.add_image("top", START, image(1))
    assert assembler.ready(START).state is None


# Lockstep


def test_in_lockstep_all_inputs_must_be_of_one_moment():
    assembler = started(TWO_CAMERAS)
    feed(assembler, START)
    assembler.add_image("side", START, image(1))
    assert assembler.ready(START, synchronous=True).stamp_ns == START
    assembler.add_image("top", START + 100 * MS, image(2))
    assert assembler.ready(START, synchronous=True) is None
    assert assembler.why_not_ready(START, synchronous=True) == (
        "waiting for all inputs of 100.100 s: camera 'side' is of 100.000 s; the state is of 100.000 s"
    )
    assembler.add_state(START + 100 * MS, [0, 0])
    assert assembler.ready(START, synchronous=True) is None
    assembler.add_image("side", START + 100 * MS, image(2))
    assert assembler.ready(START, synchronous=True).stamp_ns == START + 100 * MS


def test_in_lockstep_ages_do_not_matter_since_the_world_waits():
    assembler = started()
    feed(assembler, START)
    assert assembler.ready(START + 3600 * S, synchronous=True) is not None


def test_an_observation_that_is_shown_again_is_known_and_not_handed_out_again():
    assembler = started()
    feed(assembler, START)
    assert assembler.ready(START, synchronous=True) is not None
    assert not assembler.add_image("top", START, image(1))
    assert not assembler.add_state(START, [0, 0])
    assert assembler.ready(START, synchronous=True) is None


# The clock


def test_stragglers_are_dropped():
    assembler = started()
    feed(assembler, START + 100 * MS, shade=2)
    assert not assembler.add_image("top", START + 90 * MS, image(1))
    assert shades(assembler.ready(START + 100 * MS).images["top"]) == [2, 2]
    assert assembler.time_line == 0


def test_a_clock_that_was_set_back_begins_a_new_time_line():
    assembler = started()
    for tick in range(3):
        feed(assembler, START + tick * 100 * MS, shade=tick)
        assembler.ready(START + tick * 100 * MS)
    assert assembler.add_image("top", 5 * S, image(8))
    assert assembler.time_line == 1
    assert assembler.ready(5 * S) is None
    assert assembler.why_not_ready(5 * S) == "no state on 'joint_states'"
    assembler.add_state(5 * S, [0, 0])
    seen = assembler.ready(5 * S)
    assert seen.stamp_ns == 5 * S and shades(seen.images["top"]) == [8, 8]
    assert assembler.time_line == 1  # The other inputs follow without a further one.


def test_a_world_that_was_restarted_in_its_first_second_is_not_ignored_for_ever():
    assembler = ObservationAssembler(table_robot())
    feed(assembler, 800 * MS)
    for tick in range(10):
        feed(assembler, tick * 50 * MS, shade=tick)
    assert assembler.time_line >= 1
    seen = assembler.ready(450 * MS, synchronous=True)
    assert seen is not None and seen.stamp_ns == 450 * MS


def test_a_clock_set_back_before_the_first_input_of_an_episode_is_noticed_too():
    assembler = started()
    feed(assembler, START)
    assembler.start(START + 10 * S)
    feed(assembler, 1 * S, shade=3)
    assert assembler.ready(1 * S) is not None


def test_after_the_clock_was_set_back_old_messages_do_not_stop_the_robot_for_ever():
    assembler = started()
    feed(assembler, START)
    feed(assembler, 1 * S)
    assembler.add_image("top", START + 1, image(1))  # Was still on its way.
    for tick in range(1, 4):
        feed(assembler, S + tick * 100 * MS, shade=tick)
    assert assembler.ready(S + 300 * MS) is not None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=60))
def test_whatever_the_order_of_stamps_observations_only_go_forward_within_a_time_line(inputs):
    assembler = ObservationAssembler(table_robot())
    last, time_line = -1, 0
    for is_image, tenths in inputs:
        stamp_ns = tenths * 100 * MS
        if is_image:
            assembler.add_image("top", stamp_ns, image(tenths))
        else:
            assembler.add_state(stamp_ns, [tenths, 0])
        seen = assembler.ready(stamp_ns)
        reason = assembler.why_not_ready(stamp_ns)
        assert reason if seen is None else reason.startswith("nothing new")
        if assembler.time_line != time_line:
            last, time_line = -1, assembler.time_line
        if seen is not None:
            assert seen.stamp_ns > last
            last = seen.stamp_ns


# Copies


def test_an_image_that_fits_is_handed_out_without_a_copy():
    assembler = started(table_robot(state=None, cameras__0__frames=1))
    taken = image(1)
    assembler.add_image("top", START, taken)
    assert np.shares_memory(assembler.ready(START).images["top"], taken)


def test_an_image_of_another_size_is_prepared_only_when_it_is_handed_out(monkeypatch):
    prepared = []
    monkeypatch.setattr(
        "efm_core.observation.prepare_image", lambda taken, h, w: prepared.append(1) or taken[:h, :w]
    )
    assembler = started(IMAGES_ONLY)
    for index in range(10):
        assembler.add_image("top", START + index, image(index, 12, 16))
    assert not prepared
    assert assembler.ready(START + 10).images["top"].shape == (2, 6, 8, 3)
    assert len(prepared) == 1


def test_observations_that_were_handed_out_stay_as_they_are():
    assembler = started()
    feed(assembler, START, shade=1)
    first = assembler.ready(START)
    feed(assembler, START + 1, shade=2)
    assembler.ready(START + 1)
    assert shades(first.images["top"]) == [1, 1]
    np.testing.assert_allclose(first.state, [0.01, 0])


# Refusals


@pytest.mark.parametrize(
    ("camera", "stamp_ns", "taken", "message"),
    [
        ("topp", START, image(1), "camera 'topp', did you mean 'top'"),
        ("top", -1, image(1), "camera 'top': expected a stamp >= 0, found -1 ns"),
        ("top", START, image(1)[..., 0], r"camera 'top': expected uint8 \[height, width, 3\]"),
        ("top", START, image(1).astype(np.float32), "camera 'top': expected uint8"),
        ("top", START, image(1)[:0], "camera 'top': expected at least one pixel"),
    ],
)
def test_images_that_are_none_are_refused(camera, stamp_ns, taken, message):
    with pytest.raises(ObservationInvalid, match=message):
        started().add_image(camera, stamp_ns, taken)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0], r"expected 2 numbers, found the shape \[1\]"),
        ([[0.0, 0.0]], r"expected 2 numbers, found the shape \[1, 2\]"),
        ([], r"expected 2 numbers, found the shape \[0\]"),
        ([0.0, np.nan], r"found \['y'\] not finite"),
        ([1e300, 0.0], r"found \['x'\] not finite"),
        (["a", "b"], "expected 2 numbers, found could not convert"),
        ([[0.0], [0.0, 1.0]], "expected 2 numbers, found"),
    ],
)
def test_states_that_are_none_are_refused(values, message):
    with pytest.raises(ObservationInvalid, match=message):
        started().add_state(START, values)


def test_a_state_that_the_robot_does_not_have_is_refused():
    with pytest.raises(ObservationInvalid, match="expected 0 numbers"):
        started(IMAGES_ONLY).add_state(START, [])


def test_a_refused_input_leaves_everything_as_it_was():
    assembler = started()
    feed(assembler, START)
    with pytest.raises(ObservationInvalid):
        assembler.add_state(START + 1, [np.nan, 0])
    assert assembler.ready(START) is not None
