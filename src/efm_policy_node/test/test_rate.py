"""The real node at the rate of a real robot: its rhythm, stale input, the robot's clock; over real DDS."""

import time

import numpy as np
import pytest
from policy_cell import Cell
from policy_fakes import bundle_of, embodiment_of
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Float64MultiArray

from efm_core.errors import Reason
from efm_core.safety import Gate
from efm_ros.conversion import ns_to_stamp
from efm_ros.qos import COMMANDS

RATE_HZ = 20.0
PERIOD_S = 1 / RATE_HZ
# Two control periods, and what a loaded machine adds to a measurement in another process.
STOPS_WITHIN_S = 2 * PERIOD_S + 0.3


SLOW_MODEL_S = 0.15
SLOW = f"""
import sys, time
from efm_policy_node import onnx_policy
quick = onnx_policy.OnnxPolicy.decide
onnx_policy.OnnxPolicy.decide = lambda self, requests: (time.sleep({SLOW_MODEL_S}), quick(self, requests))[1]
from efm_policy_node.main import main
sys.exit(main())
"""


@pytest.fixture
def cell(ros, tmp_path):
    embodiment = embodiment_of(control_rate_hz=RATE_HZ)
    cell = Cell(ros, tmp_path, embodiment)
    cell.bundle = bundle_of(embodiment, tmp_path)
    yield cell
    cell.close()


def wall_ns(cell):
    return lambda: cell.node.get_clock().now().nanoseconds


def test_commands_leave_at_the_control_rate_from_the_newest_observation_and_the_end_tells_the_cadence(cell):
    cell.start(bundle=str(cell.bundle.path), follow_models=False)
    cell.robot.run(60.0, wall_ns(cell))
    result = cell.goal(max_steps=60).result()
    cell.until(lambda: len(cell.robot.steps) == 60, "60 steps")
    assert result.reason == Reason.OK
    answered = [stamp for _, stamp in cell.robot.commands]
    # Nearly each answers another observation, though the camera has three a period; on a machine that is busy
    # with other things the test's own camera can stand still for a moment.
    assert len(set(answered[:60])) >= 45
    arrivals = cell.robot.arrivals[:60]
    assert 59 / (arrivals[-1] - arrivals[0]) <= 1.1 * RATE_HZ
    cell.robot.end_run()
    assert cell.process.end() == 0
    report = next(line for line in cell.process.log.splitlines() if "cadence of" in line)
    assert "60 cycles" in report and "of 20 Hz" in report and "late" in report and "worst" in report


def test_stale_input_stops_the_robot_is_told_and_the_act_goes_on_or_ends(cell):
    cell.start(bundle=str(cell.bundle.path), follow_models=False, stale_end=3.0)
    robot = cell.robot
    robot.run(60.0, wall_ns(cell))
    goal = cell.goal()
    cell.until(lambda: len(robot.steps) > 10, "some steps")
    robot.frozen = True
    last = time.monotonic()
    cell.until(robot.is_held, "the robot to be held")
    assert robot.arrivals[-1] - last < STOPS_WITHIN_S
    cell.until(lambda: "stale input, holding still" in cell.process.log, "the words")
    steps, commands = len(robot.steps), len(robot.commands)
    cell.until(lambda: cell.diagnosis("control").message.startswith("holding still"), "the diagnostics")
    robot.frozen = False
    cell.until(lambda: len(robot.steps) > steps + 5, "the act to go on")
    cell.until(lambda: "fresh again" in cell.process.log, "the words")
    assert not goal.done and len(robot.commands) > commands
    robot.frozen = True
    result = goal.result()
    assert result.reason == Reason.STALE_INPUT and "no fresh input" in result.message
    assert robot.is_held()


def test_a_model_slower_than_the_period_is_told_in_the_diagnostics(cell):
    cell.start(script=SLOW, bundle=str(cell.bundle.path), follow_models=False)
    cell.robot.run(60.0, wall_ns(cell))
    goal = cell.goal()
    cell.until(lambda: "more than the control period" in cell.diagnosis("control").message, "the warning")
    values = {v.key: v.value for v in cell.diagnosis("control").values}
    assert int(values["late_cycles"]) > 0 and int(values["missed_cycles"]) > 0
    goal.cancel()


def test_chunks_with_inference_ahead_keep_the_rate_with_a_model_slower_than_the_period(ros, tmp_path):
    embodiment = embodiment_of(control_rate_hz=RATE_HZ, action={"chunk": 8, "execute": 4})
    cell = Cell(ros, tmp_path, embodiment)
    try:
        bundle = bundle_of(embodiment, tmp_path)
        cell.start(script=SLOW, bundle=str(bundle.path), follow_models=False, infer_ahead=4)
        cell.robot.run(60.0, wall_ns(cell))
        assert cell.goal(max_steps=60).result().reason == Reason.OK
        cell.until(lambda: len(cell.robot.steps) == 60, "60 steps")
        # A chunk is entered where time has got to, not at its beginning, but for moments in which a busy
        # machine has nothing left to do. Without inference ahead every fourth step is a beginning.
        indices = [step.chunk_index for step in cell.robot.steps[10:]]
        assert max(indices) > 3 and indices.count(0) < 0.5 * len(indices) / embodiment.action.execute
        arrivals = np.array(cell.robot.arrivals[5:60])
        assert (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]) <= 1.1 * RATE_HZ
        # Without inference ahead every chunk would wait for the model; a busy machine adds a wait or two.
        chunks = len(arrivals) / embodiment.action.execute
        assert (np.diff(arrivals) >= SLOW_MODEL_S).sum() < 0.5 * chunks
    finally:
        cell.close()


def test_a_simulated_clock_that_jumps_back_does_not_stop_the_act(cell):
    cell.start(bundle=str(cell.bundle.path), follow_models=False, use_sim_time=True)
    clock = cell.node.create_publisher(Clock, "/clock", 10)
    now = [1_000_000_000_000]

    def tick():
        now[0] += 10_000_000
        clock.publish(Clock(clock=ns_to_stamp(now[0])))

    timer = cell.node.create_timer(0.01, tick)
    robot = cell.robot
    robot.run(60.0, lambda: now[0])
    goal = cell.goal()
    cell.until(lambda: len(robot.steps) > 10, "some steps")
    now[0] -= 500_000_000_000
    count = len(robot.steps)
    cell.until(lambda: len(robot.steps) > count + 10, "the act to go on")
    assert not goal.done and robot.steps[-1].header.stamp.sec < 600
    now[0] += 1_000_000_000  # forward by a second: input is stale for a moment
    count = len(robot.steps)
    cell.until(lambda: len(robot.steps) > count + 10, "the act to go on again")
    cell.node.destroy_timer(timer)  # the clock stops: a dead simulator
    cell.until(robot.is_held, "the robot to be held")
    goal.cancel()


def test_in_the_shadow_another_commander_moves_the_robot_and_the_policy_is_only_recorded(cell):
    cell.start(bundle=str(cell.bundle.path), follow_models=False, stage="shadow")
    cell.node.create_publisher(Float64MultiArray, "commands", COMMANDS)
    cell.robot.run(60.0, wall_ns(cell))
    assert cell.goal(max_steps=10).result().reason == Reason.OK
    cell.until(lambda: len(cell.robot.steps) == 10, "10 steps")
    assert not cell.robot.commands and all(step.gate & Gate.DRY_RUN for step in cell.robot.steps)
