"""Worlds behind topics, through real processes and DDS: lockstep, reset, experts, the clock, and restarts."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from action_msgs.srv import CancelGoal
from rclpy.action import ActionClient
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState

from efm_core.embodiment import load_embodiment
from efm_core.errors import EXIT_REFUSED, Reason
from efm_core.message_values import state_values
from efm_core.summary import Outcome
from efm_msgs.action import Act
from efm_msgs.msg import GroundTruth, PolicyStep
from efm_msgs.srv import ResetWorld
from efm_ros.commands import CommandChannel
from efm_ros.conversion import stamp_to_ns
from efm_ros.qos import COMMANDS, EVENTS, IMAGES, deep
from efm_ros.testing import PATIENCE_S, Spinner

COUNTER = itertools.count()
FAKE_POLICY = Path(__file__).with_name("fake_policy.py")
EMBODIMENT = load_embodiment("pointmass")


class Simulator:
    """A simulator in a process of its own, and what this process hears of its first robot."""

    def __init__(self, spinner, node, folder):
        self.spinner, self.node, self.folder = spinner, node, folder
        self.process = None
        self.states, self.truths, self.steps, self.clocks = [], [], [], []
        node.create_subscription(JointState, "robot_1/joint_states", self.states.append, deep(IMAGES))
        node.create_subscription(GroundTruth, "robot_1/ground_truth", self.truths.append, deep(EVENTS))
        node.create_subscription(PolicyStep, "robot_1/policy_step", self.steps.append, deep(EVENTS))
        node.create_subscription(Clock, "/clock", self.clocks.append, deep(COMMANDS))
        self.resets = node.create_client(ResetWorld, "robot_1/reset")
        self.experts = ActionClient(node, Act, "robot_1/expert/act")
        self.channel = CommandChannel(node, EMBODIMENT, "robot_1", lockstep=True)

    def start(self, **parameters):
        parameters = {"world": "pointmass", "robots": ["robot_1"], "seed": 1, **parameters}
        given = [part for key, value in parameters.items() for part in ("-p", f"{key}:={json.dumps(value)}")]
        self.log = self.folder / "sim.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "efm_sim.main", "--ros-args", *given],
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "ROS_HOME": str(self.folder / "ros")},
        )

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def until(self, condition, what):
        self.spinner.until(condition, f"{what}; {self.log.read_text()[-2000:]}")

    def until_there(self):
        """Waits for the first observation and for the services, of this very process."""
        self.until(lambda: self.states and self.clocks, "an observation")
        self.until(lambda: self.resets.service_is_ready() and self.experts.server_is_ready(), "the services")
        self.until(self.channel._publisher.get_subscription_count, "the robot to listen")

    def reset(self, seed=0, instruction=""):
        return self.spinner.call(self.resets, ResetWorld.Request(seed=seed, instruction=instruction))

    def act(self, **goal):
        sent = self.experts.send_goal_async(Act.Goal(**goal))
        self.until(sent.done, "an answer to the goal")
        self.handle = sent.result()
        return self.handle.get_result_async()

    @property
    def stamps(self):
        return [stamp_to_ns(message.header.stamp) for message in self.states]


@pytest.fixture
def sim(ros, tmp_path):
    node = Node(f"client_{next(COUNTER)}")
    spinner = Spinner(node)
    simulator = Simulator(spinner, node, tmp_path)
    yield simulator
    if simulator.process is not None and simulator.process.poll() is None:
        simulator.stop()
    spinner.close()
    node.destroy_node()


def test_a_command_that_answers_the_last_observation_makes_the_world_step(sim):
    sim.start()
    sim.until_there()
    answer = sim.reset(seed=9)
    assert (answer.reason, answer.seed, answer.instruction) == (Reason.OK, 9, "reach the goal")
    start_ns = stamp_to_ns(answer.stamp)
    sim.until(lambda: start_ns in sim.stamps, "the first observation")
    sim.channel.send([1.0, 0.0], start_ns)
    sim.until(lambda: start_ns + 100_000_000 in sim.stamps, "the next observation")
    sim.channel.send([1.0, 0.0], start_ns)  # A late answer moves nothing.
    sim.until(
        lambda: sim.stamps[-3:] == [start_ns + 100_000_000] * 3, "the same observation shown again twice"
    )
    states = {stamp_to_ns(m.header.stamp): state_values(m, EMBODIMENT.state) for m in sim.states}
    before, after = states[start_ns], states[start_ns + 100_000_000]
    assert after[2] > before[2], "it was pushed along x"
    truth = {stamp_to_ns(message.header.stamp): message for message in sim.truths}
    assert truth[start_ns].distance > 0.15 and not truth[start_ns].success
    sim.until(lambda: stamp_to_ns(sim.clocks[-1].clock) == start_ns + 100_000_000, "the clock")


def test_a_reset_reports_what_it_cannot_do(sim):
    sim.start()
    sim.until_there()
    answer = sim.reset(instruction="reach the goall")
    assert answer.reason == Reason.BAD_REQUEST and "'reach the goal'" in answer.message
    drawn = [sim.reset().seed for _ in range(3)]
    assert len(set(drawn)) == 3 and 0 not in drawn


def test_an_expert_acts_and_says_what_it_thinks_of_its_work(sim):
    sim.start(expert_style="perfect")
    sim.until_there()
    answer = sim.reset(seed=9)
    done = sim.act(episode_id="e1", instruction=answer.instruction, start=answer.stamp)
    sim.until(done.done, "the expert's result")
    result = done.result().result
    assert (result.reason, result.outcome) == (Reason.OK, Outcome.SUCCESS)
    sim.until(lambda: len(sim.steps) == result.steps, "all policy steps")
    assert {step.actor for step in sim.steps} == {PolicyStep.ACTOR_EXPERT}
    assert [step.step for step in sim.steps] == list(range(result.steps))
    assert {step.episode_id for step in sim.steps} == {"e1"}
    stamps = [stamp_to_ns(step.header.stamp) for step in sim.steps]
    assert stamps[0] == stamp_to_ns(answer.stamp)
    last_ns = stamps[-1] + 100_000_000
    sim.until(lambda: last_ns in sim.stamps, "the last observation")
    assert set(stamps) <= set(sim.stamps)

    def success():
        return {stamp_to_ns(message.header.stamp): message.success for message in sim.truths}

    sim.until(lambda: last_ns in success(), "the truth about it")
    assert sum(success().values()) >= 6, "it rests past its success"


def test_an_expert_is_refused_what_contradicts_the_reset_and_can_be_stopped(sim):
    sim.start(lockstep=False, real_time_factor=0.2)
    sim.until_there()
    refused = sim.act(instruction="fly")
    sim.until(refused.done, "the refusal")
    assert refused.result().result.reason == Reason.BAD_REQUEST
    assert "expected the instruction of the last reset" in refused.result().result.message
    sim.reset(seed=9)
    first = sim.act(episode_id="e1")
    second = sim.act(episode_id="e2")
    sim.until(second.done, "the refusal of the second")
    assert "acts already" in second.result().result.message
    third = sim.act(episode_id="e3")  # Refused too; then the first is cancelled through its own handle.
    sim.until(third.done, "the refusal of the third")
    sim.reset(seed=10)
    sim.until(first.done, "the end of the first")
    assert first.result().result.reason == Reason.CANCELLED
    assert first.result().result.outcome == Outcome.UNSET
    running = sim.act(episode_id="e4")
    sim.until(lambda: any(step.episode_id == "e4" for step in sim.steps), "a step")
    sim.handle.cancel_goal_async()
    sim.until(running.done, "the end of the cancelled act")
    assert running.result().result.reason == Reason.CANCELLED


def test_a_cancellation_that_comes_with_its_goal_stops_the_expert(sim):
    """A busy simulator takes both at once; the expert once acted to the end, deaf to every later one."""
    sim.start(lockstep=False, real_time_factor=0.2)
    sim.until_there()
    sim.reset(seed=9)
    cancels = sim.node.create_client(CancelGoal, "robot_1/expert/act/_action/cancel_goal")
    sim.spinner.until(cancels.service_is_ready, "the expert's cancel service")
    os.kill(sim.process.pid, signal.SIGSTOP)
    sent = sim.experts.send_goal_async(Act.Goal(episode_id="e1"))
    cancels.call_async(CancelGoal.Request())
    os.kill(sim.process.pid, signal.SIGCONT)
    sim.until(sent.done, "an answer to the goal")
    acting = sent.result().get_result_async()
    sim.until(acting.done, "the end of the act")
    assert acting.result().result.reason == Reason.CANCELLED


def test_stamps_rise_over_resets_and_over_the_death_of_the_simulator(sim):
    sim.start()
    sim.until_there()
    for _ in range(3):
        sim.reset()
    sim.until(lambda: len(set(sim.stamps)) >= 4, "three resets")
    assert sim.stamps == sorted(sim.stamps)
    last = sim.stamps[-1]
    sim.process.kill()
    sim.process.wait(PATIENCE_S)
    sim.start()
    sim.until(lambda: sim.stamps[-1] != last, "the new simulator")
    assert sim.stamps[-1] > last


def test_in_real_time_the_world_goes_on_without_commands(sim):
    sim.start(lockstep=False, real_time_factor=5.0)
    sim.until_there()
    sim.states.clear(), sim.clocks.clear()
    sim.until(lambda: len(sim.states) >= 20 and len(sim.clocks) >= 20, "twenty observations")
    stamps = sim.stamps
    assert stamps == sorted(set(stamps)), "each is shown once"
    clocks = [stamp_to_ns(message.clock) for message in sim.clocks]
    assert clocks == sorted(clocks)
    assert len(set(clocks)) > len(clocks) // 2, "the clock runs between observations"


def test_two_robots_of_one_process_step_apart_from_each_other(sim):
    sim.start(robots=["robot_1", "robot_2"])
    sim.until_there()
    policy = subprocess.Popen([sys.executable, str(FAKE_POLICY), "robot_2"], start_new_session=True)
    others = []
    subscription = sim.node.create_subscription(
        JointState, "robot_2/joint_states", others.append, deep(IMAGES)
    )
    try:
        sim.until(lambda: len({stamp_to_ns(m.header.stamp) for m in others}) > 50, "fifty steps of robot_2")
    finally:
        policy.send_signal(signal.SIGINT)
        policy.wait(PATIENCE_S)
        sim.node.destroy_subscription(subscription)
    assert len(set(sim.stamps)) <= 2, "robot_1 waits for its own command"
    stamps = [stamp_to_ns(message.header.stamp) for message in others]
    assert stamps == sorted(stamps)


def test_a_camera_is_shown_with_its_info_and_frame(sim):
    sim.start(world="table", world_options=json.dumps({"blocks": 2}))
    images, infos = [], []
    sim.node.create_subscription(Image, "robot_1/camera/top/image_raw", images.append, IMAGES)
    sim.node.create_subscription(CameraInfo, "robot_1/camera/top/camera_info", infos.append, IMAGES)
    sim.until(lambda: images and infos, "an image and its info")
    assert (images[-1].height, images[-1].width, images[-1].encoding) == (96, 96, "rgb8")
    assert images[-1].header.frame_id == infos[-1].header.frame_id == "robot_1/top_optical"
    assert (infos[-1].height, infos[-1].width) == (96, 96)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"world": "pointmas"}, "unknown world 'pointmas' (did you mean 'pointmass'?)"),
        ({"embodiment": "table"}, "does not fit the world 'pointmass'"),
        ({"world_options": "[1]"}, "parameter 'world_options': expected a JSON object"),
        ({"expert_changes": '{"nois": 1}'}, "unknown ExpertStyle field 'nois'"),
        ({"expert_style": "lazy"}, "expected one of perfect, imperfect, sloppy"),
        ({"robots": ["a", "a"]}, "expected different names"),
    ],
)
def test_a_setting_that_cannot_be_ends_the_start_with_the_reason(sim, parameters, words):
    sim.start(**{"embodiment": "pointmass", **parameters})
    assert sim.process.wait(PATIENCE_S) == EXIT_REFUSED
    assert words in sim.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_simulator_ends_in_order_while_it_is_commanded(sim, number):
    sim.start()
    sim.until_there()
    policy = subprocess.Popen([sys.executable, str(FAKE_POLICY), "robot_1"], start_new_session=True)
    try:
        sim.until(lambda: len(set(sim.stamps)) > 20, "twenty steps")
        assert sim.stop(number) == 0, sim.log.read_text()
    finally:
        policy.send_signal(signal.SIGINT)
        policy.wait(PATIENCE_S)
