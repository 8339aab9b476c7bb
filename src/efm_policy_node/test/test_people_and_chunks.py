"""Who decides a step, without ROS: chunks of actions, people who take over, the ladder to full command."""

import numpy as np
import pytest
from loop_cell import PERIOD_S, Cell
from policy_fakes import embodiment_of

from efm_core.errors import Reason
from efm_core.safety import Gate
from efm_core.summary import Actor
from efm_policy_node.loop_ports import ActGoal


@pytest.fixture
def cell(robot, embodiment):
    return Cell(robot, embodiment)


@pytest.fixture
def lockstep(robot, embodiment):
    return Cell(robot, embodiment, lockstep=True)


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


@pytest.mark.parametrize("action", [{}, {"hold_still": "zero"}], ids=["positions", "velocities"])
def test_release_never_jumps_even_without_a_limit_on_change(robot, action):
    cell = Cell(robot, embodiment_of(action=action))
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


def test_what_was_wanted_before_an_act_is_not_wanted_in_it(robot, embodiment):
    cell = Cell(robot, embodiment, only_human=True)
    cell.loop.human_command(np.array([0.05, 0.9]))
    cell.loop.begin(ActGoal(), None)
    robot.wait(PERIOD_S)
    cell.observe()
    cell.loop.tick()
    assert [step.actor for step in robot.steps] == [Actor.HOLD]


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
