"""A robot as its topics show it: what the nodes that only look on get to see."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Header

from efm_core.embodiment import Embodiment
from efm_msgs.msg import EpisodeStatus, EpisodeSummary, Instruction, LearnerStatus, PolicyStep, StepsToGo
from efm_ros.conversion import ns_to_stamp, rgb_to_image
from efm_ros.names import in_robot
from efm_ros.qos import EVENTS, IMAGES, LATCHED


@contextlib.contextmanager
def meanwhile(step: Callable[[], object], pause_s: float = 0.0) -> Iterator[None]:
    """Takes a step again and again, at least once, in a thread of its own while a block runs in this one."""
    ending = threading.Event()

    def repeat() -> None:
        while True:
            step()
            if ending.wait(pause_s):
                return

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


class FakeRobot:
    """Publishes what it is told to, with the topics, types and QoS of the real nodes."""

    def __init__(self, node: Node, embodiment: Embodiment, robot: str) -> None:
        self.embodiment, self.robot, self.node = embodiment, robot, node

        def publisher(kind, topic, qos):
            return node.create_publisher(kind, in_robot(robot, topic), qos)

        self._state = publisher(JointState, embodiment.state.topic, IMAGES)
        self._cameras = [publisher(Image, camera.topic, IMAGES) for camera in embodiment.cameras]
        self._instruction = publisher(Instruction, "instruction", LATCHED)
        self._step = publisher(PolicyStep, "policy_step", EVENTS)
        self._prediction = publisher(StepsToGo, "steps_to_go", EVENTS)
        self._summary = publisher(EpisodeSummary, "episode_summary", LATCHED)
        self._status = publisher(EpisodeStatus, "episode_status", LATCHED)
        self._takeover = publisher(Bool, "takeover", LATCHED)

    def begin(self, episode_id: str, instruction: str) -> None:
        self._instruction.publish(Instruction(episode_id=episode_id, text=instruction))

    def end(self, **summary) -> None:
        self._summary.publish(EpisodeSummary(robot=self.robot, **summary))
        self._instruction.publish(Instruction())

    def observe(self, stamp_ns: int, *values: float, grey: int = 0) -> None:
        names = [entry.joint_name for entry in self.embodiment.state.entries]
        message = JointState(name=names, position=list(values))
        message.header.stamp = ns_to_stamp(stamp_ns)
        self._state.publish(message)
        for camera, publisher in zip(self.embodiment.cameras, self._cameras, strict=True):
            picture = np.full((camera.height, camera.width, 3), grey, np.uint8)
            publisher.publish(rgb_to_image(picture, Header(stamp=ns_to_stamp(stamp_ns))))

    def act(self, episode_id: str, step: int, *command: float, actor: int = PolicyStep.ACTOR_POLICY) -> None:
        message = PolicyStep(episode_id=episode_id, step=step, actor=actor, bundle_id="0123456789abcdef")
        message.command = message.action = list(command)
        self._step.publish(message)

    def judge(self, episode_id: str, expectation: float, **fields) -> None:
        self._prediction.publish(
            StepsToGo(episode_id=episode_id, expectation=expectation, spread=1.0, threshold=5.0, **fields)
        )

    def take_over(self, on: bool) -> None:
        self._takeover.publish(Bool(data=on))

    def status(self, **fields) -> None:
        self._status.publish(EpisodeStatus(robot=self.robot, **fields))


def learner(node: Node):
    """A learner's status topic."""
    return node.create_publisher(LearnerStatus, "/learner/learner_status", LATCHED)
