"""The reward node as a process, with the settings file that users get."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from judged_world import TASK, picture, robot, stamp, write_reward_bundle
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from efm_core.errors import EXIT_REFUSED
from efm_msgs.msg import Instruction, StepsToGo
from efm_ros.conversion import ns_to_stamp, rgb_to_image
from efm_ros.qos import EVENTS, IMAGES, LATCHED
from efm_ros.testing import Spinner

CONFIG = Path(__file__).resolve().parents[3] / "config" / "reward.yaml"


@pytest.fixture
def node(ros):
    node = Node("world", namespace="/robot_1")
    yield node
    node.destroy_node()


@pytest.fixture
def spinner(node):
    spinner = Spinner(node)
    yield spinner
    spinner.close()


@pytest.fixture
def launch(tmp_path):
    processes = []
    embodiment = tmp_path / "table.yaml"
    embodiment.write_text(yaml.safe_dump(robot().to_dict()))

    def start(bundle):
        arguments = ["--params-file", str(CONFIG), "-r", "__ns:=/robot_1"]
        for name, value in {"embodiment": embodiment, "bundle": bundle, "lockstep": "true"}.items():
            arguments += ["-p", f"{name}:={value}"]
        command = [sys.executable, "-m", "efm_reward_node.main", "--ros-args", *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_process_judges_and_ends_in_order_at_a_signal(launch, node, spinner, tmp_path, number):
    labels = []
    camera = node.create_publisher(Image, "camera/top/image_raw", IMAGES)
    instruction = node.create_publisher(Instruction, "instruction", LATCHED)
    node.create_subscription(StepsToGo, "steps_to_go", labels.append, EVENTS)
    begin = Instruction(episode_id="first", text=TASK)
    begin.header.stamp = ns_to_stamp(stamp(0))
    instruction.publish(begin)
    process = launch(write_reward_bundle(tmp_path).path)
    spinner.until(camera.get_subscription_count, "the reward node to listen")
    for step in range(100):  # The first ones may go out before the label's way back is matched.
        camera.publish(rgb_to_image(picture(7), Header(stamp=ns_to_stamp(stamp(step)))))
        patience = time.monotonic() + 1.0
        spinner.until(lambda patience=patience: labels or time.monotonic() > patience, "a label")
        if labels:
            break
    assert labels[0].expectation == pytest.approx(7, abs=1e-3)
    asked = time.monotonic()
    os.kill(process.pid, number)
    spinner.until(lambda: process.poll() is not None, "the end of the process")
    assert process.returncode == 0, process.stdout.read()
    assert time.monotonic() - asked < 20.0  # 0.3 s on an idle machine.


def test_a_process_with_a_wrong_bundle_says_so_and_need_not_be_started_again(launch, spinner, tmp_path):
    process = launch(write_reward_bundle(tmp_path, kind="policy").path)
    output, _ = process.communicate(timeout=250)
    assert process.returncode == EXIT_REFUSED
    assert "configure: bundle" in output
    assert "expected kind reward or both, found policy" in output
    assert "Traceback" not in output
