"""Real nodes as processes: a simulated point mass, an episode node, and models that are faked."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rclpy.action import ActionClient
from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from efm_core.episode import list_episodes
from efm_msgs.action import RunEpisodes
from efm_msgs.msg import EpisodeStatus, EpisodeSummary
from efm_ros.qos import EVENTS, LATCHED
from efm_ros.testing import PATIENCE_S, Spinner

sys.path.insert(0, str(Path(__file__).parent))

COUNTER = itertools.count()
FAKE_MODELS = Path(__file__).with_name("fake_models.py")
# For tests that kill what an episode needs; the others are as patient as a robot is. On a busy machine a node
# may fall silent for that long without being dead, which costs one fault more.
IMPATIENT = {
    "reset_timeout_s": 5.0,
    "stall_timeout_s": 3.0,
    "settle_timeout_s": 5.0,
    "fault_limit": 100,
}


class Stack:
    """Starts, kills and stops processes, and is an impatient client of the episode node."""

    def __init__(self, spinner, node, folder):
        self.spinner, self.node, self.folder = spinner, node, folder
        self.processes = {}
        self.statuses, self.summaries, self.feedback = [], [], []
        self.messages = []
        node.create_subscription(EpisodeStatus, "/robot_1/episode_status", self._on_status, LATCHED)
        node.create_subscription(EpisodeSummary, "/robot_1/episode_summary", self.summaries.append, EVENTS)
        self.runs = ActionClient(node, RunEpisodes, "/robot_1/episodes/run")

    # Processes

    def start(self, name, *command, **environment):
        log = open(self.folder / f"{name}.log", "ab")  # noqa: SIM115 the process has it
        self.processes[name] = subprocess.Popen(
            [sys.executable, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "ROS_HOME": str(self.folder / "ros"), **environment},
        )

    def start_node(self, name, module, namespace="/", **parameters):
        given = [part for key, value in parameters.items() for part in ("-p", f"{key}:={json.dumps(value)}")]
        self.start(name, "-m", module, "--ros-args", "-r", f"__ns:={namespace}", *given)

    def start_sim(self, **parameters):
        parameters = {"world": "pointmass", "robots": ["robot_1"], "seed": 3, **parameters}
        self.start_node("sim", "efm_sim.main", **parameters)

    def start_episodes(self, name="episodes", namespace="/robot_1", impatient=False, **parameters):
        defaults = {
            "embodiment": "pointmass",
            "use_sim_time": True,
            "spool": str(self.folder / "spool"),
            "learner": "",
            "learner_timeout_s": 0.0,
            **(IMPATIENT if impatient else {}),
        }
        self.start_node(name, "efm_episode_node.main", namespace, **{**defaults, **parameters})

    def start_models(self, name="models", **options):
        self.start(name, str(FAKE_MODELS), json.dumps(options))

    def kill(self, name):
        self.processes[name].kill()
        self.processes.pop(name).wait(PATIENCE_S)

    def stop(self, name, number=signal.SIGINT):
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(PATIENCE_S)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def close(self):
        # In order, so that no dead node haunts the graph of the next test for 10 s.
        for process in self.processes.values():
            process.send_signal(signal.SIGINT)
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(PATIENCE_S)

    # Client

    def until(self, condition, what, timeout_s=PATIENCE_S):
        def failed():
            dead = [name for name, process in self.processes.items() if process.poll() not in (None, 0)]
            logs = "\n".join(f"--- {name}\n{self.log(name)[-3000:]}" for name in (dead or self.processes))
            status = self.statuses[-1].message if self.statuses else "no status"
            return f"{what}; status: {status}; dead: {dead}\n{logs}"

        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout_s:g} s in vain for {failed()}")
            self.spinner.executor.spin_once(timeout_sec=0.05)

    def begin(self, mode, episodes=1, **goal):
        # A status of this very node, not only an entry in the graph, which a killed node leaves behind.
        self.until(lambda: self.statuses, "the episode node")
        self.until(self.runs.server_is_ready, "the action episodes/run")
        sent = self.runs.send_goal_async(
            RunEpisodes.Goal(mode=mode, episodes=episodes, **goal), feedback_callback=self.feedback.append
        )
        self.until(sent.done, "an answer to the goal")
        self.handle = sent.result()
        return self.handle.get_result_async()

    def run(self, mode, episodes=1, timeout_s=200.0, **goal):
        future = self.begin(mode, episodes, **goal)
        self.until(future.done, "the result of the run", timeout_s)
        return future.result().result

    def call(self, name, data=None):
        kind = Trigger if data is None else SetBool
        client = self.node.create_client(kind, f"/robot_1/episodes/{name}")
        try:
            request = Trigger.Request() if data is None else SetBool.Request(data=data)
            return self.spinner.call(client, request)
        finally:
            self.node.destroy_client(client)

    def until_phase(self, phase, what="", timeout_s=PATIENCE_S):
        self.until(
            lambda: self.statuses and self.statuses[-1].phase == phase, f"phase {phase} {what}", timeout_s
        )

    def until_acting(self, steps=2):
        """Waits for the middle of an episode."""
        acting = EpisodeStatus.PHASE_ACTING
        self.until(
            lambda: self.statuses and self.statuses[-1].phase == acting and self.statuses[-1].step >= steps,
            f"step {steps} of an episode",
        )

    def until_said(self, text, timeout_s=PATIENCE_S):
        self.until(
            lambda: any(text in message for message in self.messages), f"the words '{text}'", timeout_s
        )

    def episodes(self, below=""):
        return list_episodes(self.folder / "spool" / below)

    def _on_status(self, status):
        self.statuses.append(status)
        if status.message:
            self.messages.append(status.message)


@pytest.fixture
def stack(ros, tmp_path):
    node = Node(f"client_{next(COUNTER)}")
    spinner = Spinner(node)
    stack = Stack(spinner, node, tmp_path)
    yield stack
    stack.close()
    spinner.close()
    node.destroy_node()
