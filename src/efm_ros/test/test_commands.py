"""Commands go out in every interface of an embodiment and come back as the same vector."""

import sys
import types

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from rclpy.action import ActionServer
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest, EmbodimentInvalid
from efm_core.safety import measured_positions
from efm_ros.commands import (
    CommandChannel,
    decode_command,
    encode_command,
    message_type,
)
from efm_ros.conversion import ns_to_stamp
from efm_ros.qos import COMMANDS
from efm_ros.testing import Spinner

STAMP_NS = 1_234_567_890_123
NAMES = {"twist_stamped": ["linear.x", "angular.z"]}
INTERFACES = ["float64_multi_array", "joint_trajectory", "twist_stamped"]


def embodiment(interface, hold_still=None, rate=25.0, gripper=False):
    names = NAMES.get(interface, ["elbow", "shoulder"])
    hold_still = hold_still or ("last" if "trajectory" in interface else "zero")
    dimension = {"low": -1.0, "high": 1.0, "bins": 3, "unit": "rad", "max_rate": float("inf")}
    dimensions = [{"name": name, **dimension} for name in names]
    if gripper:
        dimensions[1].update(low=0.2, high=0.8, bins=2, gripper=True)
    return Embodiment.from_dict(
        {
            "name": "arm",
            "control_rate_hz": rate,
            "max_steps": 10,
            "state": {
                "topic": "joint_states",
                "interface": "joint_states",
                "entries": [
                    {"name": "shoulder", "unit": "rad", "low": -3.0, "high": 3.0},
                    {"name": "bend", "unit": "rad", "low": -3.0, "high": 3.0, "joint": "elbow"},
                ],
            },
            "action": {
                "interface": interface,
                "topic": "command",
                "dimensions": dimensions,
                "hold_still": hold_still,
                "frame_id": "base_link",
            },
            "steps_to_go": {"bins": 5, "width": 1},
            "reset": {"method": "none"},
        }
    )


@pytest.fixture
def world(ros):
    """A node that commands, one that listens, and what it heard."""
    commander, listener = Node("commander"), Node("listener")
    spinner = Spinner(commander, listener)
    channels = []

    def open_channel(robot="", lockstep=False, **choices):
        channel = CommandChannel(commander, embodiment(**choices), robot, lockstep)
        heard = []
        topic = f"{robot}/command" if robot else "command"
        listener.create_subscription(
            message_type(embodiment(**choices).action), topic, heard.append, COMMANDS
        )
        spinner.until(lambda: channel._publisher.get_subscription_count() == 1, "the listener")
        channels.append(channel)
        return channel, heard

    yield types.SimpleNamespace(open=open_channel, spinner=spinner, commander=commander, listener=listener)
    for channel in channels:
        channel.destroy()
    spinner.close()
    commander.destroy_node()
    listener.destroy_node()


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("robot", ["", "robot_1"])
def test_a_command_arrives_as_it_was_sent_and_says_which_observation_it_answers(world, interface, robot):
    channel, heard = world.open(interface=interface, lockstep=True, robot=robot)
    channel.send(np.array([0.25, -0.5]), STAMP_NS)
    world.spinner.until(lambda: heard, "the command")
    values, answered = decode_command(embodiment(interface), heard[0])
    np.testing.assert_array_equal(values, [0.25, -0.5])
    assert answered == STAMP_NS


def test_live_trajectories_start_at_once_and_twists_carry_the_time_of_sending(world):
    """A trajectory that is stamped with its observation lies in the past, and a controller refuses it."""
    channel, heard = world.open(interface="joint_trajectory")
    channel.send(np.zeros(2), STAMP_NS)
    world.spinner.until(lambda: heard, "the trajectory")
    assert heard[0].header.stamp == ns_to_stamp(0)
    assert heard[0].points[0].time_from_start.nanosec == 40_000_000
    before = world.commander.get_clock().now().nanoseconds
    twist = channel_twist(world)
    assert before <= decode_command(embodiment("twist_stamped"), twist)[1]


def channel_twist(world):
    channel, heard = world.open(interface="twist_stamped", robot="base")
    channel.send(np.zeros(2), STAMP_NS)
    world.spinner.until(lambda: heard, "the twist")
    return heard[0]


class ServoRequest(SetBool.Request):
    """The request of moveit_msgs/srv/ServoCommandType, with SetBool on the wire."""

    TWIST = 1
    __module__ = SetBool.Request.__module__

    def __init__(self, command_type: int) -> None:
        super().__init__(data=command_type == self.TWIST)


ServoRequest.__name__ = SetBool.Request.__name__  # The converter to C looks at it.


class ServoCommandType(metaclass=type(SetBool)):
    """Stands for the service of moveit_msgs, which only a ROS 2 of the distribution has."""

    Request, Response, Event = ServoRequest, SetBool.Response, SetBool.Event


def test_servo_is_told_that_twists_come_and_told_again_after_its_restart(world, monkeypatch):
    fake = types.ModuleType("moveit_msgs.srv")
    fake.ServoCommandType = ServoCommandType
    monkeypatch.setitem(sys.modules, "moveit_msgs", types.ModuleType("moveit_msgs"))
    monkeypatch.setitem(sys.modules, "moveit_msgs.srv", fake)
    asked = []

    def switch(request, response):
        asked.append(request.data)
        response.success = True
        return response

    channel, heard = world.open(interface="twist_stamped")

    def drive():
        channel.send(np.zeros(2), STAMP_NS)
        return len(asked)

    servo = world.listener.create_service(SetBool, "switch_command_type", switch)
    world.spinner.until(lambda: drive() == 1, "the switch")
    count = len(heard)
    world.spinner.until(lambda: drive() and len(heard) > count + 5, "twists")
    assert asked == [True]
    world.listener.destroy_service(servo)
    world.spinner.until(lambda: drive() and not channel._servo._client.service_is_ready(), "the end of Servo")
    drive()
    world.listener.create_service(SetBool, "switch_command_type", switch)
    world.spinner.until(lambda: drive() == 2, "the second switch")


def test_a_foreign_command_without_a_stamp_answers_nothing():
    """A forward command controller's usual client sends bare arrays."""
    array = Float64MultiArray(data=[0.1, 0.2])
    assert decode_command(embodiment("float64_multi_array"), array)[1] is None
    trajectory = encode_command(embodiment("joint_trajectory"), np.zeros(2), 0)
    assert decode_command(embodiment("joint_trajectory"), trajectory)[1] is None


def test_a_trajectory_is_read_by_joint_name():
    trajectory = encode_command(embodiment("joint_trajectory"), np.array([1.0, 2.0]), 0)
    trajectory.joint_names.reverse()
    trajectory.points[0].positions.reverse()
    np.testing.assert_array_equal(decode_command(embodiment("joint_trajectory"), trajectory)[0], [1.0, 2.0])
    trajectory.joint_names[0] = "shoulderr"
    with pytest.raises(BadRequest, match="expected a position of 'shoulder', found the joints"):
        decode_command(embodiment("joint_trajectory"), trajectory)


@pytest.mark.parametrize(
    ("interface", "message", "found"),
    [
        ("float64_multi_array", Float64MultiArray(data=[1.0]), "expected 2 numbers"),
        ("float64_multi_array", TwistStamped(), "found TwistStamped"),
        ("joint_trajectory", JointTrajectory(), "at least one trajectory point"),
    ],
)
def test_a_command_of_the_wrong_kind_or_size_is_refused(interface, message, found):
    with pytest.raises(BadRequest, match=found):
        decode_command(embodiment(interface), message)


def test_holding_still_is_zero_where_the_embodiment_says_so(world):
    channel, heard = world.open(interface="float64_multi_array")
    channel.send(np.array([0.5, 0.5]), STAMP_NS)
    np.testing.assert_array_equal(channel.hold(STAMP_NS + 1), [0.0, 0.0])
    world.spinner.until(lambda: heard and list(heard[-1].data) == [0.0, 0.0], "the hold-still command")


def test_a_gripper_keeps_what_it_holds(world):
    channel, _ = world.open(interface="float64_multi_array", gripper=True)
    assert channel.hold() is None  # Never commanded: any value could move it.
    channel.send(np.array([0.5, 0.8]), STAMP_NS)
    np.testing.assert_array_equal(channel.hold(), [0.0, 0.8])


def test_holding_still_is_the_last_command_and_nothing_before_the_first(world):
    channel, _ = world.open(interface="joint_trajectory", hold_still="last")
    assert channel.hold() is None
    channel.send(np.array([0.1, 0.2]), STAMP_NS)
    np.testing.assert_array_equal(channel.hold(measured=np.array([0.3, 0.4])), [0.1, 0.2])


def test_holding_still_is_where_the_joints_are(world):
    channel, _ = world.open(interface="joint_trajectory", hold_still="measured")
    measured = measured_positions(embodiment("joint_trajectory"), np.array([0.3, 0.4]))
    np.testing.assert_array_equal(measured, [0.4, 0.3])
    np.testing.assert_array_equal(channel.hold(measured=measured), [0.4, 0.3])


def test_a_state_that_does_not_show_every_dimension_measures_nothing():
    assert measured_positions(embodiment("twist_stamped"), np.zeros(2)) is None
    assert measured_positions(embodiment("joint_trajectory"), None) is None


def test_flush_returns_when_the_robot_has_the_command(world):
    channel, heard = world.open(interface="float64_multi_array")
    channel.send(np.zeros(2), STAMP_NS)
    assert channel.flush(timeout_s=10.0)


def test_another_commander_on_the_topic_is_named(world):
    channel, _ = world.open(interface="float64_multi_array")
    assert channel.others() == []
    rival = world.listener.create_publisher(Float64MultiArray, "command", COMMANDS)
    world.spinner.until(lambda: channel.others() == ["/listener"], "the rival in the graph")
    world.listener.destroy_publisher(rival)


def test_follow_joint_trajectory_without_control_msgs_says_what_to_install(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "control_msgs", None)
    with pytest.raises(EmbodimentInvalid, match="install ros-jazzy-control-msgs"):
        CommandChannel(world.commander, embodiment("follow_joint_trajectory"))


def test_every_trajectory_is_a_goal_and_the_same_on_a_topic(world):
    """Needs control_msgs, which only a ROS 2 of the distribution has."""
    action = pytest.importorskip("control_msgs.action").FollowJointTrajectory
    goals = []

    def follow(handle):
        goals.append(handle.request.trajectory)
        handle.succeed()
        return action.Result()

    server = ActionServer(world.listener, action, "command", follow)
    channel, heard = world.open(interface="follow_joint_trajectory")
    world.spinner.until(channel._trajectories._client.server_is_ready, "the controller")
    channel.send(np.array([0.25, -0.5]), STAMP_NS)
    world.spinner.until(lambda: goals and heard, "the goal and the message")
    assert goals == heard
    values, _ = decode_command(embodiment("follow_joint_trajectory"), goals[0])
    np.testing.assert_array_equal(values, [0.25, -0.5])
    server.destroy()
