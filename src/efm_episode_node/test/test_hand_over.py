"""From the spool to the learner: exactly once, also when the learner is away, and never what is not meant
for it.
"""

import threading

import pytest
from rclpy.node import Node

from efm_core.episode import check_episode, read_summary
from efm_core.errors import EpisodeStale, Reason
from efm_core.summary import Mode
from efm_msgs.msg import EpisodeStatus
from efm_ros.executors import SingleThreadedExecutor
from efm_ros.transfer_server import EpisodeReceiver


class Learner:
    """The learner's end of the transfer, in this process; refuses what `refuses` names."""

    def __init__(self, inbox):
        self.inbox, self.taken, self.refuses = inbox, [], lambda folder: False
        self.node = Node("learner", namespace="/learner")
        self.receiver = EpisodeReceiver(self.node, inbox, self.take)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.ending = False
        self.thread = threading.Thread(target=self.spin, daemon=True)
        self.thread.start()

    def take(self, folder, robot):
        if self.refuses(folder):
            raise EpisodeStale("3 versions old, at most 2 are taken")
        self.taken.append((folder.name, robot))

    def spin(self):
        while not self.ending:
            self.executor.spin_once(timeout_sec=0.1)

    def close(self):
        self.ending = True
        self.thread.join(10)
        self.executor.shutdown()
        self.node.destroy_node()


@pytest.fixture
def learner(ros, tmp_path):
    learners = []

    def make():
        learners.append(Learner(tmp_path / "inbox"))
        return learners[-1]

    yield make
    for one in learners:
        if not one.ending:
            one.close()


def test_practice_reaches_the_learner_exactly_once_and_leaves_the_spool(stack, learner):
    stack.start_sim()
    stack.start_models()
    stack.start_episodes(learner="/learner")
    school = learner()
    result = stack.run(Mode.PRACTICE, episodes=4, seed=1)
    assert result.reason == Reason.OK, result.message
    stack.until(lambda: len(school.taken) == 4, "four episodes at the learner")
    stack.until(lambda: not stack.episodes(), "an empty spool")
    assert sorted(name for name, _ in school.taken) == sorted(result.episode_ids)
    assert {robot for _, robot in school.taken} == {"robot_1"}
    assert all(check_episode(school.inbox / name) == [] for name, _ in school.taken)


def test_a_learner_that_is_away_gets_everything_when_it_comes_back(stack, learner):
    stack.start_sim()
    stack.start_models()
    stack.start_episodes(learner="/learner")
    first = stack.run(Mode.PRACTICE, episodes=2, seed=1)
    assert len(stack.episodes()) == 2, "kept while nobody takes them"
    assert stack.stop("episodes") == 0
    stack.statuses.clear()
    stack.start_episodes(learner="/learner")
    school = learner()
    stack.until(lambda: len(school.taken) == 2, "the episodes of the node's former life")
    school.close()
    second = stack.run(Mode.PRACTICE, episodes=2, seed=9)
    again = learner()
    stack.until(lambda: len(again.taken) == 2, "the episodes of the learner's absence")
    sent = [name for name, _ in school.taken + again.taken]
    assert sorted(sent) == sorted([*first.episode_ids, *second.episode_ids])


def test_a_full_spool_pauses_practice_until_the_learner_has_made_room(stack, learner):
    stack.start_sim()
    stack.start_models()
    stack.start_episodes(learner="/learner", quota_bytes=20_000)
    run = stack.begin(Mode.PRACTICE, episodes=6, seed=1)
    stack.until_phase(EpisodeStatus.PHASE_PAUSED)
    assert "start the learner that takes them" in stack.statuses[-1].message
    school = learner()
    stack.until(run.done, "the end of the run", 200)
    assert run.result().result.episodes == 6
    stack.until(lambda: len(school.taken) == 6, "six episodes at the learner")


def test_demonstrations_and_evaluations_of_a_practising_robot_are_not_given_away(stack, learner):
    stack.start_sim()
    stack.start_models()
    stack.start_episodes(learner="/learner", mode="practice")
    school = learner()
    demonstrations = stack.run(Mode.COLLECT, episodes=2, seed=1).episode_ids
    stack.run(Mode.EVALUATE, episodes=2, seed=1)
    practice = stack.run(Mode.PRACTICE, episodes=1, seed=1).episode_ids
    stack.until(lambda: school.taken, "the practised episode")
    assert [name for name, _ in school.taken] == list(practice)
    stack.until(lambda: len(stack.episodes()) == 2, "the practised episode to leave the spool")
    assert sorted(folder.name for folder in stack.episodes()) == sorted(demonstrations)
    assert len(stack.episodes(".evaluation")) == 2


def test_a_node_that_collects_for_a_learner_hands_demonstrations_over(stack, learner):
    stack.start_sim()
    stack.start_episodes(learner="/learner", mode="collect")
    school = learner()
    ids = stack.run(Mode.COLLECT, episodes=2, seed=1).episode_ids
    stack.until(lambda: len(school.taken) == 2, "two demonstrations")
    assert sorted(name for name, _ in school.taken) == sorted(ids)
    assert {read_summary(school.inbox / name).mode for name in ids} == {Mode.COLLECT}


def test_an_episode_that_the_learner_refuses_stays_and_the_others_go(stack, learner):
    stack.start_sim()
    stack.start_models()
    school = learner()
    refused = []
    school.refuses = lambda folder: not refused and (refused.append(folder.name) or True)
    stack.start_episodes(learner="/learner")
    stack.run(Mode.PRACTICE, episodes=3, seed=1)
    stack.until(lambda: len(school.taken) == 2, "the two that are taken")
    stack.until(lambda: [folder.name for folder in stack.episodes()] == refused, "the refused one alone")
    stack.until(lambda: "3 versions old" in stack.log("episodes"), "the learner's words in the log")
