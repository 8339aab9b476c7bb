"""Executors that go on where rclpy's end, and end where rclpy's go on."""

import threading
import time

import pytest
from rclpy.node import Node
from std_msgs.msg import Empty

from efm_msgs.action import Act
from efm_ros.action_client import ActionClient
from efm_ros.executors import SingleThreadedExecutor, ThreadPoolExecutor

ENTITIES = 400


def topic(node, name):
    subscription = node.create_subscription(Empty, name, print, 1)
    return lambda: node.destroy_subscription(subscription)


def action(node, name):
    return ActionClient(node, Act, name).destroy


@pytest.mark.parametrize("make", [SingleThreadedExecutor, lambda: ThreadPoolExecutor(2)])
@pytest.mark.parametrize("entity", [topic, action])
def test_what_another_thread_destroys_does_not_end_a_spin(ros, impatient_threads, make, entity):
    """A reward node that had its model left the learner's topic, a collection the robot that was done first:
    once in a thousand times the spin ended.
    """
    node, executor = Node("busy"), make()
    executor.add_node(node)
    ending, failed = threading.Event(), []

    def spin():
        try:
            while not ending.is_set():
                executor.spin_once(timeout_sec=0.0)
        except Exception as error:  # noqa: BLE001 handed to the test
            failed.append(error)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        for index in range(ENTITIES):
            destroy = entity(node, f"entity_{index % 4}")
            time.sleep(0.001)  # The look at it begins.
            destroy()
            assert not failed, failed
    finally:
        ending.set()
        thread.join(20.0)
        executor.shutdown()
        node.destroy_node()
    assert not failed


def test_an_error_of_a_callback_still_ends_the_spin(ros):
    node, executor = Node("wrong"), SingleThreadedExecutor()
    executor.add_node(node)

    def fail():
        raise ZeroDivisionError("a bug in a callback")

    node.create_timer(0.0, fail)
    with pytest.raises(ZeroDivisionError):
        executor.spin_once(timeout_sec=20.0)
    executor.shutdown()
    node.destroy_node()
