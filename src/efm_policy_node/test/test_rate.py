"""The real node at the rate of a real robot: its rhythm, stale input, the robot's clock; over real DDS."""

import pytest
from policy_cell import Cell
from policy_fakes import bundle_of, embodiment_of
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Float64MultiArray

from efm_core.errors import Reason
from efm_core.safety import Gate
from efm_ros.conversion import ns_to_stamp, stamp_to_ns
from efm_ros.qos import COMMANDS

RATE_HZ = 20.0
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


def rate_hz(stamps):
    """By the observations that were answered, whatever keeps the answers waiting on their way. A busy machine
    makes it slower, never quicker."""
    return (len(stamps) - 1) / ((stamps[-1] - stamps[0]) / 1e9)


def test_commands_leave_at_the_control_rate_from_the_newest_observation_and_the_end_tells_the_cadence(cell):
    cell.start(bundle=str(cell.bundle.path), follow_models=False)
    cell.robot.run(60.0, wall_ns(cell))
    result = cell.goal(max_steps=60).result()
    cell.until(lambda: len(cell.robot.steps) == 60, "60 steps")
    assert result.reason == Reason.OK
    # Each answers another observation, though the camera has three a period.
    answered = [stamp_to_ns(step.header.stamp) for step in cell.robot.steps]
    assert answered == sorted(set(answered)) and set(cell.robot.answers) <= set(answered)
    assert rate_hz(answered) <= 1.25 * RATE_HZ
    cell.robot.end_run()
    assert cell.process.end() == 0
    report = next(line for line in cell.process.log.splitlines() if "cadence of" in line)
    assert "60 cycles" in report and "of 20 Hz" in report and "late" in report and "worst" in report


def test_stale_input_stops_the_robot_is_told_and_the_act_goes_on_or_ends(cell):
    cell.start(bundle=str(cell.bundle.path), follow_models=False, stale_end=8.0)
    robot = cell.robot
    robot.run(60.0, wall_ns(cell))
    goal = cell.goal()
    cell.until(lambda: len(robot.steps) > 10, "some steps")
    robot.frozen = True
    cell.until(robot.is_held, "the robot to be held")  # How soon: test_stale_input.py, on a clock of its own.
    assert not goal.done
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

    def counted(name):
        return any(v.key == name and int(v.value) > 0 for v in cell.diagnosis("control").values)

    cell.until(lambda: counted("late_cycles") and counted("missed_cycles"), "late and missed cycles")
    goal.cancel()


def test_chunks_with_inference_ahead_keep_the_rate_with_a_model_slower_than_the_period(ros, tmp_path):
    # Seconds may pass without an image, and one without an inference, before the robot has to wait.
    chunks = {"chunk": 24, "execute": 4}
    embodiment = embodiment_of(control_rate_hz=RATE_HZ, action=chunks, watchdog_periods=60)
    cell = Cell(ros, tmp_path, embodiment)
    try:
        bundle = bundle_of(embodiment, tmp_path)
        cell.start(script=SLOW, bundle=str(bundle.path), follow_models=False, infer_ahead=20)
        cell.robot.run(60.0, wall_ns(cell))
        assert cell.goal(max_steps=60).result().reason == Reason.OK
        cell.until(lambda: len(cell.robot.steps) == 60, "60 steps")
        assert rate_hz(sorted(cell.robot.answers)) <= 1.25 * RATE_HZ
        steps = cell.robot.steps[10:]
        # Without inference ahead every fourth step is a chunk's beginning and waits for the model.
        few = 0.5 * len(steps) / embodiment.action.execute
        assert max(step.chunk_index for step in steps) > 3
        assert sum(step.chunk_index == 0 for step in steps) < few  # Entered where time has got to.
        assert sum(step.latency >= SLOW_MODEL_S for step in steps) < few
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
