"""The state machine of episodes: recording, faults, repeated tries; every wait has an end."""

from dataclasses import replace
from pathlib import Path

from runner_robot import (
    IMPATIENT,
    PATIENT,
    PERIOD_NS,
    FakeRobot,
    detected,
    done,
    ends,
    in_background,
    make,
    run,
    says,
    silent,
    until,
)

from efm_core.errors import BadRequest, EpisodeInvalid, Reason, SpoolFull, WaitTimeout
from efm_core.summary import Actor, EndReason, Mode, Outcome
from efm_episode_node.episode_watch import EpisodeWatch, WatchLimits
from efm_episode_node.run_types import (
    ActEnded,
    Fault,
    Judged,
    Mark,
    Phase,
    RunRequest,
    Stepped,
    Wake,
)


def test_demonstrations_are_recorded_until_the_wanted_number_is_there():
    robot = make(default=done(6))
    result = run(robot, episodes=3, seed=5)
    assert (result.reason, result.episodes, result.successes) == (Reason.OK, 3, 3)
    assert [seed for seed, _ in robot.scenes] == [5, 6, 7]
    assert result.episode_ids == tuple(summary.episode_id for summary in robot.kept)
    summary = robot.kept[0]
    assert (summary.steps, summary.end_reason, summary.actor) == (6, EndReason.ACTOR_DONE, Actor.EXPERT)
    assert summary.stamp_ns - summary.start_ns == 6 * PERIOD_NS
    assert robot.announced[:2] == [summary.episode_id, ""]


def test_the_demonstrators_own_claim_is_the_outcome():
    robot = make(script=[done(4, Outcome.FAILURE), done(4, Outcome.UNSET), done(10, Outcome.UNSET)])
    result = run(robot, episodes=3)
    assert [summary.outcome for summary in robot.kept] == [Outcome.FAILURE] * 3
    assert [summary.end_reason.name for summary in robot.kept] == ["ACTOR_DONE", "ACTOR_DONE", "MAX_STEPS"]
    assert result.successes == 0


def test_success_counts_at_the_observation_that_was_judged_and_later_steps_are_trimmed():
    robot = make(script=[detected(after=5)])
    result = run(robot, Mode.PRACTICE)
    summary = robot.kept[0]
    assert (summary.end_reason, summary.outcome) == (EndReason.SUCCESS_DETECTED, Outcome.SUCCESS)
    assert summary.stamp_ns == summary.start_ns + 5 * PERIOD_NS
    assert summary.steps == 5
    assert (summary.steps_to_go_first, summary.steps_to_go_last) == (20.0, 1.0)
    assert (summary.policy_bundle_id, summary.policy_version, summary.reward_bundle_id) == ("b1", 4, "r1")
    assert robot.cancelled == [1] and result.successes == 1


def test_the_last_observation_of_the_greatest_length_is_still_judged():
    def story(robot, request, ticket):
        for index in range(request.max_steps):
            robot.step(request, judged=20.0 - index)
        robot.runner.events.put(ActEnded(ticket, Reason.OK, Outcome.UNSET, request.max_steps))
        robot.judge(request, 0.5, held=1, success=True)

    robot = make(script=[story])
    run(robot, Mode.PRACTICE, max_steps=8)
    assert robot.kept[0].end_reason is EndReason.SUCCESS_DETECTED
    assert robot.kept[0].steps == 8


def test_steps_that_come_after_the_success_and_after_the_result_of_their_actor_count():
    """On a busy machine an episode had 12 steps in one run and 16 in the next."""

    def story(robot, request, ticket):
        stamps = [robot.now_ns + index * PERIOD_NS for index in range(6)]
        steps = [Stepped(stamp_ns, request.episode_id, "b1") for stamp_ns in stamps]
        robot.now_ns = stamps[4]
        robot.judge(request, 1.0, held=1, success=True)
        for event in (steps[0], ActEnded(ticket, Reason.CANCELLED, steps=6), *steps[1:]):
            robot.runner.events.put(event)

    robot = make(script=[story])
    run(robot, Mode.PRACTICE)
    assert robot.kept[0].steps == 4


def test_an_episode_without_success_ends_at_the_greatest_length():
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


def test_a_silent_reward_node_is_a_fault_and_not_a_failed_episode():
    robot = make(settings=IMPATIENT, script=[done(4), detected(after=6)])
    result = run(robot, Mode.PRACTICE)
    assert [summary.end_reason for summary in robot.kept] == [EndReason.FAULT, EndReason.SUCCESS_DETECTED]
    assert "reward node" in robot.kept[0].message and "judged 0" in robot.kept[0].message
    assert (result.episodes, result.successes) == (1, 1)


def test_a_reward_node_that_falls_silent_ends_the_episode_long_before_its_greatest_length():
    clock = [0.0]
    request = RunRequest(mode=Mode.PRACTICE, actor="policy", max_steps=10_000)
    watch = EpisodeWatch(request, "e", 0, WatchLimits(stall_s=0.4), lambda: 0, lambda: clock[0])
    end = None
    while end is None:
        clock[0] += 0.01
        end = watch.take(Stepped(watch.steps * PERIOD_NS, "e", "b1"))
    assert end.reason is EndReason.FAULT and "judgement of the reward node" in end.message
    assert watch.steps == 40


def test_judgements_of_another_episode_do_not_end_this_one():
    def story(robot, request, ticket):
        robot.runner.events.put(Judged(robot.now_ns, "another", "r1", 0.1, 3, True))
        robot.runner.events.put(Judged(robot.now_ns - PERIOD_NS, request.episode_id, "r1", 0.1, 3, True))
        detected(after=4)(robot, request, ticket)

    robot = make(script=[story])
    run(robot, Mode.PRACTICE)
    assert robot.kept[0].steps == 4


def test_an_actor_that_falls_silent_ends_the_episode_as_a_fault_and_the_run_goes_on():
    robot = make(settings=IMPATIENT, script=[says(), done(5)], quiet_cancel=True)
    result = run(robot, episodes=1, seed=9)
    fault, good = robot.kept
    assert (fault.end_reason, fault.outcome) == (EndReason.FAULT, Outcome.FAILURE)
    assert "after step 3" in fault.message and "did not confirm" in fault.message
    assert [seed for seed, _ in robot.scenes] == [9, 9], "the faulty episode is repeated with its seed"
    assert result.episode_ids == (good.episode_id,)


def test_a_fault_of_the_recording_ends_the_episode():
    robot = make(script=[says(Fault("the disk is gone")), done(5)])
    run(robot)
    assert robot.kept[0].message == "the disk is gone"


def test_too_many_faults_in_a_row_end_the_run_with_the_last_words():
    robot = make(default=ends(Reason.INTERNAL, "broken arm"))
    result = run(robot, episodes=2)
    assert result.reason is Reason.TIMEOUT
    assert "5 faults in a row" in result.message and "broken arm" in result.message
    assert robot.told[-1].phase is Phase.FAULT and "broken arm" in robot.told[-1].message


def test_a_reset_that_fails_now_and_then_is_repeated():
    robot = make(default=done(3), reset_error=[WaitTimeout("no answer"), WaitTimeout("no answer")])
    assert run(robot, episodes=2).episodes == 2


def test_an_instruction_that_the_reset_does_not_know_ends_the_run():
    robot = make(default=done(3), reset_error=[BadRequest("unknown instruction 'fly'")])
    result = run(robot, instructions=("fly",))
    assert (result.reason, result.message) == (Reason.BAD_REQUEST, "unknown instruction 'fly'")


def test_an_episode_that_cannot_be_closed_is_repeated():
    robot = make(default=done(3), finish_error=[EpisodeInvalid("lost"), SpoolFull("full")])
    assert run(robot).episodes == 1
    assert len(robot.acts) == 3


def test_the_next_episode_begins_while_the_last_one_is_still_being_written():
    robot = make(default=done(3), disk=[])
    result = in_background(robot, episodes=2, seed=1)
    until(lambda: len(robot.acts) == 2, "the second act")
    assert robot.kept == [], "nothing counts before it is on the disk"
    robot.disk.pop(0).set_result(Path("e1"))
    until(lambda: robot.disk, "the second file")
    assert len(robot.kept) == 1
    robot.disk.pop(0).set_result(Path("e2"))
    assert result().episodes == 2


def test_a_disk_that_fails_while_somebody_acts_ends_the_run_after_the_actor_has_stopped():
    robot = make(settings=replace(PATIENT, fault_limit=1), script=[done(3), says(), silent], disk=[])
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


def test_a_finished_episode_is_handed_over_before_a_person_is_waited_for():
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


def test_a_run_that_is_stopped_while_an_episode_is_being_written_keeps_it():
    robot = make(script=[done(3), says()], disk=[])
    result = in_background(robot, episodes=0)
    until(lambda: len(robot.acts) == 2, "the second act")
    robot.runner.controls.cancelled = True
    robot.runner.events.put(Wake())
    until(lambda: robot.aborted, "the end of the cut episode")
    robot.disk.pop(0).set_result(Path("e1"))
    ended = result()
    assert (ended.reason, ended.episodes, len(robot.kept)) == (Reason.CANCELLED, 1, 1)


def test_an_episode_that_was_lost_on_the_disk_is_repeated_with_its_seed():
    robot = make(default=done(3), finish_error=[EpisodeInvalid("lost")])
    result = run(robot, episodes=3, seed=5)
    assert result.episodes == 3
    assert [seed for seed, _ in robot.scenes] == [5, 6, 5, 7]
    assert len({summary.seed for summary in robot.kept}) == 3


def test_an_actor_that_is_not_ready_yet_is_asked_again():
    robot = make(script=[ends(Reason.BUNDLE_UNKNOWN, "no bundle yet"), ends(Reason.BUSY), done(4)])
    result = run(robot)
    assert result.episodes == 1
    assert len(robot.kept) == 1, "what never began is not an episode"
    assert any("no bundle yet" in progress.message for progress in robot.told)


def test_an_actor_that_never_gets_ready_ends_the_run_with_its_words():
    robot = make(settings=IMPATIENT, default=ends(Reason.NOT_ACTIVE, "activate it first"))
    result = run(robot)
    assert result.reason is Reason.TIMEOUT and "activate it first" in result.message


def test_what_is_missing_is_named_with_the_deadline_and_then_ends_the_run():
    robot = make(settings=IMPATIENT, absent="action policy/act (is the policy node running and active?)")
    result = run(robot, Mode.PRACTICE)
    assert result.reason is Reason.TIMEOUT and "policy/act" in result.message
    waiting = [progress.message for progress in robot.told if progress.phase is Phase.RESETTING]
    assert "policy/act" in waiting[0] and "at most 0.6 s" in waiting[0]
