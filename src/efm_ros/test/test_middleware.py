"""The QoS profiles and the Fast DDS profiles do what the nodes count on."""

import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

from efm_ros import qos
from efm_ros.testing import Spinner

CONFIG = Path(__file__).resolve().parents[3] / "config"
LOST_S = 5.0  # An image that takes longer is lost.
NAMESPACE = "{http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles}"


@pytest.fixture
def node(ros):
    node = Node("listener")
    yield node
    node.destroy_node()


def test_the_profiles_are_the_ones_of_the_house():
    reliable, best_effort = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
    latched, volatile = DurabilityPolicy.TRANSIENT_LOCAL, DurabilityPolicy.VOLATILE
    found = {
        name: (profile.depth, profile.reliability, profile.durability)
        for name, profile in vars(qos).items()
        if isinstance(profile, QoSProfile)
    }
    assert found == {
        "IMAGES": (5, best_effort, volatile),
        "COMMANDS": (1, reliable, volatile),
        "LATCHED": (1, reliable, latched),
        "EVENTS": (50, reliable, volatile),
        "MODELS": (10, reliable, latched),
    }


def test_a_late_joiner_gets_the_last_latched_message(node):
    publisher = node.create_publisher(String, "instruction", qos.LATCHED)
    for text in ("push", "pull"):
        publisher.publish(String(data=text))
    heard = []
    node.create_subscription(String, "instruction", heard.append, qos.LATCHED)
    spinner = Spinner(node)
    spinner.until(lambda: heard, "the latched message")
    spinner.close()
    assert [message.data for message in heard] == ["pull"]


def test_images_between_processes_arrive_best_effort_without_loss(node):
    """With the default shared-memory segment, smaller than one image, more than half of them are lost."""
    heard = []
    node.create_subscription(Image, "image", lambda message: heard.append(message.data[0]), qos.IMAGES)
    sender = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("image_sender.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    spinner = Spinner(node)
    lost = 0
    try:
        assert "ready\n" in sender.stdout
        for index in range(20):
            print(file=sender.stdin, flush=True)
            end = time.monotonic() + LOST_S
            spinner.until(lambda i=index, end=end: i in heard or time.monotonic() > end, "an image")
            lost += index not in heard
            assert lost <= 4  # The first may go out before this side is matched.
    finally:
        sender.communicate("", timeout=30)
        spinner.close()
    assert heard == sorted(heard)


def test_the_two_fast_dds_profiles_differ_in_the_white_list_only():
    shared, alone = (ElementTree.parse(CONFIG / name) for name in ("fastdds.xml", "fastdds_localhost.xml"))
    for transport in alone.iter(f"{NAMESPACE}transport_descriptor"):
        white_list = transport.find(f"{NAMESPACE}interfaceWhiteList")
        if white_list is not None:
            assert [address.text for address in white_list] == ["127.0.0.1"]
            transport.remove(white_list)
    texts = [[(item.tag, (item.text or "").strip()) for item in tree.iter()] for tree in (shared, alone)]
    assert texts[0] == texts[1]


def test_the_shared_memory_segment_holds_several_large_images():
    tree = ElementTree.parse(CONFIG / "fastdds.xml")
    segment = int(next(tree.iter(f"{NAMESPACE}segment_size")).text)
    largest = int(next(tree.iter(f"{NAMESPACE}maxMessageSize")).text)
    assert largest > 640 * 480 * 3
    assert segment >= 8 * largest
