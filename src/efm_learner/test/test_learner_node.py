"""The learner over real DDS: episodes come in parts, bundles go out, and it may die at any moment."""

from __future__ import annotations

import contextlib
import json
import signal

import learner_cell
import practised
import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

from efm_core.errors import EXIT_REFUSED, Reason
from efm_msgs.msg import LearnerStatus
from efm_ros.testing import Spinner

WAITING, STOPPED = LearnerStatus.PHASE_WAITING, LearnerStatus.PHASE_STOPPED


@pytest.fixture
def spinner(ros):
    spinner = Spinner()
    yield spinner
    spinner.close()


@pytest.fixture
def robot(spinner, tmp_path):
    robot = learner_cell.Robot(spinner, tmp_path)
    yield robot
    robot.close()


@pytest.fixture
def learner(spinner, tmp_path, bundles, exporter):
    """Starts learners in this process, on the run in tmp_path/run; the one before ends in order."""
    nodes = []

    def end():
        while nodes:
            node = nodes.pop()
            node.stop_and_release()
            spinner.executor.remove_node(node)
            node.destroy_node()

    def start(folder="run", **changes):
        end()
        node = learner_cell.node_of(learner_cell.parameters(tmp_path / folder, bundles, **changes))
        node._exporter = exporter
        spinner.executor.add_node(node)
        nodes.append(node)
        return node

    start.end = end
    yield start
    end()


@pytest.fixture
def process(spinner, tmp_path, bundles):
    """Starts learners as processes; those that are left over are killed."""
    started = []

    def start(**changes):
        values = learner_cell.parameters(tmp_path / "run", bundles, **changes)
        started.append(learner_cell.Process(values, spinner))
        return started[-1]

    yield start
    for item in started:
        item.end()


def change(robot, transition):
    """Takes the learner to another lifecycle state."""
    client = robot.node.create_client(ChangeState, "/learner/learner/change_state")
    request = ChangeState.Request(transition=Transition(id=transition))
    assert robot.spinner.call(client, request).success


def test_episodes_become_a_bundle_that_a_robot_can_fetch_and_act_with(learner, robot, bundles):
    learner()
    robot.until("a status", lambda s: s.phase == WAITING and s.wanted_steps == 24)
    robot.spinner.until(lambda: robot.announced, "the Stage-1 policy")
    assert robot.announced[0].bundle_id == bundles["policy"].id
    first = robot.fetch(robot.announced[0])
    robot.practise(first, 1)
    robot.practise(first, 2)
    robot.until("an iteration", lambda s: s.iteration == 1 and s.phase == WAITING)
    robot.spinner.until(lambda: not robot.spool.pending(), "the spool to empty")
    robot.spinner.until(lambda: len(robot.announced) == 2, "the new policy")
    second = robot.fetch(robot.announced[1])
    assert (second.manifest.version, second.manifest.parent_id) == (1, first.id)
    status = robot.status
    assert (status.episodes, status.steps, status.refused, status.updates) == (2, 24, 0, 2)
    assert (status.bundle_id, status.version, status.accepting) == (second.id, 1, True)
    assert (status.mean_steps, status.detected_success, status.buffered_steps) == (12.0, 0.0, 0)
    assert status.kl > 0
    assert 0 < status.idle_share <= 1
    robot.practise(second, 3)
    robot.practise(second, 4)
    robot.until("the second iteration", lambda s: s.iteration == 2)
    lines = (robot.folder / "run" / "metrics.jsonl").read_text().splitlines()
    for spent in map(json.loads, lines):
        assert 0 < spent["idle_s"] + spent["ingest_s"] < spent["collect_s"]
        assert spent["update_s"] > 0 < spent["export_s"]


def test_late_comers_hear_the_newest_bundle_and_status(learner, robot, bundles):
    learner()
    for number in (1, 2):
        robot.practise(bundles["policy"], number)
    robot.until("an iteration", lambda s: s.iteration == 1)
    robot.listen()
    robot.spinner.until(lambda: len(robot.announced) == 2, "both announcements")
    assert [info.version for info in robot.announced] == [0, 1]
    robot.until("the status", lambda s: s.iteration == 1)


def test_refused_episodes_leave_the_robot_and_are_counted(learner, robot, bundles):
    learner()
    robot.practise(bundles["policy"], 1, temperature=0.0)
    robot.until("a refusal", lambda s: s.refused == 1)
    robot.spinner.until(lambda: not robot.spool.pending(), "the spool to empty")
    assert robot.status.episodes == 0


def test_a_full_buffer_pauses_robots_and_an_empty_one_lets_them_go_on(learner, robot, bundles, spinner):
    node = learner(autostart=False)
    change(robot, Transition.TRANSITION_CONFIGURE)
    robot.until("room", lambda s: s.accepting)
    for number in range(6):
        robot.practise(bundles["policy"], number)
    robot.until("a pause", lambda s: not s.accepting)
    spinner.until(lambda: any(reason is Reason.PAUSED for _, reason, _ in robot.told), "a robot told to wait")
    assert robot.spool.pending()
    change(robot, Transition.TRANSITION_ACTIVATE)
    robot.until("three iterations", lambda s: s.iteration == 3 and s.accepting)
    robot.spinner.until(lambda: not robot.spool.pending(), "the spool to empty")
    assert robot.status.episodes == 6
    assert node.is_active


def test_episodes_that_arrived_and_were_not_learned_from_are_taken_after_a_restart(
    learner, robot, bundles, tmp_path
):
    learner()
    robot.practise(bundles["policy"], 1)
    robot.until("one episode", lambda s: s.episodes == 1)
    learner.end()
    practised.record_episode(tmp_path / "run/episodes", bundles["policy"], 2)  # Received, not yet offered.
    robot.practise(bundles["policy"], 3)  # Waits in the spool.
    learner()
    robot.until("an iteration of all", lambda s: s.iteration == 1 and s.episodes == 3)
    assert robot.status.buffered_steps == 12


def test_when_the_guard_stops_practice_the_best_bundle_is_announced_last(learner, robot, bundles):
    learner()
    for number in (1, 2):
        robot.practise(bundles["policy"], number, detected=True)
    robot.spinner.until(lambda: len(robot.announced) == 2, "version 1")
    newest = robot.fetch(robot.announced[1])
    for number in range(3, 13):
        robot.practise(newest, number, steps=1, detected=True)
    robot.until("the end", lambda s: s.phase == STOPPED)
    assert "the detector fires on the start state" in robot.status.guard
    assert not robot.status.accepting
    assert robot.status.bundle_id == robot.status.best_bundle_id == bundles["policy"].id
    robot.spinner.until(lambda: len(robot.announced) == 3, "the best policy")
    assert robot.announced[-1].bundle_id == bundles["policy"].id
    robot.practise(newest, 20)
    robot.spinner.until(lambda: not robot.spool.pending(), "the spool to empty all the same")
    learner()
    robot.until("the same end", lambda s: s.phase == STOPPED)


def test_a_spent_budget_stops_and_a_greater_one_goes_on(learner, robot, bundles):
    learner(iterations=1)
    for number in (1, 2):
        robot.practise(bundles["policy"], number)
    robot.until("the end", lambda s: s.phase == STOPPED)
    assert robot.status.message == "the run's budget is spent"
    assert robot.status.guard == ""
    robot.practise(bundles["policy"], 3)
    robot.practise(bundles["policy"], 4)
    robot.spinner.until(lambda: not robot.spool.pending(), "the spool to empty")
    learner(iterations=2)
    robot.until("another iteration", lambda s: s.iteration == 2)


def test_without_a_verifier_the_status_says_what_the_guard_cannot_see(learner, robot):
    learner(verifier="")
    robot.until("a status", lambda s: "there is no verifier" in s.guard)
    robot.until("episodes to be welcome", lambda s: s.accepting)
    assert robot.status.message == ""


def test_on_a_full_disk_the_learner_rests_and_goes_on_when_there_is_space(
    small_disk, learner, robot, bundles, monkeypatch
):
    monkeypatch.setattr("efm_learner.learner_node.RETRY_S", 0.2)
    learner(autostart=False)
    change(robot, Transition.TRANSITION_CONFIGURE)
    for number in (1, 2):
        practised.record_episode(small_disk / "episodes", bundles["policy"], number)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    change(robot, Transition.TRANSITION_ACTIVATE)
    robot.until("a rest", lambda s: "free some space" in s.message and not s.accepting)
    robot.practise(bundles["policy"], 3)
    robot.spinner.until(lambda: robot.told, "a robot told to wait")
    filler.unlink()
    robot.until("an iteration", lambda s: s.iteration == 1 and s.episodes == 3 and s.accepting)
    assert robot.status.message == ""
    robot.spinner.until(lambda: not robot.spool.pending(), "the spool to empty")


def test_killed_in_the_middle_it_goes_on_and_learns_from_every_episode_once(process, robot, bundles):
    victim = process()
    for number in (1, 2, 3):
        robot.practise(bundles["policy"], number)
    robot.until("an iteration", lambda s: s.iteration == 1 and s.episodes == 3)
    code, _, _ = victim.end(signal.SIGKILL)
    assert code == -signal.SIGKILL
    robot.practise(bundles["policy"], 4)
    assert robot.spool.pending()
    robot.statuses.clear()
    process()
    robot.until("the second iteration", lambda s: s.iteration == 2 and s.episodes == 4)
    assert (robot.status.updates, robot.status.version, robot.status.refused) == (4, 2, 0)
    robot.spinner.until(lambda: not robot.spool.pending(), "the spool to empty")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_told_to_stop_in_the_middle_of_an_iteration_it_ends_soon(process, robot, bundles, number):
    item = process(updates=100_000, batch=12, epochs=100_000)  # One batch, learned from for minutes.
    robot.practise(bundles["policy"], 1)
    robot.until("updates", lambda s: s.phase == LearnerStatus.PHASE_UPDATING)
    code, output, seconds = item.end(number)
    assert code == 0, output
    assert seconds < 60.0  # 2 s on an idle machine; the iteration would take longer.
    assert "Traceback" not in output


def test_bad_parameters_are_refused_with_words_that_help(process):
    code, output, _ = process(gamma=2.0, gama=0.9).end(None)
    assert code == EXIT_REFUSED
    assert "gamma" in output
    assert "did you mean 'gamma'" in output
    assert "Traceback" not in output


def test_a_run_that_another_learner_owns_is_left_alone(process, start):
    start()
    code, output, _ = process().end(None)
    assert code == 1
    assert "expected it free, found it owned by process" in output
    assert "Traceback" not in output
