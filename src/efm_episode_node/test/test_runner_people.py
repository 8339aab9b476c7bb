"""The state machine of episodes: people, the learner, the detector and the world end, pause and refuse."""

import threading
import time
from dataclasses import replace

import pytest
from runner_robot import (
    PATIENT,
    PERIOD_NS,
    detected,
    done,
    ends,
    in_background,
    make,
    run,
    says,
    until,
)

from efm_core.errors import BadRequest, Reason, WaitTimeout
from efm_core.summary import Actor, EndReason, Mode, Outcome
from efm_episode_node.episode_watch import WatchLimits
from efm_episode_node.run_types import (
    ActEnded,
    Mark,
    Phase,
    RunRequest,
    Stepped,
    TruthSeen,
    Wake,
)


@pytest.mark.parametrize(
    ("mark", "outcome"), [(Mark.SUCCESS, Outcome.SUCCESS), (Mark.FAILURE, Outcome.FAILURE)]
)
def test_a_person_can_end_an_episode_with_a_mark(mark, outcome):
    robot = make(script=[says(mark)])
    result = run(robot)
    assert (robot.kept[0].end_reason, robot.kept[0].outcome) == (EndReason.PERSON, outcome)
    assert result.episodes == 1


def test_a_mark_ends_the_episode_at_that_moment_although_its_actor_stops_later():
    """Episodes of a person at a real robot ended with a picture of two seconds later."""
    robot = make(script=[says(Mark.SUCCESS)])
    stop = robot.cancel_act

    def stop_late(ticket):
        robot.newest += 20 * PERIOD_NS
        stop(ticket)

    robot.cancel_act = stop_late
    run(robot)
    assert robot.kept[0].stamp_ns == robot.kept[0].start_ns + 3 * PERIOD_NS


def test_a_success_that_is_marked_before_the_first_step_is_discarded():
    """A teleop node that saw nothing, and a thumb on the button: an episode of no step once counted."""

    def at_once(robot, request, ticket):
        robot.runner.events.put(Mark.SUCCESS)

    robot = make(script=[at_once, says(Mark.SUCCESS)])
    assert run(robot).episodes == 1
    assert [summary.steps for summary in robot.kept] == [3]


def test_steps_in_which_the_actor_held_still_are_not_waited_for():
    """An actor counts them in its result; the episode does not, and waited for them in vain."""

    def story(robot, request, ticket):
        robot.runner.events.put(Stepped(robot.now_ns, request.episode_id, "b1", moved=False))
        robot.now_ns += PERIOD_NS
        for _ in range(3):
            robot.step(request)
        robot.runner.events.put(ActEnded(ticket, Reason.OK, Outcome.SUCCESS, 4))

    limits = WatchLimits(stall_s=60.0, settle_s=60.0, behind_s=60.0)
    robot = make(replace(PATIENT, watch=limits), script=[story])
    began = time.monotonic()
    run(robot)
    assert robot.kept[0].steps == 3
    assert time.monotonic() - began < limits.behind_s


def test_a_discarded_episode_leaves_nothing_behind_and_does_not_count():
    robot = make(script=[says(Mark.DISCARD), done(4)])
    result = run(robot, seed=3)
    assert [summary.outcome for summary in robot.finished] == [Outcome.DISCARDED, Outcome.SUCCESS]
    assert (result.episodes, len(robot.kept), robot.aborted) == (1, 1, 1)
    assert [seed for seed, _ in robot.scenes] == [3, 3]


def test_safety_ends_an_episode_as_what_it_is():
    robot = make(script=[ends(Reason.LIMIT, "the arm is out of bounds")])
    run(robot)
    assert (robot.kept[0].end_reason, robot.kept[0].message) == (EndReason.SAFETY, "the arm is out of bounds")


def test_a_camera_that_stops_is_a_fault_and_not_a_failure_of_the_policy():
    robot = make(script=[ends(Reason.STALE_INPUT, "camera 'top' stopped"), done(3)])
    assert run(robot).episodes == 1
    assert robot.kept[0].end_reason is EndReason.FAULT
    assert "camera 'top' stopped" in robot.kept[0].message


def test_the_estop_ends_the_episode_and_holds_the_next_one_back_until_released():
    robot = make(script=[says(), done(2)])
    robot.runner.controls.estop = False
    result = in_background(robot, episodes=2)
    until(lambda: robot.runner.progress.phase is Phase.ACTING, "acting")
    robot.runner.controls.estop = True
    robot.runner.events.put(Wake())
    until(lambda: robot.runner.progress.phase is Phase.PAUSED, "a pause")
    assert "e-stop" in robot.runner.progress.message
    assert robot.kept[0].end_reason is EndReason.SAFETY
    robot.runner.controls.estop = False
    assert result().episodes == 2


def test_a_person_pauses_between_episodes_and_lets_go_on():
    robot = make(default=done(2))
    robot.runner.controls.paused = True
    result = in_background(robot, episodes=1)
    until(lambda: robot.runner.progress.phase is Phase.PAUSED, "a pause")
    assert "paused by a person" in robot.runner.progress.message and not robot.acts
    robot.runner.controls.paused = False
    assert result().episodes == 1


def test_practice_pauses_while_the_learner_takes_nothing_and_collection_does_not():
    robot = make(default=done(2))
    robot.runner.controls.learner_pauses = "the learner takes no episodes now: its buffer is full"
    assert run(robot, Mode.COLLECT).episodes == 1
    robot.default = detected(after=6)
    result = in_background(robot, mode=Mode.PRACTICE)
    until(lambda: robot.runner.progress.phase is Phase.PAUSED, "a pause")
    assert "buffer is full" in robot.runner.progress.message
    robot.runner.controls.learner_pauses = ""
    assert result().episodes == 1


def test_a_full_spool_pauses_the_run_with_clear_words_until_there_is_room():
    robot = make(default=done(2), full="spool /data: 9 of 9 bytes are used; start the learner")
    result = in_background(robot)
    until(lambda: robot.runner.progress.phase is Phase.PAUSED, "a pause")
    assert "start the learner" in robot.runner.progress.message
    robot.full = ""
    assert result().episodes == 1


def test_a_detector_that_fires_right_after_every_reset_stops_practice_and_teaches_nothing():
    robot = make(default=detected(after=1, held=2))
    result = in_background(robot, mode=Mode.PRACTICE, episodes=10)
    until(lambda: robot.runner.progress.phase is Phase.PAUSED, "a pause")
    assert len(robot.acts) == 3
    assert robot.kept == [], "not one of them may reach the learner"
    assert "3 episodes in a row" in robot.runner.progress.message
    assert "threshold" in robot.runner.progress.message
    robot.default = detected(after=8)
    robot.runner.controls.paused = False
    assert result().episodes == 10
    assert len(robot.kept) == 10


def test_an_evaluation_keeps_what_the_detector_says_at_once():
    robot = make(default=detected(after=1))
    result = run(robot, Mode.EVALUATE, episodes=4, seed=1)
    assert (result.episodes, result.successes, len(robot.kept)) == (4, 4, 4)


def test_a_cancel_ends_the_run_at_once_and_drops_the_cut_episode():
    robot = make(script=[done(3), says()])
    result = in_background(robot, episodes=0)
    until(lambda: len(robot.kept) == 1 and robot.runner.progress.phase is Phase.ACTING, "the second episode")
    robot.runner.controls.cancelled = True
    robot.runner.events.put(Wake())
    ended = result()
    assert (ended.reason, ended.episodes) == (Reason.CANCELLED, 1)
    assert robot.cancelled == [2] and robot.aborted == 1
    assert robot.finished[-1].end_reason is EndReason.CANCELLED
    assert robot.announced[-1] == ""
    assert robot.runner.progress.phase is Phase.IDLE


def test_evaluation_may_end_at_the_worlds_own_success():
    def story(robot, request, ticket):
        robot.runner.events.put(TruthSeen(robot.now_ns, True))  # Where it stood before anybody moved.
        for _ in range(4):
            robot.step(request)
        robot.runner.events.put(TruthSeen(robot.now_ns, True))
        robot.step(request)

    robot = make(script=[story])
    run(robot, Mode.EVALUATE, end_on_truth=True, seed=1)
    assert (robot.kept[0].end_reason, robot.kept[0].steps) == (EndReason.TRUTH, 4)


@pytest.mark.parametrize("mode", [Mode.COLLECT, Mode.PRACTICE])
def test_truth_is_refused_wherever_somebody_may_learn_from_it(mode):
    with pytest.raises(BadRequest, match="end_on_truth: expected mode EVALUATE"):
        RunRequest(mode=mode, actor="policy", max_steps=5, end_on_truth=True)


@pytest.mark.parametrize("mode", [Mode.COLLECT, Mode.PRACTICE])
def test_truth_that_is_heard_all_the_same_ends_nothing(mode):
    story = [says(TruthSeen(10**12, True), Mark.FAILURE)]
    robot = make(script=story)
    run(robot, mode)
    assert robot.kept[0].end_reason is EndReason.PERSON


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": Mode.UNSET, "actor": "policy"}, "mode: expected"),
        ({"mode": Mode.COLLECT, "actor": "exprt"}, "did you mean 'expert'"),
        ({"mode": Mode.PRACTICE, "actor": "expert"}, "expected policy in PRACTICE"),
        ({"mode": Mode.COLLECT, "actor": "expert", "instructions": ("a", " ")}, "found an empty one"),
        ({"mode": Mode.COLLECT, "actor": "policy", "temperature": float("nan")}, "finite temperature"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(options, words):
    with pytest.raises(BadRequest, match=words):
        RunRequest(max_steps=5, **options)


def test_a_person_confirms_a_reset_in_time_or_the_run_says_whom_it_waited_for():
    robot = make()
    runner = robot.runner
    waiting = threading.Thread(target=lambda: runner.wait_for_person("clear the table", 20), daemon=True)
    waiting.start()
    until(lambda: runner.progress.phase is Phase.WAITING, "the prompt")
    assert runner.progress.message == "clear the table"
    runner.events.put(Mark.RESET_DONE)
    waiting.join(30)
    assert not waiting.is_alive()
    with pytest.raises(WaitTimeout, match="clear the table"):
        runner.wait_for_person("clear the table", 0.05)


def test_whoever_commands_from_outside_is_recorded_to_the_greatest_length():
    robot = make()
    result = in_background(robot, actor="external", max_steps=5)
    until(lambda: robot.recording, "the recording")
    request = type("Request", (), {"episode_id": ""})
    for _ in range(7):
        robot.step(request)
    assert result().episodes == 1
    summary = robot.kept[0]
    assert (summary.actor, summary.end_reason) == (Actor.EXTERNAL, EndReason.MAX_STEPS)
    assert not robot.acts


def test_whoever_commands_without_a_pause_is_cut_off_at_the_greatest_length():
    robot = make()
    result = in_background(robot, actor="external", max_steps=5)
    until(lambda: robot.recording, "the recording")
    for _ in range(200):  # The command comes right after the observation that it answers.
        robot.newest = robot.now_ns
        robot.runner.events.put(Stepped(robot.now_ns, ""))
        robot.now_ns += PERIOD_NS
        time.sleep(0.002)
        if robot.kept:
            break
    assert result().episodes == 1
    assert (robot.kept[0].steps, robot.kept[0].end_reason) == (5, EndReason.MAX_STEPS)


def test_instructions_are_drawn_by_the_episodes_seed():
    texts = tuple(f"task {index}" for index in range(5))
    first, second = make(default=done(2)), make(default=done(2))
    run(first, episodes=8, seed=11, instructions=texts)
    run(second, episodes=8, seed=11, instructions=texts)
    assert first.scenes == second.scenes
    assert len({text for _, text in first.scenes}) > 1
