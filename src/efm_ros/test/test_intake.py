"""Topics that a thread of one's own takes, and the clock among them."""

import itertools
import time

import pytest
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Empty

from efm_ros.conversion import ns_to_stamp
from efm_ros.intake import Intake
from efm_ros.qos import COMMANDS
from efm_ros.testing import PATIENCE_S

NAMES = itertools.count()
SIMULATED = [Parameter("use_sim_time", value=True)]


@pytest.fixture
def world(ros):
    """Publishes the clock."""
    node = Node(f"world_{next(NAMES)}")
    yield node.create_publisher(Clock, "/clock", COMMANDS)
    node.destroy_node()


@pytest.fixture
def node(ros):
    node = Node(f"robot_{next(NAMES)}", parameter_overrides=SIMULATED)
    yield node
    node.destroy_node()


def until_time(node, world, seconds, step):
    for _ in range(int(PATIENCE_S / 0.05)):
        world.publish(Clock(clock=ns_to_stamp(seconds * 1_000_000_000)))
        step()
        if node.get_clock().now().nanoseconds == seconds * 1_000_000_000:
            return
    raise AssertionError("the clock did not come")


def test_an_intake_can_take_the_clock_from_the_executor_and_gives_it_back(node, world, spinner):
    intake = Intake(node)
    intake.take_clock()
    intake.take_clock()
    until_time(node, world, 7, lambda: intake.take(0.05))
    spinner.executor.add_node(node)
    intake.close()
    until_time(node, world, 9, lambda: spinner.executor.spin_once(timeout_sec=0.05))


def test_an_intake_outlives_a_clock_that_is_not_wanted_any_more(node, world):
    intake = Intake(node)
    intake.take_clock()
    until_time(node, world, 7, lambda: intake.take(0.05))
    node.set_parameters([Parameter("use_sim_time", value=False)])
    world.publish(Clock(clock=ns_to_stamp(8)))
    assert not intake.take(0.05)
    intake.close()


def test_patient_topics_are_taken_along_but_wake_nobody(node, world):
    """The clock is patient, too."""
    intake, heard = Intake(node), []
    pings = node.create_publisher(Empty, "ping", COMMANDS)
    intake.subscribe(Empty, "calm", lambda message: heard.append("calm"), COMMANDS, patient=True)
    intake.subscribe(Empty, "ping", lambda message: heard.append("ping"), COMMANDS)
    calm = node.create_publisher(Empty, "calm", COMMANDS)

    def until_heard(publisher, patiently):
        heard.clear()
        for _ in range(int(PATIENCE_S / 0.05)):
            publisher.publish(Empty())
            intake.take(0.05, patiently)
            if heard:
                return
        raise AssertionError("nothing was heard")

    until_heard(pings, patiently=True)
    until_heard(calm, patiently=False)
    until_heard(calm, patiently=True)
    while intake.take(0.2, patiently=True):
        pass
    calm.publish(Empty())
    began = time.monotonic()
    assert intake.take(0.3, patiently=True) and time.monotonic() - began >= 0.3
    intake.close()
