"""Episodes get to the learner whatever is cut, away, paused or broken in between (real services)."""

import shutil
import threading

import numpy as np
import pytest
from rclpy.node import Node
from transfer_learner import quick

from efm_core.archive import MAX_PART_BYTES, PartSource
from efm_core.errors import EpisodeStale, Reason, WaitTimeout
from efm_core.spool import Spool
from efm_msgs.srv import GetBundle, SubmitEpisode
from efm_ros.transfer import Asker, BackOff, EpisodeSender

EPISODE = "20261122T140102Z-1a2b3c4d"
OTHER = "20261122T150102Z-1a2b3c4d"
LARGE = int(2.5 * MAX_PART_BYTES)


@pytest.fixture
def spool(tmp_path):
    with Spool(tmp_path / "spool", quota_bytes=1 << 30, reserve_bytes=0) as spool:
        yield spool


@pytest.fixture
def sender(robot, spool):
    told = []
    sender = EpisodeSender(robot, spool, "/learner", "robot_1", lambda *words: told.append(words), quick())
    sender.all_told = told
    yield sender
    sender.stop(timeout_s=10.0)


def record(spool, episode_id=EPISODE, size=LARGE, seed=0):
    """Puts something that looks like an episode into the spool; gives the SHA-256 of its archive."""
    folder = spool.path / episode_id
    folder.mkdir()
    (folder / "metadata.yaml").write_text("rosbag2_bagfile_information: {}\n")
    (folder / f"{episode_id}.mcap").write_bytes(np.random.default_rng(seed).bytes(size))
    return PartSource(folder).sha256()


def data_offsets(learner):
    return [offset for _, offset, size in learner.requests if size]


def test_an_episode_arrives_in_parts_and_leaves_the_spool_when_it_is_acknowledged(
    learner, sender, spool, spinner
):
    sha256 = record(spool)
    learner.set_up()
    sender.start()
    spinner.until(lambda: not spool.pending(), "an empty spool")
    assert learner.taken == [(EPISODE, "robot_1", sha256)]
    assert data_offsets(learner) == [0, MAX_PART_BYTES, 2 * MAX_PART_BYTES]
    spinner.until(lambda: sender.all_told == [(EPISODE, Reason.OK, "taken")], "the word of it")
    assert sorted(item.name for item in (learner.folder / "inbox").iterdir()) == [".taken", EPISODE]


def test_an_episode_that_is_added_later_goes_out_as_soon_as_the_sender_is_told(
    learner, sender, spool, spinner
):
    learner.set_up()
    sender.start()
    for episode_id in (EPISODE, OTHER):
        record(spool, episode_id, size=100)
        sender.notify()
        spinner.until(lambda: not spool.pending(), "an empty spool")
    assert [name for name, _, _ in learner.taken] == [EPISODE, OTHER]


def test_episodes_wait_while_the_learner_is_away(learner, sender, spool, spinner):
    record(spool, size=100)
    sender.start()
    spinner.until(lambda: not sender.learner_is_there, "an absent learner")
    learner.set_up()
    spinner.until(lambda: not spool.pending(), "an empty spool")


def test_a_restarted_learner_is_sent_only_what_it_lacks(learner, sender, spool, spinner):
    record(spool)
    learner.set_up()
    sender.start()
    spinner.until(lambda: data_offsets(learner), "the first part")
    learner.take_down()
    had = data_offsets(learner)[-1] + MAX_PART_BYTES
    learner.requests.clear()
    learner.set_up()
    spinner.until(lambda: not spool.pending(), "an empty spool")
    assert data_offsets(learner)[0] == had
    assert len(learner.taken) == 1


def test_a_part_that_was_damaged_on_its_way_makes_the_transfer_start_again(learner, sender, spool, spinner):
    sha256 = record(spool)
    learner.set_up()
    sender.start()
    spinner.until(lambda: data_offsets(learner), "the first part")
    (part,) = (learner.folder / "inbox").glob(".*.part")
    with part.open("r+b") as file:
        file.write(b"damage")
    spinner.until(lambda: not spool.pending(), "an empty spool")
    assert data_offsets(learner).count(0) == 2
    assert learner.taken == [(EPISODE, "robot_1", sha256)]


def test_a_paused_learner_gets_the_episode_when_it_accepts_again(learner, sender, spool, spinner):
    record(spool, size=100)
    learner.accepting = False
    learner.set_up()
    sender.start()
    spinner.until(lambda: sender.all_told, "the word that it has to wait")
    assert sender.all_told[0][:2] == (EPISODE, Reason.PAUSED)
    learner.accepting = True
    spinner.until(lambda: not spool.pending(), "an empty spool")


def test_an_episode_that_is_refused_for_good_is_kept_and_the_next_one_goes_out(
    learner, sender, spool, spinner
):
    record(spool, EPISODE, size=100)
    learner.refuse = EpisodeStale("three versions old")
    learner.set_up()
    sender.start()
    spinner.until(lambda: sender.refused, "the refusal")
    learner.refuse = None
    record(spool, OTHER, size=100)
    sender.notify()
    spinner.until(lambda: len(spool.pending()) == 1, "the second episode to leave")
    assert sender.refused == {EPISODE: "three versions old"}
    assert [path.name for path in spool.pending()] == [EPISODE]
    assert not (learner.folder / "inbox" / EPISODE).exists()


def test_an_episode_that_the_learner_stumbles_over_does_not_keep_the_next_one_back(
    learner, sender, spool, spinner
):
    record(spool, EPISODE, size=100)
    record(spool, OTHER, size=100)
    learner.refuse = ZeroDivisionError("a bug of the learner")
    learner.set_up()
    sender.start()
    spinner.until(lambda: len({words[0] for words in sender.all_told}) == 2, "an attempt with both")
    assert len(spool.pending()) == 2
    assert "ZeroDivisionError: a bug of the learner" in sender.all_told[0][2]
    learner.refuse = None
    spinner.until(lambda: not spool.pending(), "an empty spool")


def test_the_same_episode_is_acknowledged_again_and_not_taken_twice(
    learner, sender, spool, spinner, tmp_path
):
    record(spool, size=100)
    shutil.copytree(spool.path / EPISODE, tmp_path / "copy")
    learner.set_up()
    sender.start()
    spinner.until(lambda: not spool.pending(), "an empty spool")
    learner.take_down()  # The ledger outlives it.
    shutil.copytree(tmp_path / "copy", spool.path / EPISODE)
    learner.set_up()
    sender.notify()
    spinner.until(lambda: not spool.pending(), "an empty spool again")
    assert len(learner.taken) == 1


def test_another_episode_of_the_same_id_is_refused_and_kept(learner, sender, spool, spinner):
    record(spool, size=100, seed=1)
    learner.set_up()
    sender.start()
    spinner.until(lambda: not spool.pending(), "an empty spool")
    record(spool, size=100, seed=2)
    sender.notify()
    spinner.until(lambda: sender.refused, "the refusal")
    assert [path.name for path in spool.pending()] == [EPISODE]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"episode_id": "../../etc"}, Reason.BAD_REQUEST),
        ({"episode_id": ".taken"}, Reason.BAD_REQUEST),
        ({"sha256": "abc"}, Reason.BAD_REQUEST),
        ({"total_size": 0}, Reason.BAD_REQUEST),
        ({"total_size": 1 << 50}, Reason.BAD_REQUEST),
        ({"data": bytes(MAX_PART_BYTES + 1), "total_size": 1 << 30}, Reason.BAD_REQUEST),
        ({"data": bytes(200)}, Reason.TRANSFER_CORRUPT),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_and_writes_nothing(learner, robot, spinner, broken, reason):
    learner.set_up()
    client = robot.create_client(SubmitEpisode, "/learner/submit_episode")
    fields = {"episode_id": EPISODE, "total_size": 100, "sha256": "0" * 64, **broken}
    answer = spinner.call(client, SubmitEpisode.Request(**fields))
    assert (answer.reason, answer.next_offset) == (reason, 0)
    assert answer.message
    left = [item for item in (learner.folder / "inbox").iterdir() if item.stat().st_size]
    assert left == []


def test_a_learner_that_does_not_answer_is_given_up_at_the_deadline(robot, spinner):
    silent = Node("silent")  # Serves, but nobody spins it.
    silent.create_service(GetBundle, "get_bundle", lambda request, answer: answer)
    asker = Asker(robot, GetBundle, "get_bundle_of_nobody", threading.Event())
    with pytest.raises(WaitTimeout, match="found none; is the learner running"):
        asker.ask(GetBundle.Request(), timeout_s=0.2)
    asker = Asker(robot, GetBundle, "/get_bundle", threading.Event())
    spinner.until(asker.is_there, "the silent service")
    with pytest.raises(WaitTimeout, match=r"waited for 0.2 s for an answer of '/get_bundle'"):
        asker.ask(GetBundle.Request(), timeout_s=0.2)
    silent.destroy_node()


def test_pauses_double_up_to_the_longest_and_begin_again_after_a_success():
    back_off = BackOff(first_s=1.0, longest_s=5.0)
    pauses = [back_off.pause() for _ in range(5)]
    for pause, middle in zip(pauses, (1, 2, 4, 5, 5), strict=True):
        assert 0.75 * middle <= pause <= 1.25 * middle
    back_off.reset()
    assert back_off.pause() <= 1.25
