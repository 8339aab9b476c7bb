"""Lets the tests of this package import the helpers that lie beside them, and starts nodes for them."""

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def spinner(ros):
    from efm_ros.testing import Spinner

    spinner = Spinner()
    yield spinner
    spinner.close()


@pytest.fixture
def world(spinner):
    from rclpy.node import Node

    node = Node("world")
    spinner.executor.add_node(node)
    yield node
    node.destroy_node()


@pytest.fixture
def bundles(tmp_path):
    return tmp_path / "bundles"


@pytest.fixture
def start(world, spinner, tmp_path, bundles):
    """Starts a reward node; gives it and its robots, all matched with one another."""
    from judged_world import robot, write_reward_bundle
    from rclpy.parameter import Parameter
    from reward_cell import Robot

    from efm_reward_node.node import RewardNode

    nodes = []
    embodiment = tmp_path / "table.yaml"
    embodiment.write_text(yaml.safe_dump(robot().to_dict()))

    def begin(robots=("",), wait=True, **parameters):
        given = {
            "robots": list(robots),
            "lockstep": True,
            "bundle_dir": str(tmp_path / "cache"),
            **parameters,
        }
        given.setdefault("embodiment", str(embodiment))
        if "bundle" not in given:
            given["bundle"] = str(write_reward_bundle(bundles).path)
        node = RewardNode(parameter_overrides=[Parameter(name, value=value) for name, value in given.items()])
        nodes.append(node)
        spinner.executor.add_node(node)
        made = [Robot(world, name, spinner) for name in robots]
        for found in made:
            found.judge_node = node
        if wait:
            spinner.until(lambda: node.is_active or node.failure is not None, "an active reward node")
            assert node.failure is None, node.failure
            spinner.until(lambda: all(found.is_heard() for found in made), "the reward node to listen")
            spinner.until(
                lambda: all(one.publisher.get_subscription_count() for one in node._live.robots), "us"
            )
        return node, made

    yield begin
    for node in nodes:
        node.stop_and_release()
        spinner.executor.remove_node(node)
        node.destroy_node()


@pytest.fixture
def learner(spinner, tmp_path):
    from rclpy.node import Node

    from efm_ros.transfer_server import BundleServer

    node = Node("learner", namespace="/learner")
    spinner.executor.add_node(node)
    yield BundleServer(node, tmp_path / "learner")
    node.destroy_node()
