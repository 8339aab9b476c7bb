"""What practice waits for before its first episode, and what it does not wait for."""

import pytest

from efm_core.summary import Mode
from efm_episode_node.learner_watch import LearnerWatch


class Bench:
    def __init__(self, name="/learner"):
        self.time, self.warnings = 100.0, []
        self.watch = LearnerWatch(name, 60.0, self.warnings.append, lambda: self.time)


@pytest.fixture
def bench():
    return Bench()


def test_practice_waits_for_the_learner_and_for_its_policy(bench):
    bench.watch.begin(Mode.PRACTICE)
    assert "waits at most 60 s for the learner /learner" in bench.watch.why()
    bench.watch.heard(True, "", "newer")
    assert "the policy node to take the learner's bundle newer" in bench.watch.why()
    bench.watch.taken("policy", "stage1")
    bench.watch.taken("reward", "reward0")
    assert "bundle newer" in bench.watch.why(), "its episodes would be refused as stale"
    bench.watch.taken("policy", "newer")
    assert bench.watch.why() == "" and bench.warnings == []


def test_a_later_bundle_of_the_learner_holds_nobody_up(bench):
    bench.watch.begin(Mode.PRACTICE)
    bench.watch.heard(True, "", "b0")
    bench.watch.taken("policy", "b0")
    assert bench.watch.why() == ""
    bench.watch.heard(True, "", "b1")
    assert bench.watch.why() == ""


def test_without_a_learner_practice_begins_after_the_deadline_and_says_what_becomes_of_its_episodes(bench):
    bench.watch.begin(Mode.PRACTICE)
    bench.time += 59.0
    assert bench.watch.why()
    bench.time += 1.0
    assert bench.watch.why() == "" and bench.watch.why() == ""
    (words,) = bench.warnings
    assert "waited 60 s for the learner /learner" in words and "kept in the spool" in words


def test_the_time_is_counted_from_the_first_run_of_practice(bench):
    bench.watch.begin(Mode.EVALUATE)
    bench.time += 600.0
    bench.watch.begin(Mode.PRACTICE)
    assert bench.watch.why() and bench.warnings == []


def test_a_learner_that_dies_after_the_beginning_holds_nobody_up(bench):
    bench.watch.begin(Mode.PRACTICE)
    bench.watch.heard(False, "its buffer is full", "")
    assert bench.watch.why() == "the learner takes no episodes now: its buffer is full"
    bench.watch.lost()
    assert bench.watch.why() == "" and not bench.watch.is_there


def test_a_robot_without_a_learner_waits_for_nobody():
    bench = Bench(name="")
    bench.watch.begin(Mode.PRACTICE)
    assert bench.watch.why() == ""
