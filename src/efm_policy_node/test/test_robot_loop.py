"""The control loop without ROS: who decides, when commands leave, and when the robot is held still."""

import numpy as np
import pytest
from policy_fakes import embodiment_of

from efm_core.errors import BundleUnusable, Reason
from efm_core.safety import Gate
from efm_core.summary import Actor
from efm_policy_node.loop_ports import ActGoal, ActRefused, LoopSettings
from efm_policy_node.onnx_policy import Decision
from efm_policy_node.robot_loop import RobotLoop

PERIOD_S = 0.05


class FakePolicy:
    """Stands for a loaded bundle; the tests decide what it says."""

    id, version = "0123456789abcdef", 3


class Cell:
    """One loop in its fake robot, driven step by step."""

    def __init__(self, robot, embodiment, **settings):
        settings.setdefault("check_period_s", 0.0)
        self.robot, self.embodiment = robot, embodiment
        self.loop = RobotLoop(
            embodiment, LoopSettings(**settings), robot, lambda: robot.ros_ns, lambda: robot.steady
        )
        self.loop.enable()

    def begin(self, **goal):
        self.loop.begin(ActGoal(**{"episode_id": "e", **goal}), FakePolicy())

    def observe(self, stamp_ns=None, state=(0.0, 0.0)):
        """All inputs of one moment; by default of this one."""
        stamp_ns = self.robot.ros_ns if stamp_ns is None else stamp_ns
        image = np.zeros((6, 8, 3), np.uint8)
        if self.embodiment.cameras:
            self.loop.add_image("top", stamp_ns, image)
        self.loop.add_state(stamp_ns, np.array(state))
        return stamp_ns

    def decide(self, *actions, log_prob=-1.0):
        """Answers the newest inference with a chunk of actions."""
        job = self.robot.jobs.pop()
        chunk = np.array(actions, np.float64)
        tokens = np.arange(chunk.size).reshape(chunk.shape)
        self.loop.decided(job, Decision(tokens, np.full(len(chunk), log_prob), chunk, 1.0))
        return job

    def step(self, action=(0.1, 0.1), **seen):
        """A period passes: an observation, a tick, a decision."""
        self.robot.wait(PERIOD_S)
        self.observe(**seen)
        self.loop.tick()
        self.decide(action)


@pytest.fixture
def cell(robot, embodiment):
    return Cell(robot, embodiment)


@pytest.fixture
def lockstep(robot, embodiment):
    return Cell(robot, embodiment, lockstep=True)


# Lockstep


def test_in_lockstep_every_observation_is_answered_once_with_its_own_stamp(lockstep, robot):
    lockstep.begin()
    for stamp in (1000, 2000, 3000):
        lockstep.observe(stamp)
        lockstep.decide((0.0, 0.1))
    assert [stamp for _, stamp in robot.sent] == [1000, 2000, 3000]
    assert [(s.stamp_ns, s.step, s.actor) for s in robot.steps] == [
        (1000, 0, Actor.POLICY), (2000, 1, Actor.POLICY), (3000, 2, Actor.POLICY),
    ]  # fmt: skip


def test_the_record_follows_the_command_and_tells_what_was_decided(lockstep, robot):
    lockstep.begin(episode_id="e7")
    lockstep.observe(1000)
    lockstep.decide((0.0, 0.3), log_prob=-0.25)
    assert [kind for kind, _ in robot.log] == ["send", "record"]
    step = robot.steps[0]
    assert (step.episode_id, step.bundle_id, step.gate) == ("e7", FakePolicy.id, Gate.PASSED)
    assert step.tokens.tolist() == [0, 1] and step.log_prob == -0.25 and step.temperature == 1.0
    assert step.action.tolist() == step.command.tolist() == [0.0, 0.3]


def test_a_lost_command_is_repeated_when_the_world_shows_its_observation_again(lockstep, robot):
    lockstep.begin()
    lockstep.observe(1000)
    lockstep.decide((0.0, 0.1))
    lockstep.observe(1000)
    assert {stamp for _, stamp in robot.sent} == {1000} and len(robot.sent) > 1
    assert all(np.array_equal(values, (0.0, 0.1)) for values, _ in robot.sent)
    assert len(robot.steps) == 1 and not robot.jobs


def test_an_observation_that_came_before_the_goal_is_answered_at_once(lockstep, robot):
    lockstep.observe(5000)
    lockstep.begin(start_ns=5000)
    lockstep.decide((0.0, 0.0))
    assert robot.steps[0].stamp_ns == 5000


def test_observations_from_before_the_start_are_ignored(lockstep, robot):
    lockstep.observe(4000)
    lockstep.begin(start_ns=5000)
    lockstep.observe(4500)
    assert not robot.jobs
    lockstep.observe(5000)
    assert len(robot.jobs) == 1


def test_after_the_last_step_the_world_does_not_move_and_the_robot_is_held(lockstep, robot):
    lockstep.begin(max_steps=2)
    for stamp in (1000, 2000, 3000):
        lockstep.observe(stamp, state=(0.0, 0.2))
        if robot.jobs:
            lockstep.decide((0.0, 0.1))
    assert [stamp for _, stamp in robot.sent[:2]] == [1000, 2000]
    values, stamp = robot.sent[-1]
    assert stamp < 1000 and values == pytest.approx([0.0, 0.2])  # no answer to anything
    ending = robot.endings[0]
    assert (ending.reason, ending.steps, ending.bundle_id, ending.version) == (Reason.OK, 2, FakePolicy.id, 3)
    assert [kind for kind, _ in robot.log][-2:] == ["send", "ended"]


def test_the_last_command_is_not_overtaken_by_holding_still(lockstep, robot):
    # Both would meet in the robot's queue of one, and the world would execute what nobody recorded.
    lockstep.begin(max_steps=1)
    lockstep.observe(1000)
    lockstep.decide((0.0, 0.1))
    assert len(robot.sent) == 1 and not robot.endings
    lockstep.observe(2000)
    assert len(robot.sent) == 2 and robot.endings


def test_a_world_that_was_restarted_ends_the_act(lockstep, robot):
    lockstep.begin()
    lockstep.observe(90_000_000_000)
    lockstep.decide((0.0, 0.0))
    lockstep.observe(1_000_000)
    assert robot.endings[0].reason == Reason.STALE_INPUT and "restarted" in robot.endings[0].message


def test_a_world_that_goes_silent_is_told_and_then_ends_the_act(lockstep, robot):
    lockstep.begin()
    lockstep.observe(1000)
    lockstep.decide((0.0, 0.0))
    for _ in range(140):
        robot.wait(0.1, ros=False)
        lockstep.loop.check()
    assert "stale" in robot.of("say")[0]
    assert robot.endings[0].reason == Reason.STALE_INPUT and "nothing new" in robot.endings[0].message


def test_a_slow_inference_is_no_silence_of_the_world(lockstep, robot):
    lockstep.begin()
    lockstep.observe(1000)
    for _ in range(90):
        robot.wait(0.1, ros=False)
        lockstep.loop.check()
    assert not robot.endings and not robot.of("say")


# The rate of a real robot


def test_at_a_tick_the_newest_observation_is_used_and_older_ones_are_dropped(cell, robot):
    cell.begin()
    robot.wait(0.01)
    cell.observe()
    robot.wait(0.01)
    newest = cell.observe()
    cell.loop.tick()
    job = cell.decide((0.0, 0.0))
    assert job.request.observation.stamp_ns == newest == robot.sent[0][1]


def test_a_tick_without_a_new_observation_waits_for_it_and_is_counted_late(cell, robot):
    cell.begin()
    cell.step()
    robot.wait(PERIOD_S)
    cell.loop.tick()
    assert not robot.jobs
    robot.wait(0.04)
    cell.observe()
    cell.decide((0.0, 0.0))
    report = cell.loop.status().cadence
    assert (report.cycles, report.late, report.missed) == (2, 1, 0)
    assert report.worst_ms == pytest.approx(40, abs=1)


def test_an_inference_longer_than_the_period_costs_ticks_and_they_are_counted(cell, robot):
    cell.begin()
    robot.wait(PERIOD_S)
    cell.observe()
    cell.loop.tick()
    for _ in range(2):
        robot.wait(PERIOD_S)
        cell.observe()
        cell.loop.tick()
    assert len(robot.jobs) == 1  # one at a time
    cell.decide((0.0, 0.0))
    report = cell.loop.status().cadence
    assert (report.cycles, report.late, report.missed) == (1, 1, 2)


def test_a_slow_inference_is_no_stale_input_but_the_robot_is_held_until_it_is_done(cell, robot):
    cell.begin()
    cell.step(action=(0.1, 0.1), state=(0.1, 0.1))
    robot.wait(PERIOD_S)
    cell.observe(state=(0.1, 0.1))
    cell.loop.tick()
    for _ in range(5):
        robot.wait(PERIOD_S)
        cell.loop.check()
    assert len(robot.sent) == 2 and robot.sent[-1][0] == pytest.approx([0.1, 0.1])  # held
    cell.decide((0.2, 0.2))
    assert robot.steps[-1].command == pytest.approx([0.2, 0.2]) and not robot.of("say")
    cell.step(action=(0.2, 0.2))
    assert len(robot.steps) == 3


def test_an_inference_that_never_ends_ends_the_act(cell, robot):
    cell.begin()
    cell.observe()
    cell.loop.tick()
    for _ in range(110):
        robot.wait(0.1)
        cell.loop.check()
    assert robot.endings[0].reason == Reason.TIMEOUT and "inference" in robot.endings[0].message


def test_ticks_that_never_came_are_counted_as_missed(cell, robot):
    cell.begin()
    cell.step()
    robot.wait(3 * PERIOD_S)
    cell.step()
    assert cell.loop.status().cadence.missed == 3


def test_commands_change_no_faster_than_the_limit_also_in_the_first_step(cell, robot):
    cell.observe(state=(0.5, 0.5))
    cell.begin()
    cell.step(action=(-1.0, -1.0), state=(0.5, 0.5))
    step = robot.steps[0]
    assert step.command == pytest.approx([0.5 - 2.0 * PERIOD_S, -1.0])  # 2 rad/s, and no limit
    assert step.gate == Gate.RATE_LIMITED


def test_a_robot_far_outside_its_bounds_is_not_moved(cell, robot):
    cell.observe(state=(1.8, 0.0))
    with pytest.raises(Exception, match="move it within its bounds"):
        cell.begin()
    assert not robot.sent


# Stale input


def test_stale_input_holds_still_within_two_periods_and_says_which_input(cell, robot):
    cell.begin()
    for _ in range(3):
        cell.step(action=(0.1, 0.1), state=(0.3, 0.3))
    sent, stamp = len(robot.sent), robot.ros_ns
    while len(robot.sent) == sent:
        robot.wait(PERIOD_S / 10)
        cell.loop.check()
    assert (robot.ros_ns - stamp) / 1e9 <= 2 * PERIOD_S + PERIOD_S / 10 + 1e-9
    assert robot.sent[-1][0] == pytest.approx([0.3, 0.3])  # measured
    assert "holding still" in robot.of("say")[0] and "nothing new" in robot.of("say")[0]
    robot.wait(1.0)
    cell.loop.check()
    assert len(robot.sent) == sent + 1  # once


def test_the_act_goes_on_when_input_is_fresh_again_and_changes_count_from_the_held_pose(cell, robot):
    cell.begin()
    cell.step(action=(0.1, 0.1), state=(0.3, 0.3))
    robot.wait(1.0)
    cell.loop.check()
    cell.step(action=(1.0, 1.0), state=(0.3, 0.3))
    assert "fresh again" in robot.of("say")[-1]
    assert robot.steps[-1].command[0] == pytest.approx(0.3 + 2.0 * 2 * PERIOD_S)  # at most two periods' worth
    assert not robot.endings


def test_input_that_stays_stale_ends_the_act_after_the_set_time(robot, embodiment):
    cell = Cell(robot, embodiment, stale_end_s=3.0)
    cell.begin()
    cell.step()
    for _ in range(32):
        robot.wait(0.1)
        cell.loop.check()
    ending = robot.endings[0]
    assert ending.reason == Reason.STALE_INPUT and "camera 'top'" not in ending.message


def test_a_camera_that_never_shows_is_named_when_the_act_ends(cell, robot):
    cell.begin()
    for _ in range(150):
        robot.wait(0.1)
        cell.loop.add_state(robot.ros_ns, np.zeros(2))
        cell.loop.check()
    assert robot.endings[0].reason == Reason.STALE_INPUT
    assert "no image of camera 'top' on 'camera/top/image_raw'" in robot.endings[0].message
    assert not robot.sent


def test_an_old_image_that_keeps_coming_is_no_fresh_input(cell, robot):
    cell.begin()
    cell.step()
    frozen = robot.ros_ns
    for _ in range(6):
        robot.wait(PERIOD_S)
        cell.observe(frozen)
        cell.loop.tick()
        cell.loop.check()
    assert not robot.jobs and "holding still" in robot.of("say")[0]


def test_a_robot_clock_that_stands_still_is_noticed_on_the_steady_clock(cell, robot):
    cell.begin()
    cell.step()
    sent = len(robot.sent)
    for _ in range(30):
        robot.wait(0.1, ros=False)
        cell.loop.check()
    assert len(robot.sent) == sent + 1 and "holding still" in robot.of("say")[0]


def test_a_clock_that_jumps_back_does_not_stop_the_act(cell, robot):
    cell.begin(start_ns=robot.ros_ns)
    cell.step()
    robot.ros_ns -= 3_600_000_000_000
    for _ in range(3):
        cell.step()
        cell.loop.check()
    assert len(robot.steps) == 4 and not robot.endings
    robot.wait(PERIOD_S)
    cell.loop.check()
    robot.wait(2 * PERIOD_S)
    cell.loop.check()
    assert "holding still" in robot.of("say")[-1]  # and the watchdog is awake on the new time


# Ends


def test_cancelling_drops_the_inference_and_holding_still_is_the_last_command(cell, robot):
    cell.begin()
    cell.step()
    robot.wait(PERIOD_S)
    cell.observe(state=(0.2, 0.2))
    cell.loop.tick()
    cell.loop.cancel()
    cell.decide((0.9, 0.9))
    assert robot.sent[-1][0] == pytest.approx([0.2, 0.2])
    assert robot.endings[0].reason == Reason.CANCELLED and len(robot.steps) == 1


def test_a_robot_that_was_never_commanded_gets_no_command_at_the_end(cell, robot):
    cell.begin()
    cell.observe()
    cell.loop.cancel()
    cell.loop.disable()
    assert not robot.sent


def test_a_model_that_fails_ends_the_act_with_its_own_reason(cell, robot):
    cell.begin()
    cell.step()
    robot.wait(PERIOD_S)
    cell.observe()
    cell.loop.tick()
    cell.loop.decided(robot.jobs.pop(), BundleUnusable("not finite"))
    assert robot.endings[0].reason == Reason.BUNDLE_UNUSABLE
    assert [kind for kind, _ in robot.log][-2:] == ["send", "ended"]


def test_the_estop_holds_at_once_ends_the_act_and_refuses_the_next(cell, robot):
    cell.begin()
    cell.step(state=(0.1, 0.1))
    cell.loop.set_estop(True)
    assert robot.sent[-1][0] == pytest.approx([0.1, 0.1])
    assert robot.endings[0].reason == Reason.ESTOP
    with pytest.raises(ActRefused, match="e-stop") as refused:
        cell.begin()
    assert refused.value.code == Reason.ESTOP
    cell.loop.set_estop(False)
    cell.begin()


def test_a_second_act_is_refused_as_busy_and_the_first_goes_on(cell, robot):
    cell.begin(episode_id="first")
    with pytest.raises(ActRefused, match="first") as refused:
        cell.begin()
    assert refused.value.code == Reason.BUSY
    cell.step()
    assert robot.steps[0].episode_id == "first"


def test_a_loop_that_is_not_enabled_refuses_and_one_that_was_disabled_sends_nothing_more(cell, robot):
    cell.begin()
    cell.step(state=(0.2, 0.2))
    cell.loop.disable()
    assert robot.sent[-1][0] == pytest.approx([0.2, 0.2]) and robot.endings[0].reason == Reason.NOT_ACTIVE
    count = len(robot.sent)
    robot.wait(PERIOD_S)
    cell.loop.set_takeover(True)
    cell.loop.human_command(np.zeros(2))
    cell.observe()
    cell.loop.tick()
    cell.loop.check()
    assert len(robot.sent) == count
    with pytest.raises(ActRefused) as refused:
        cell.begin()
    assert refused.value.code == Reason.NOT_ACTIVE


# Chunks


def chunk_cell(robot, execute, chunk=4, **settings):
    return Cell(robot, embodiment_of(action={"chunk": chunk, "execute": execute}), **settings)


CHUNK = tuple((0.01 * k, 0.0) for k in range(4))


def test_of_a_chunk_the_set_number_is_executed_before_the_next_inference(robot):
    cell = chunk_cell(robot, execute=3, lockstep=True)
    cell.begin()
    for stamp in range(1000, 8000, 1000):
        cell.observe(stamp)
        if robot.jobs:
            cell.decide(*CHUNK)
    assert [s.chunk_index for s in robot.steps] == [0, 1, 2, 0, 1, 2, 0]
    assert [s.stamp_ns for s in robot.steps] == [1000, 1000, 1000, 4000, 4000, 4000, 7000]
    assert [stamp for _, stamp in robot.sent] == list(range(1000, 8000, 1000))
    assert [s.action[0] for s in robot.steps[:4]] == [0.0, 0.01, 0.02, 0.0]


def test_an_inference_ahead_of_time_leaves_no_gap_and_enters_the_new_chunk_at_its_place(robot):
    cell = chunk_cell(robot, execute=2, infer_ahead=1)
    cell.begin()
    for tick in range(6):
        robot.wait(PERIOD_S)
        cell.observe()
        cell.loop.tick()
        assert len(robot.steps) == tick + (
            0 if tick == 0 else 1
        )  # the command leaves before the inference is done
        if robot.jobs:
            cell.decide(*CHUNK)
    assert [s.chunk_index for s in robot.steps] == [0, 1, 1, 1, 1, 1]
    assert cell.loop.status().cadence.missed == 0


def test_a_chunk_that_comes_late_is_entered_where_time_has_got_to(robot):
    cell = chunk_cell(robot, execute=2, infer_ahead=1)
    cell.begin()
    robot.wait(PERIOD_S)
    cell.observe()
    cell.loop.tick()
    cell.decide(*CHUNK)  # index 0
    for _ in range(2):  # index 1 (asks for the next chunk), then index 2 while that is on its way
        robot.wait(PERIOD_S)
        cell.observe()
        cell.loop.tick()
    assert [s.chunk_index for s in robot.steps] == [0, 1, 2]
    cell.decide(*CHUNK)
    robot.wait(PERIOD_S)
    cell.observe()
    cell.loop.tick()
    assert robot.steps[-1].chunk_index == 2  # two steps after the observation of the new chunk


# People


def test_takeover_gives_the_robot_to_the_person_at_once_and_records_who_acted(cell, robot):
    cell.begin()
    cell.step(state=(0.1, 0.1))
    cell.loop.set_takeover(True)
    assert robot.sent[-1][0] == pytest.approx([0.1, 0.1])  # held until the person says something
    cell.loop.human_command(np.array([0.15, 0.9]))
    robot.wait(PERIOD_S)
    cell.observe()
    cell.loop.tick()
    step = robot.steps[-1]
    assert step.actor == Actor.HUMAN and step.command == pytest.approx([0.15, 0.9]) and step.bundle_id == ""
    assert step.tokens is None and np.isnan(step.log_prob) and step.step == 1 and not robot.jobs


def test_a_decision_that_was_on_its_way_at_takeover_is_dropped(cell, robot):
    cell.begin()
    robot.wait(PERIOD_S)
    cell.observe()
    cell.loop.tick()
    cell.loop.set_takeover(True)
    cell.decide((0.9, 0.9))
    assert not robot.sent


def test_a_person_passes_the_same_gate(cell, robot):
    cell.observe(state=(0.0, 0.0))
    cell.begin()
    cell.loop.set_takeover(True)
    cell.loop.human_command(np.array([5.0, -5.0]))
    robot.wait(PERIOD_S)
    cell.observe()
    cell.loop.tick()
    step = robot.steps[-1]
    assert step.gate == Gate.BOUNDED | Gate.RATE_LIMITED and step.command == pytest.approx([0.1, -1.0])


def test_a_silent_person_means_holding_still_and_the_pose_does_not_creep(cell, robot):
    cell.begin()
    cell.step(state=(0.4, 0.4))
    cell.loop.set_takeover(True)
    for sag in (0.3, 0.2, 0.1):
        robot.wait(PERIOD_S)
        cell.observe(state=(sag, sag))
        cell.loop.tick()
    assert [s.actor for s in robot.steps[1:]] == [Actor.HOLD] * 3
    assert all(s.gate & Gate.HELD and s.command == pytest.approx([0.4, 0.4]) for s in robot.steps[1:])


def test_release_never_jumps_even_without_a_limit_on_change(cell, robot):
    cell.begin()
    cell.loop.set_takeover(True)
    for _ in range(5):
        cell.loop.human_command(np.array([0.0, 0.8]))
        robot.wait(PERIOD_S)
        cell.observe(state=(0.0, 0.8))
        cell.loop.tick()
    cell.loop.set_takeover(False)
    for _ in range(15):
        cell.step(action=(0.0, -0.8), state=(0.0, robot.steps[-1].command[1]))
    commands = [s.command[1] for s in robot.steps[4:]]
    assert commands[0] == pytest.approx(0.8) and commands[-1] == pytest.approx(-0.8)
    assert np.abs(np.diff(commands)).max() < 0.35  # 1.6 in all; the joint itself has no limit
    assert {s.actor for s in robot.steps[5:]} == {Actor.POLICY}


def test_in_lockstep_the_person_sets_the_pace_and_the_world_waits(lockstep, robot):
    lockstep.begin()
    lockstep.loop.set_takeover(True)
    lockstep.observe(1000)
    for _ in range(100):
        robot.wait(PERIOD_S)
        lockstep.loop.check()
    assert not robot.sent and not robot.endings
    lockstep.loop.human_command(np.array([0.0, 0.5]))
    lockstep.loop.check()
    assert robot.sent[0][1] == 1000 and robot.steps[0].actor == Actor.HUMAN
    lockstep.observe(2000)
    lockstep.loop.check()
    assert len(robot.sent) == 1  # not faster than the control rate
    robot.wait(1.1 * PERIOD_S)
    lockstep.loop.check()
    assert robot.sent[1][1] == 2000


def test_release_in_lockstep_hands_the_waiting_observation_to_the_policy(lockstep, robot):
    lockstep.begin()
    lockstep.loop.set_takeover(True)
    lockstep.observe(1000)
    lockstep.loop.set_takeover(False)
    lockstep.decide((0.0, 0.0))
    assert robot.steps[0].actor == Actor.POLICY and robot.sent[0][1] == 1000


def test_a_person_can_drive_without_an_act_and_is_held_when_they_let_go(cell, robot):
    cell.loop.set_takeover(True)
    cell.loop.human_command(np.array([0.05, 0.2]))
    cell.observe()
    cell.loop.tick()
    assert robot.steps[0].actor == Actor.HUMAN and robot.steps[0].episode_id == ""
    robot.wait(PERIOD_S)
    cell.observe(state=(0.05, 0.2))
    cell.loop.set_takeover(False)
    assert robot.sent[-1][0] == pytest.approx([0.05, 0.2])
    cell.loop.tick()
    assert len(robot.sent) == 2


def test_a_person_can_drive_a_robot_whose_camera_died(cell, robot):
    cell.begin()
    cell.step()
    cell.loop.set_takeover(True)
    for _ in range(6):
        robot.wait(PERIOD_S)
        cell.loop.human_command(np.array([0.1, 0.6]))
        cell.loop.tick()
        cell.loop.check()
    assert robot.sent[-1][0][1] == pytest.approx(0.6)
    assert len(robot.steps) == 1  # nothing was seen, nothing is recorded


def test_a_persons_number_that_is_none_holds_still(cell, robot):
    cell.begin()
    cell.step(state=(0.2, 0.2))
    cell.loop.set_takeover(True)
    cell.loop.human_command(np.array([np.nan, 0.0]))
    robot.wait(PERIOD_S)
    cell.observe(state=(0.2, 0.2))
    cell.loop.tick()
    assert robot.steps[-1].gate == Gate.HELD and robot.steps[-1].command == pytest.approx([0.2, 0.2])
    assert not robot.endings


# The ladder: dry run, shadow, blend


def test_in_a_dry_run_nothing_is_ever_sent(robot, embodiment):
    cell = Cell(robot, embodiment, dry_run=True)
    cell.begin()
    cell.step()
    cell.loop.set_takeover(True)
    cell.loop.human_command(np.zeros(2))
    robot.wait(PERIOD_S)
    cell.observe()
    cell.loop.tick()
    robot.wait(5.0)
    cell.loop.check()
    cell.loop.set_estop(True)
    cell.loop.disable()
    assert not robot.sent
    assert [bool(s.gate & Gate.DRY_RUN) for s in robot.steps] == [True, True]


def test_in_the_shadow_the_policy_is_recorded_but_only_the_person_moves_the_robot(robot, embodiment):
    cell = Cell(robot, embodiment, stage="shadow")
    cell.begin()
    cell.step()
    assert not robot.sent and robot.steps[0].gate & Gate.DRY_RUN and robot.steps[0].actor == Actor.POLICY
    cell.loop.set_takeover(True)
    cell.loop.human_command(np.array([0.05, 0.05]))
    robot.wait(PERIOD_S)
    cell.observe()
    cell.loop.tick()
    assert len(robot.sent) == 1


def test_blending_moves_a_share_of_the_way_from_where_the_robot_is(robot, embodiment):
    cell = Cell(robot, embodiment, stage="blend", blend=0.25)
    cell.observe(state=(0.0, 0.4))
    cell.begin()
    cell.step(action=(0.0, 0.8), state=(0.0, 0.4))
    assert robot.steps[0].command == pytest.approx([0.0, 0.5])
    cell.loop.human_command(np.array([0.0, 0.0]))
    cell.step(action=(0.0, 0.8))
    assert robot.steps[1].command == pytest.approx([0.0, 0.2])  # a person steers along


def test_teleoperation_is_the_same_loop_without_a_policy(robot, embodiment):
    cell = Cell(robot, embodiment, only_human=True)
    cell.loop.begin(ActGoal(episode_id="demo", max_steps=2), None)
    for _ in range(3):
        cell.loop.human_command(np.array([0.05, 0.1]))
        robot.wait(PERIOD_S)
        cell.observe()
        cell.loop.tick()
    assert [s.actor for s in robot.steps] == [Actor.HUMAN] * 2
    assert robot.endings[0].reason == Reason.OK and robot.endings[0].bundle_id == ""
