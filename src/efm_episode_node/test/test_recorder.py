"""The recorder without ROS: what is written, what is dropped, and what is told as a fault."""

import shutil
import threading
import time

import numpy as np
import pytest
from recorder_bench import CAMERA, PERIOD_NS, START_NS, STATE, STEP, Bench, decode, image, state

from efm_core.episode import check_episode, list_episodes, read_episode
from efm_core.episode_file import read_episode_file
from efm_core.errors import EpisodeInvalid, SpoolFull, WaitTimeout
from efm_core.summary import Mode
from efm_episode_node import recorder as recorder_module


@pytest.fixture
def bench(tmp_path):
    benches = []

    def make(**settings):
        benches.append(Bench(tmp_path / "spool", **settings))
        return benches[-1]

    yield make
    for one in benches:
        one.recorder.close()


def test_an_episode_is_written_whole(bench):
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode()
    folder = one.recorder.finish(one.summary()).result()
    assert check_episode(folder) == [] and one.faults == []
    episode = read_episode(folder)
    assert len(episode) == 6
    assert np.asarray(episode.images["top"][3])[0, 0, 0] == 53


def test_the_first_observation_counts_though_it_was_shown_before_the_beginning(bench):
    one = bench()
    for stamp_ns in (START_NS - 2 * PERIOD_NS, START_NS - PERIOD_NS, START_NS):
        one.observe(stamp_ns)
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.observe(START_NS)  # It is shown again.
    one.act(START_NS)
    one.episode(steps=4, start_ns=START_NS + PERIOD_NS)
    topics = read_episode_file(one.recorder.finish(one.summary()).result()).topics
    stamps = [raw.log_time_ns for raw in topics["joint_states"].messages]
    assert stamps == [START_NS + index * PERIOD_NS for index in range(6)]


def test_the_last_state_may_come_late_and_nothing_after_the_end_is_kept(bench):
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode(steps=4)
    end_ns = START_NS + 5 * PERIOD_NS
    one.act(end_ns - PERIOD_NS)
    one.recorder.put(CAMERA, end_ns, image(end_ns))

    def go_on():
        while not one.recorder._running.end_ns:
            time.sleep(0.01)
        for later_ns in (end_ns + PERIOD_NS, end_ns + 2 * PERIOD_NS):
            one.recorder.put(CAMERA, later_ns, image(later_ns))
            one.act(later_ns)
        one.recorder.put(STATE, end_ns, state(end_ns))

    world = threading.Thread(target=go_on, daemon=True)
    world.start()
    folder = one.recorder.finish(one.summary()).result()
    world.join(30)
    assert check_episode(folder) == [] and len(read_episode(folder)) == 6
    topics = read_episode_file(folder).topics
    for stream, count in ((CAMERA, 6), (STATE, 6), (STEP, 5)):
        assert len(topics[stream.topic].messages) == count, stream.topic


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({}, 96, "png"),
        ({}, 256, "jpeg"),
        ({"image_format": "png"}, 256, "png"),
        ({"image_format": "jpeg"}, 96, "jpeg"),
    ],
)
def test_small_images_are_kept_exactly_and_large_ones_as_jpeg_unless_told_otherwise(
    bench, settings, size, expected
):
    one = bench(**settings)
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode(size=size)
    topics = read_episode_file(one.recorder.finish(one.summary()).result()).topics
    formats = {message.format for _, message in topics[CAMERA.topic].decoded()}
    assert formats == {expected}


def test_encoding_images_does_not_keep_the_one_who_hears_them_waiting(bench):
    going = threading.Event()

    def slow(data):
        going.wait(30)
        return decode(data)

    one = bench(decode=slow)
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode()  # Returns although no image can be encoded yet.
    assert one.recorder.newest_ns() == START_NS + 5 * PERIOD_NS
    going.set()
    assert len(read_episode(one.recorder.finish(one.summary()).result())) == 6


def test_an_aborted_episode_leaves_nothing(bench):
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode()
    one.recorder.abort()
    one.recorder.close()
    assert list(one.folder.iterdir()) == []


def test_the_next_episode_is_not_touched_by_what_was_queued_for_the_last(bench):
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode()
    one.recorder.abort()
    one.recorder.begin("e2", START_NS + 100 * PERIOD_NS, Mode.COLLECT)
    one.episode(start_ns=START_NS + 100 * PERIOD_NS)
    later = {"start_ns": START_NS + 100 * PERIOD_NS, "stamp_ns": START_NS + 105 * PERIOD_NS}
    one.recorder.finish(one.summary("e2", **later)).result()
    assert [folder.name for folder in list_episodes(one.folder)] == ["e2"]


def test_an_episode_with_many_lost_observations_is_dropped_with_the_reason(bench):
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode(steps=10, lost=(2, 3))
    with pytest.raises(EpisodeInvalid, match="observations of 2 of 10 steps are missing"):
        one.recorder.finish(one.summary(steps=10)).result()
    one.recorder.close()
    assert list_episodes(one.folder) == []


def test_a_state_does_not_stand_for_the_image_that_was_lost_beside_it(bench):
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    for index in range(11):
        stamp_ns = START_NS + index * PERIOD_NS
        one.recorder.put(STATE, stamp_ns, state(stamp_ns))
        if index not in (2, 3):
            one.recorder.put(CAMERA, stamp_ns, image(stamp_ns))
        one.act(stamp_ns)
    with pytest.raises(EpisodeInvalid, match="observations of 2 of 10 steps are missing"):
        one.recorder.finish(one.summary(steps=10)).result()


def test_a_camera_that_stops_is_told_while_the_episode_runs(bench, monkeypatch):
    monkeypatch.setattr(recorder_module, "SILENCE_S", 0.05)
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode(steps=3)
    ticks = threading.Event()
    for index in range(4, 40):
        ticks.wait(0.01)
        one.recorder.put(STATE, START_NS + index * PERIOD_NS, state(START_NS + index * PERIOD_NS))
    assert len(one.faults) == 1
    assert "expected messages on 'camera/top/image_raw/compressed'" in one.faults[0]


def test_a_gap_in_which_nothing_at_all_was_heard_is_told(bench):
    # A node that was stopped for a while once saved 487 of 1,501 observations as if they were all.
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode(steps=3)
    one.episode(steps=3, start_ns=START_NS + 100 * PERIOD_NS)
    assert len(one.faults) == 1 and "found none for 9.7 s" in one.faults[0]
    with pytest.raises(EpisodeInvalid, match="found none for"):
        one.recorder.finish(one.summary(steps=103)).result()


def test_messages_that_only_wait_for_us_are_no_silence(bench):
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    stamps = [START_NS + index * PERIOD_NS for index in range(60)]
    for stamp_ns in stamps:  # In lockstep six seconds of the robot pass at once, topic by topic.
        one.recorder.put(STATE, stamp_ns, state(stamp_ns))
    for stamp_ns in stamps:
        one.recorder.put(CAMERA, stamp_ns, image(stamp_ns))
    assert one.faults == []


def test_a_clock_that_is_set_back_is_told(bench):
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode(steps=30)
    one.observe(START_NS + 5 * PERIOD_NS)
    assert "the clock was set back by 2.5 s" in one.faults[0]
    with pytest.raises(EpisodeInvalid, match="set back"):
        one.recorder.finish(one.summary(steps=30)).result()


def test_what_was_stamped_before_the_clock_was_set_back_belongs_to_no_later_episode(bench):
    one = bench()
    one.observe(START_NS + 500 * PERIOD_NS)
    one.observe(START_NS - PERIOD_NS)
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode()
    assert one.faults == []
    assert len(read_episode(one.recorder.finish(one.summary()).result())) == 6


def test_a_full_disk_is_told_and_leaves_nothing_half(bench, monkeypatch):
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)

    def full(*_):
        raise SpoolFull("episode e1: no space left on the device")

    monkeypatch.setattr(recorder_module.EpisodeWriter, "write_image", full)
    one.episode()
    with pytest.raises(EpisodeInvalid, match="no space left"):
        one.recorder.finish(one.summary()).result()
    one.recorder.close()
    assert list_episodes(one.folder) == []


def test_whatever_one_episode_meets_the_next_one_is_recorded(bench):
    broken = [RuntimeError("odd bytes")]

    def opened(data):
        if broken:
            raise broken[0]
        return decode(data)

    one = bench(decode=opened)

    def record(number):
        start_ns = START_NS + number * 10 * PERIOD_NS
        one.recorder.begin(f"e{number}", start_ns, Mode.COLLECT)
        one.episode(start_ns=start_ns)
        return one.summary(f"e{number}", start_ns=start_ns, stamp_ns=start_ns + 5 * PERIOD_NS)

    with pytest.raises(EpisodeInvalid, match="odd bytes"):
        one.recorder.finish(record(1)).result()
    broken.clear()
    summary = record(2)
    shutil.rmtree(one.folder)
    with pytest.raises(EpisodeInvalid, match="cannot be written to"):
        one.recorder.finish(summary).result()
    assert check_episode(one.recorder.finish(record(3)).result()) == []


def test_an_episode_whose_disk_hangs_is_given_up_and_dropped_when_it_comes_back(bench):
    going = threading.Event()
    one = bench(decode=lambda data: (going.wait(30), decode(data))[1], settle_s=0.05)
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode()
    with pytest.raises(WaitTimeout, match="not on the disk within"):
        one.recorder.finish(one.summary()).result()
    going.set()
    later_ns = START_NS + 10 * PERIOD_NS
    one.recorder.begin("e2", later_ns, Mode.COLLECT)
    one.episode(start_ns=later_ns)
    summary = one.summary("e2", start_ns=later_ns, stamp_ns=later_ns + 5 * PERIOD_NS)
    second, deadline = one.recorder.finish(summary), time.monotonic() + 30
    while not second.done() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [folder.name for folder in list_episodes(one.folder)] == ["e2"]


def test_a_queue_that_only_grows_is_told_before_the_memory_is_gone(bench):
    going = threading.Event()
    one = bench(decode=lambda data: (going.wait(30), decode(data))[1], queue_bytes=100_000)
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    one.episode(steps=9)
    assert "cannot keep up" in one.faults[0]
    going.set()


def test_what_is_held_stands_still_while_much_waits_to_be_written(bench):
    going = threading.Event()
    one = bench(decode=lambda data: (going.wait(30), decode(data))[1], queue_bytes=200_000)
    assert one.recorder.held_ns() == 0, "nothing is recorded"
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    assert one.recorder.held_ns() == START_NS
    one.episode(steps=2)
    assert one.recorder.held_ns() == START_NS + 2 * PERIOD_NS
    one.episode(steps=2, start_ns=START_NS + 3 * PERIOD_NS)
    assert one.recorder.held_ns() == START_NS + 2 * PERIOD_NS and one.faults == []
    going.set()
    one.recorder.finish(one.summary()).result()
    assert one.recorder.held_ns() == 0


def test_the_newest_observation_is_the_one_that_every_camera_has_reached(bench):
    one = bench()
    one.recorder.begin("e1", START_NS, Mode.COLLECT)
    assert one.recorder.newest_ns() == 0
    one.recorder.put(CAMERA, START_NS, image(START_NS))
    assert one.recorder.newest_ns() == 0, "the state has not come"
    one.recorder.put(STATE, START_NS, state(START_NS))
    one.recorder.put(STATE, START_NS + PERIOD_NS, state(START_NS + PERIOD_NS))
    assert one.recorder.newest_ns() == START_NS
