"""The control loop without ROS: when commands leave, what ends an act, and when the robot is held still."""

import numpy as np
import pytest
from loop_cell import PERIOD_S, Cell, FakePolicy
from policy_fakes import embodiment_of

from efm_core.errors import BundleUnusable, Reason
from efm_core.safety import Gate
from efm_core.summary import Actor
from efm_policy_node.loop_ports import ActRefused


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


def test_a_command_that_a_frozen_world_never_took_is_repeated_when_it_thaws(lockstep, robot):
    lockstep.begin()
    lockstep.observe(1000)
    lockstep.decide((0.0, 0.1))
    for _ in range(50):
        robot.wait(0.1, ros=False)
        lockstep.loop.check()
    assert robot.sent[-1][1] < 1000  # held still meanwhile
    lockstep.observe(1000)
    assert robot.sent[-1][1] == 1000 and robot.sent[-1][0] == pytest.approx([0.0, 0.1])
    lockstep.observe(2000)
    lockstep.decide((0.0, 0.2))
    assert len(robot.steps) == 2


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
    robot.wait(PERIOD_S / 4)
    cell.loop.check()
    assert robot.steps[-1].command == pytest.approx([0.2, 0.2]) and not robot.of("say")
    assert len(robot.sent) == 3  # and not held again
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


# What a killed process left behind


def velocities():
    return embodiment_of(action={"hold_still": "zero"})


def test_what_a_killed_process_left_moving_is_stopped_once(robot):
    cell = Cell(robot, velocities())
    cell.loop.stop_leftover()
    cell.loop.stop_leftover()
    assert [values.tolist() for values, _ in robot.sent] == [[0.0, 0.0]]
    cell.loop.disable()
    assert len(robot.sent) == 1


def test_nothing_is_stopped_where_a_position_ends_by_itself_or_this_process_commands(robot, embodiment):
    assert embodiment.action.hold_still == "measured"
    person, acting, sleeping = (Cell(robot, velocities()) for _ in range(3))
    person.loop.set_takeover(True)
    acting.begin()
    sleeping.loop.disable()
    for cell in (Cell(robot, embodiment), Cell(robot, velocities(), dry_run=True), person, acting, sleeping):
        cell.observe()
        cell.loop.stop_leftover()
    assert not robot.sent
