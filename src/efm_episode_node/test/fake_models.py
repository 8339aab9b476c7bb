"""Stands for policy and reward node of point masses: a spring pulls to the goal, d is the distance.

    python fake_models.py '{"robots": ["robot_1"], "slow_s": 0.3, "instant": false, "dry": false}'

Speaks the interfaces of the real nodes and nothing more: Act, commands that name the observation they answer,
PolicyStep, StepsToGo while an instruction holds. `slow_s` is spent on every answer, so that a test can meet
it half-way; `instant` makes the detector fire at every observation; `dry` sends no command.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np
import rclpy
from rclpy.action import ActionServer, CancelResponse
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import JointState

from efm_core.embodiment import load_embodiment
from efm_core.errors import Reason
from efm_core.message_values import state_values
from efm_msgs.action import Act
from efm_msgs.msg import Instruction, PolicyStep, StepsToGo
from efm_ros.commands import CommandChannel
from efm_ros.conversion import ns_to_stamp, stamp_to_ns
from efm_ros.intake import Intake
from efm_ros.names import in_robot
from efm_ros.qos import EVENTS, IMAGES, LATCHED

STEPS_PER_METRE = 20.0
THRESHOLD, HOLD = 2.0, 2


class FakeModels(Node):
    def __init__(self, robots, slow_s, instant, dry, policy, reward):
        super().__init__("fake_models")
        self.embodiment = load_embodiment("pointmass")
        self.slow_s, self.instant, self.dry = slow_s, instant, dry
        self.intake = Intake(self)
        self.robots = [FakeRobotModels(self, robot, policy, reward) for robot in robots]
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.take)
        self.thread.start()

    def take(self):
        while not self.ending.is_set():
            self.intake.take(0.2)

    def close(self):
        """A thread that is still in the middleware when Python ends would crash the process."""
        self.ending.set()
        self.thread.join()


class FakeRobotModels:
    def __init__(self, node, robot, policy, reward):
        self.node = node
        self.act = self.ended = None
        self.steps = 0
        self.newest = None
        self.answered_ns = 0
        self.judged_ns = 0
        self.episode = Instruction()
        self.held = 0
        self.last_d = float("nan")
        node.intake.subscribe(JointState, in_robot(robot, "joint_states"), self.on_state, IMAGES)
        self.channel = self.judgements = None
        if policy:
            self.channel = CommandChannel(node, node.embodiment, robot, lockstep=True)
            self.policy_steps = node.create_publisher(PolicyStep, in_robot(robot, "policy_step"), EVENTS)
            self.server = ActionServer(
                node, Act, in_robot(robot, "policy/act"), self.execute, cancel_callback=self.cancel
            )
        if reward:
            self.judgements = node.create_publisher(StepsToGo, in_robot(robot, "steps_to_go"), EVENTS)
            node.intake.subscribe(Instruction, in_robot(robot, "instruction"), self.on_instruction, LATCHED)

    def on_instruction(self, message):
        self.episode, self.held, self.last_d, self.judged_ns = message, 0, float("nan"), 0
        if self.newest is not None:
            self.judge(self.newest)

    def on_state(self, message):
        self.newest = message
        self.judge(message)
        self.answer()

    def judge(self, message):
        stamp_ns = stamp_to_ns(message.header.stamp)
        start_ns = stamp_to_ns(self.episode.header.stamp)
        if self.judgements is None or not self.episode.episode_id or stamp_ns < start_ns:
            return
        if stamp_ns == self.judged_ns:
            return
        self.judged_ns = stamp_ns
        state = state_values(message, self.node.embodiment.state)
        d = 0.0 if self.node.instant else float(np.linalg.norm(state[:2] - state[4:])) * STEPS_PER_METRE
        self.held = self.held + 1 if d <= THRESHOLD else 0
        judged = StepsToGo(episode_id=self.episode.episode_id, bundle_id="reward0", expectation=d)
        judged.header.stamp = message.header.stamp
        judged.held, judged.success = self.held, self.held >= HOLD
        judged.threshold, judged.bin_width = THRESHOLD, 2
        judged.reward = self.last_d - d
        self.last_d = d
        self.judgements.publish(judged)

    def answer(self):
        goal = self.act
        if goal is None or self.newest is None:
            return
        stamp_ns = stamp_to_ns(self.newest.header.stamp)
        if stamp_ns < stamp_to_ns(goal.start) or stamp_ns == self.answered_ns:
            return
        if goal.max_steps and self.steps >= goal.max_steps:
            return self.end(Reason.OK)
        time.sleep(self.node.slow_s)
        state = state_values(self.newest, self.node.embodiment.state)
        action = np.clip(4.0 * (state[4:] - state[:2]) - 2.0 * state[2:4], -1.0, 1.0)
        self.answered_ns = stamp_ns
        if not self.node.dry:
            self.channel.send(action, stamp_ns)
        step = PolicyStep(episode_id=goal.episode_id, bundle_id="policy0", step=self.steps)
        step.header.stamp, step.actor = ns_to_stamp(stamp_ns), PolicyStep.ACTOR_POLICY
        step.tokens, step.log_prob, step.temperature = [10, 10], -1.5, 1.0
        step.action = step.command = action.tolist()
        step.gate = PolicyStep.GATE_DRY_RUN if self.node.dry else PolicyStep.GATE_PASSED
        self.policy_steps.publish(step)
        self.steps += 1
        return None

    def end(self, reason):
        self.act, future = None, self.ended
        future.set_result(reason)
        self.node.executor.wake()

    def cancel(self, goal):
        if self.act is not None:
            self.end(Reason.CANCELLED)
        return CancelResponse.ACCEPT

    async def execute(self, goal):
        if self.act is not None:
            goal.abort()
            return Act.Result(reason=int(Reason.BUSY), message="it acts already")
        self.steps, self.ended = 0, Future(executor=self.node.executor)
        self.act = goal.request
        if goal.is_cancel_requested:  # It came with the goal.
            self.end(Reason.CANCELLED)
        self.answer()
        reason = await self.ended
        goal.canceled() if goal.is_cancel_requested else goal.succeed()
        return Act.Result(reason=int(reason), steps=self.steps, bundle_id="policy0", version=3)


def main():
    options = {"robots": ["robot_1"], "slow_s": 0.0, "instant": False, "dry": False}
    options |= {"policy": True, "reward": True}
    options |= json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    rclpy.init(args=[])
    node = FakeModels(**options)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        pass
    finally:
        node.close()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
