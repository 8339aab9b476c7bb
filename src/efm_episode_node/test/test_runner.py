"""The state machine of episodes, with a fake robot: no ROS, no files, and every wait has an end."""

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from efm_core.errors import BadRequest, EpisodeInvalid, Reason, SpoolFull, WaitTimeout
from efm_core.summary import Actor, EndReason, Mode, Outcome
from efm_episode_node.episode_watch import WatchLimits
from efm_episode_node.ports import RunnerSettings
from efm_episode_node.run_types import (
    ActEnded,
    Fault,
    Judged,
    Mark,
    Phase,
    RunRequest,
    Scene,
    Stepped,
    TruthSeen,
    Wake,
)
from efm_episode_node.runner import EpisodeRunner

PERIOD_NS = 100_000_000
FAST = RunnerSettings(
    ready_s=0.6, cancel_s=0.3, fault_pause_s=0.01, watch=WatchLimits(stall_s=0.4, settle_s=0.4)
)


@dataclass
class FakeRobot:
    """Station, recording and shelf in one: a robot that answers `steps` observations and is then done.

    `script` says what happens in the episode of each attempt, as a function of this fake and the episode's
    id.
    """

    script: list = field(default_factory=list)
    default: object = None
    now_ns: int = 1_000_000_000
    newest: int = 0
    acts: list = field(default_factory=list)
    scenes: list = field(default_factory=list)
    announced: list = field(default_factory=list)
    cancelled: list = field(default_factory=list)
    kept: list = field(default_factory=list)
    aborted: int = 0
    recording: str = ""
    absent: str = ""
    full: str = ""
    reset_error: list = field(default_factory=list)
    finish_error: list = field(default_factory=list)
    quiet_cancel: bool = False
    disk: list | None = None

    # Station
    def missing(self, request):
        return self.absent

    def reset(self, seed, instruction):
        if self.reset_error:
            raise self.reset_error.pop(0)
        self.now_ns += PERIOD_NS
        self.newest = self.now_ns
        self.scenes.append((seed, instruction))
        return Scene(self.now_ns, seed or 77, instruction or "reach the goal")

    def announce(self, episode_id, instruction, start_ns):
        self.announced.append(episode_id)

    def act(self, request):
        self.acts.append(request)
        ticket = len(self.acts)
        story = self.script.pop(0) if self.script else self.default
        story(self, request, ticket)
        return ticket

    def cancel_act(self, ticket):
        self.cancelled.append(ticket)
        if not self.quiet_cancel:
            self.runner.events.put(ActEnded(ticket, Reason.CANCELLED, bundle_id="b1", version=4))

    # Recording
    def begin(self, episode_id, start_ns, mode):
        self.recording = episode_id

    def newest_ns(self):
        return self.newest

    def finish(self, summary):
        self.recording = ""
        closing = Future()
        if self.finish_error:
            closing.set_exception(self.finish_error.pop(0))
        elif self.disk is None:
            closing.set_result(Path(summary.episode_id))
        else:
            self.disk.append(closing)
        return closing

    def abort(self):
        self.aborted += bool(self.recording)
        self.recording = ""

    # Shelf
    def require_space(self, mode):
        if self.full:
            raise SpoolFull(self.full)

    def keep(self, summary, folder):
        self.kept.append(summary)

    # What stories are made of
    def step(self, request, judged=None, held=0, success=False, answer=True):
        self.runner.events.put(Stepped(self.now_ns, request.episode_id, "b1"))
        if judged is not None:
            self.judge(request, judged, held, success)
        self.now_ns += PERIOD_NS
        if answer:
            self.newest = self.now_ns

    def judge(self, request, judged, held=0, success=False):
        self.runner.events.put(Judged(self.now_ns, request.episode_id, "r1", judged, held, success))


def done(steps, outcome=Outcome.SUCCESS):
    """The actor takes some steps and claims an outcome."""

    def story(robot, request, ticket):
        for _ in range(steps):
            robot.step(request)
        robot.runner.events.put(ActEnded(ticket, Reason.OK, outcome, steps))

    return story


def detected(after, judged=1.0, held=1, overrun=3):
    """The detector fires at observation `after`; the actor runs on until it is cancelled."""

    def story(robot, request, ticket):
        for index in range(after):
            robot.step(request, judged=20.0 - index)
        robot.step(request, judged=judged, held=held, success=True)
        for _ in range(overrun):
            robot.step(request, judged=judged, held=held, success=True)

    return story


def ends(reason, message=""):
    return lambda robot, request, ticket: robot.runner.events.put(ActEnded(ticket, reason, message=message))


def says(*events):
    """Three steps, then the given events."""

    def story(robot, request, ticket):
        for _ in range(3):
            robot.step(request)
        for event in events:
            robot.runner.events.put(event)

    return story


def silent(robot, request, ticket):
    """Nothing ever happens."""


@pytest.fixture
def make():
    def make_runner(settings=FAST, **options):
        robot = FakeRobot(**options)
        told = []
        robot.runner = EpisodeRunner(
            robot, robot, robot, settings, told.append, "robot_1", np.random.default_rng(1)
        )
        robot.told = told
        robot.finished = []
        return robot

    return make_runner


def run(robot, mode=Mode.COLLECT, actor=None, episodes=1, max_steps=10, **options):
    actor = actor or ("expert" if mode is Mode.COLLECT else "policy")
    request = RunRequest(mode=mode, actor=actor, episodes=episodes, max_steps=max_steps, **options)
    return robot.runner.run(request, robot.finished.append)


def in_background(robot, **options):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(robot, **options)), daemon=True)
    thread.start()

    def result():
        thread.join(30)
        assert not thread.is_alive(), "the run did not end"
        return results[0]

    return result


def until(condition, what):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def test_demonstrations_are_recorded_until_the_wanted_number_is_there(make):
    robot = make(default=done(6))
    result = run(robot, episodes=3, seed=5)
    assert (result.reason, result.episodes, result.successes) == (Reason.OK, 3, 3)
    assert [seed for seed, _ in robot.scenes] == [5, 6, 7]
    assert result.episode_ids == tuple(summary.episode_id for summary in robot.kept)
    summary = robot.kept[0]
    assert (summary.steps, summary.end_reason, summary.actor) == (6, EndReason.ACTOR_DONE, Actor.EXPERT)
    assert summary.stamp_ns - summary.start_ns == 6 * PERIOD_NS
    assert robot.announced[:2] == [summary.episode_id, ""]


def test_the_demonstrators_own_claim_is_the_outcome(make):
    robot = make(script=[done(4, Outcome.FAILURE), done(4, Outcome.UNSET), done(10, Outcome.UNSET)])
    result = run(robot, episodes=3)
    assert [summary.outcome for summary in robot.kept] == [Outcome.FAILURE] * 3
    assert [summary.end_reason.name for summary in robot.kept] == ["ACTOR_DONE", "ACTOR_DONE", "MAX_STEPS"]
    assert result.successes == 0


def test_success_counts_at_the_observation_that_was_judged_and_later_steps_are_trimmed(make):
    robot = make(script=[detected(after=5)])
    result = run(robot, Mode.PRACTICE)
    summary = robot.kept[0]
    assert (summary.end_reason, summary.outcome) == (EndReason.SUCCESS_DETECTED, Outcome.SUCCESS)
    assert summary.stamp_ns == summary.start_ns + 5 * PERIOD_NS
    assert summary.steps == 5
    assert (summary.steps_to_go_first, summary.steps_to_go_last) == (20.0, 1.0)
    assert (summary.policy_bundle_id, summary.policy_version, summary.reward_bundle_id) == ("b1", 4, "r1")
    assert robot.cancelled == [1] and result.successes == 1


def test_the_last_observation_of_the_greatest_length_is_still_judged(make):
    def story(robot, request, ticket):
        for index in range(request.max_steps):
            robot.step(request, judged=20.0 - index)
        robot.runner.events.put(ActEnded(ticket, Reason.OK, Outcome.UNSET, request.max_steps))
        robot.judge(request, 0.5, held=1, success=True)

    robot = make(script=[story])
    run(robot, Mode.PRACTICE, max_steps=8)
    assert robot.kept[0].end_reason is EndReason.SUCCESS_DETECTED
    assert robot.kept[0].steps == 8


def test_an_episode_without_success_ends_at_the_greatest_length(make):
    def story(robot, request, ticket):
        for index in range(request.max_steps):
            robot.step(request, judged=20.0 - index)
        robot.runner.events.put(ActEnded(ticket, Reason.OK, Outcome.UNSET, request.max_steps))
        robot.judge(request, 7.0)

    robot = make(script=[story])
    run(robot, Mode.PRACTICE, max_steps=8)
    summary = robot.kept[0]
    assert (summary.end_reason, summary.outcome) == (EndReason.MAX_STEPS, Outcome.FAILURE)
    assert (summary.steps, summary.steps_to_go_last) == (8, 7.0)


def test_a_silent_reward_node_is_a_fault_and_not_a_failed_episode(make):
    robot = make(script=[done(4), detected(after=6)])
    result = run(robot, Mode.PRACTICE)
    assert [summary.end_reason for summary in robot.kept] == [EndReason.FAULT, EndReason.SUCCESS_DETECTED]
    assert "reward node" in robot.kept[0].message and "judged 0" in robot.kept[0].message
    assert (result.episodes, result.successes) == (1, 1)


def test_a_reward_node_that_falls_silent_ends_the_episode_long_before_its_greatest_length(make):
    robot = make(script=[silent, detected(after=6)])
    result = in_background(robot, mode=Mode.PRACTICE, max_steps=10_000)
    until(lambda: robot.acts, "the act")
    while not robot.kept:
        robot.step(robot.acts[0])
        time.sleep(0.01)
    assert "judgement of the reward node" in robot.kept[0].message
    assert result().episodes == 1


def test_judgements_of_another_episode_do_not_end_this_one(make):
    def story(robot, request, ticket):
        robot.runner.events.put(Judged(robot.now_ns, "another", "r1", 0.1, 3, True))
        robot.runner.events.put(Judged(robot.now_ns - PERIOD_NS, request.episode_id, "r1", 0.1, 3, True))
        detected(after=4)(robot, request, ticket)

    robot = make(script=[story])
    run(robot, Mode.PRACTICE)
    assert robot.kept[0].steps == 4


def test_an_actor_that_falls_silent_ends_the_episode_as_a_fault_and_the_run_goes_on(make):
    robot = make(script=[says(), done(5)], quiet_cancel=True)
    result = run(robot, episodes=1, seed=9)
    fault, good = robot.kept
    assert (fault.end_reason, fault.outcome) == (EndReason.FAULT, Outcome.FAILURE)
    assert "after step 3" in fault.message and "did not confirm" in fault.message
    assert [seed for seed, _ in robot.scenes] == [9, 9], "the faulty episode is repeated with its seed"
    assert result.episode_ids == (good.episode_id,)


def test_a_fault_of_the_recording_ends_the_episode(make):
    robot = make(script=[says(Fault("the disk is gone")), done(5)])
    run(robot)
    assert robot.kept[0].message == "the disk is gone"


def test_too_many_faults_in_a_row_end_the_run_with_the_last_words(make):
    robot = make(default=ends(Reason.INTERNAL, "broken arm"))
    result = run(robot, episodes=2)
    assert result.reason is Reason.TIMEOUT
    assert "5 faults in a row" in result.message and "broken arm" in result.message
    assert robot.told[-1].phase is Phase.FAULT and "broken arm" in robot.told[-1].message


def test_a_reset_that_fails_now_and_then_is_repeated(make):
    robot = make(default=done(3), reset_error=[WaitTimeout("no answer"), WaitTimeout("no answer")])
    assert run(robot, episodes=2).episodes == 2


def test_an_instruction_that_the_reset_does_not_know_ends_the_run(make):
    robot = make(default=done(3), reset_error=[BadRequest("unknown instruction 'fly'")])
    result = run(robot, instructions=("fly",))
    assert (result.reason, result.message) == (Reason.BAD_REQUEST, "unknown instruction 'fly'")


def test_an_episode_that_cannot_be_closed_is_repeated(make):
    robot = make(default=done(3), finish_error=[EpisodeInvalid("lost"), SpoolFull("full")])
    assert run(robot).episodes == 1
    assert len(robot.acts) == 3


def test_the_next_episode_begins_while_the_last_one_is_still_being_written(make):
    robot = make(default=done(3), disk=[])
    result = in_background(robot, episodes=2, seed=1)
    until(lambda: len(robot.acts) == 2, "the second act")
    assert robot.kept == [], "nothing counts before it is on the disk"
    robot.disk.pop(0).set_result(Path("e1"))
    until(lambda: robot.disk, "the second file")
    assert len(robot.kept) == 1
    robot.disk.pop(0).set_result(Path("e2"))
    assert result().episodes == 2


def test_a_disk_that_fails_while_somebody_acts_ends_the_run_after_the_actor_has_stopped(make):
    robot = make(settings=replace(FAST, fault_limit=1), script=[done(3), says(), silent], disk=[])
    result = in_background(robot, episodes=0, max_steps=10_000)
    until(lambda: len(robot.acts) == 2, "the second act")
    robot.disk.pop(0).set_exception(EpisodeInvalid("the disk is gone"))
    until(lambda: any("repeated later" in progress.message for progress in robot.told), "the words")
    assert robot.runner.progress.phase is Phase.ACTING, "what runs is not touched"
    robot.runner.events.put(Mark.SUCCESS)
    until(lambda: robot.disk, "the second file")
    robot.disk.pop(0).set_result(Path("e2"))
    assert "the disk is gone" in result().message
    assert robot.cancelled == [2] and [summary.steps for summary in robot.kept] == [3]
    assert len(robot.acts) == 2


def test_a_finished_episode_is_handed_over_before_a_person_is_waited_for(make):
    robot = make(default=done(3), disk=[])
    robot.reset = lambda seed, instruction: (
        robot.runner.wait_for_person("clear the table", 20),
        FakeRobot.reset(robot, seed, instruction),
    )[1]
    result = in_background(robot, episodes=2)
    until(lambda: robot.runner.progress.phase is Phase.WAITING, "the first prompt")
    robot.runner.events.put(Mark.RESET_DONE)
    until(lambda: robot.disk, "the first file")
    robot.disk.pop(0).set_result(Path("e1"))
    until(lambda: robot.runner.progress.phase is Phase.WAITING, "the second prompt")
    assert len(robot.kept) == 1 and robot.runner.progress.message == "clear the table"
    robot.runner.events.put(Mark.RESET_DONE)
    until(lambda: robot.disk, "the second file")
    robot.disk.pop(0).set_result(Path("e2"))
    assert result().episodes == 2


def test_a_run_that_is_stopped_while_an_episode_is_being_written_keeps_it(make):
    robot = make(script=[done(3), says()], disk=[])
    result = in_background(robot, episodes=0)
    until(lambda: len(robot.acts) == 2, "the second act")
    robot.runner.controls.cancelled = True
    robot.runner.events.put(Wake())
    until(lambda: robot.aborted, "the end of the cut episode")
    robot.disk.pop(0).set_result(Path("e1"))
    ended = result()
    assert (ended.reason, ended.episodes, len(robot.kept)) == (Reason.CANCELLED, 1, 1)


def test_an_episode_that_was_lost_on_the_disk_is_repeated_with_its_seed(make):
    robot = make(default=done(3), finish_error=[EpisodeInvalid("lost")])
    result = run(robot, episodes=3, seed=5)
    assert result.episodes == 3
    assert [seed for seed, _ in robot.scenes] == [5, 6, 5, 7]
    assert len({summary.seed for summary in robot.kept}) == 3


def test_an_actor_that_is_not_ready_yet_is_asked_again(make):
    robot = make(script=[ends(Reason.BUNDLE_UNKNOWN, "no bundle yet"), ends(Reason.BUSY), done(4)])
    result = run(robot)
    assert result.episodes == 1
    assert len(robot.kept) == 1, "what never began is not an episode"
    assert any("no bundle yet" in progress.message for progress in robot.told)


def test_an_actor_that_never_gets_ready_ends_the_run_with_its_words(make):
    robot = make(default=ends(Reason.NOT_ACTIVE, "activate it first"))
    result = run(robot)
    assert result.reason is Reason.TIMEOUT and "activate it first" in result.message


def test_what_is_missing_is_named_with_the_deadline_and_then_ends_the_run(make):
    robot = make(absent="action policy/act (is the policy node running and active?)")
    result = run(robot, Mode.PRACTICE)
    assert result.reason is Reason.TIMEOUT and "policy/act" in result.message
    waiting = [progress.message for progress in robot.told if progress.phase is Phase.RESETTING]
    assert "policy/act" in waiting[0] and "at most 0.6 s" in waiting[0]


@pytest.mark.parametrize(
    ("mark", "outcome"), [(Mark.SUCCESS, Outcome.SUCCESS), (Mark.FAILURE, Outcome.FAILURE)]
)
def test_a_person_can_end_an_episode_with_a_mark(make, mark, outcome):
    robot = make(script=[says(mark)])
    result = run(robot)
    assert (robot.kept[0].end_reason, robot.kept[0].outcome) == (EndReason.PERSON, outcome)
    assert result.episodes == 1


def test_a_discarded_episode_leaves_nothing_behind_and_does_not_count(make):
    robot = make(script=[says(Mark.DISCARD), done(4)])
    result = run(robot, seed=3)
    assert [summary.outcome for summary in robot.finished] == [Outcome.DISCARDED, Outcome.SUCCESS]
    assert (result.episodes, len(robot.kept), robot.aborted) == (1, 1, 1)
    assert [seed for seed, _ in robot.scenes] == [3, 3]


def test_safety_ends_an_episode_as_what_it_is(make):
    robot = make(script=[ends(Reason.LIMIT, "the arm is out of bounds")])
    run(robot)
    assert (robot.kept[0].end_reason, robot.kept[0].message) == (EndReason.SAFETY, "the arm is out of bounds")


def test_a_camera_that_stops_is_a_fault_and_not_a_failure_of_the_policy(make):
    robot = make(script=[ends(Reason.STALE_INPUT, "camera 'top' stopped"), done(3)])
    assert run(robot).episodes == 1
    assert robot.kept[0].end_reason is EndReason.FAULT
    assert "camera 'top' stopped" in robot.kept[0].message


def test_the_estop_ends_the_episode_and_holds_the_next_one_back_until_released(make):
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


def test_a_person_pauses_between_episodes_and_lets_go_on(make):
    robot = make(default=done(2))
    robot.runner.controls.paused = True
    result = in_background(robot, episodes=1)
    until(lambda: robot.runner.progress.phase is Phase.PAUSED, "a pause")
    assert "paused by a person" in robot.runner.progress.message and not robot.acts
    robot.runner.controls.paused = False
    assert result().episodes == 1


def test_practice_pauses_while_the_learner_takes_nothing_and_collection_does_not(make):
    robot = make(default=done(2))
    robot.runner.controls.learner_pauses = "the learner takes no episodes now: its buffer is full"
    assert run(robot, Mode.COLLECT).episodes == 1
    robot.default = detected(after=6)
    result = in_background(robot, mode=Mode.PRACTICE)
    until(lambda: robot.runner.progress.phase is Phase.PAUSED, "a pause")
    assert "buffer is full" in robot.runner.progress.message
    robot.runner.controls.learner_pauses = ""
    assert result().episodes == 1


def test_a_full_spool_pauses_the_run_with_clear_words_until_there_is_room(make):
    robot = make(default=done(2), full="spool /data: 9 of 9 bytes are used; start the learner")
    result = in_background(robot)
    until(lambda: robot.runner.progress.phase is Phase.PAUSED, "a pause")
    assert "start the learner" in robot.runner.progress.message
    robot.full = ""
    assert result().episodes == 1


def test_a_detector_that_fires_right_after_every_reset_stops_practice_and_teaches_nothing(make):
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


def test_an_evaluation_keeps_what_the_detector_says_at_once(make):
    robot = make(default=detected(after=1))
    result = run(robot, Mode.EVALUATE, episodes=4, seed=1)
    assert (result.episodes, result.successes, len(robot.kept)) == (4, 4, 4)


def test_a_cancel_ends_the_run_at_once_and_drops_the_cut_episode(make):
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


def test_evaluation_may_end_at_the_worlds_own_success(make):
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
def test_truth_that_is_heard_all_the_same_ends_nothing(make, mode):
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


def test_a_person_confirms_a_reset_in_time_or_the_run_says_whom_it_waited_for(make):
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


def test_whoever_commands_from_outside_is_recorded_to_the_greatest_length(make):
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


def test_whoever_commands_without_a_pause_is_cut_off_at_the_greatest_length(make):
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


def test_instructions_are_drawn_by_the_episodes_seed(make):
    texts = tuple(f"task {index}" for index in range(5))
    first, second = make(default=done(2)), make(default=done(2))
    run(first, episodes=8, seed=11, instructions=texts)
    run(second, episodes=8, seed=11, instructions=texts)
    assert first.scenes == second.scenes
    assert len({text for _, text in first.scenes}) > 1
