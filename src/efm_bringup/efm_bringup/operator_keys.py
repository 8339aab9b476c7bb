"""The keys of `efm watch`: each asks a service of the selected robots. Left out: what is on the screen."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from rclpy.client import Client
from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from efm_bringup.monitor import RobotView
from efm_msgs.msg import EpisodeStatus
from efm_ros.names import in_robot
from efm_ros.qos import LATCHED

PAUSE, ESTOP = "episodes/pause", "estop_set"
ANSWERS = 3  # Lines of answers on the screen.
FOUND_S = 1.0  # Longest that a service takes to be found at its first use.
# Arrows and the like: a terminal sends them as several characters, of which none is meant.
SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[@-~]|O.)")


@dataclass(frozen=True)
class Key:
    """What a key does.

    Attributes:
        label: For the screen.
        service: Below the robot's namespace.
        turned_on: For switches: whether it is on now; then the key turns it off. None: a Trigger.
    """

    label: str
    service: str
    turned_on: Callable[[RobotView], bool] | None = None


def _is_paused(view: RobotView) -> bool:
    return view.status is not None and view.status.phase == EpisodeStatus.PHASE_PAUSED


KEYS: Mapping[str, Key] = {
    "p": Key("pause/resume", PAUSE, _is_paused),
    "s": Key("success", "episodes/mark_success"),
    "f": Key("failure", "episodes/mark_failure"),
    "d": Key("discard", "episodes/discard"),
    "r": Key("reset done", "episodes/reset_done"),
    "g": Key("go", "episodes/start"),
    "x": Key("stop run", "episodes/stop"),
    "t": Key("take over/release", "takeover_set", lambda view: view.takeover),
    "e": Key("E-STOP/release", ESTOP, lambda view: view.estop),
}
HELP = " ".join(f"[{key}] {what.label}" for key, what in KEYS.items()) + " [1-9] robot [0] all [q] quit"


class Operator:
    """Turns keys into service calls on a node that another thread spins.

    Attributes:
        selected: Names of the robots that keys are for.
        said: Newest answers, oldest first.
        ended: `q` was pressed.
    """

    def __init__(self, node: Node, robots: Mapping[str, RobotView]) -> None:
        self._node = node
        self._robots = robots
        self._clients: dict[tuple[str, str], Client] = {}
        self._estops: dict[str, Publisher] = {}
        self._chosen: str | None = None
        self._pausing: set[str] = set()  # Robots that were asked to pause and may still act.
        self.said: deque[str] = deque(maxlen=ANSWERS)
        self.ended = False

    @property
    def selected(self) -> list[str]:
        """See the class."""
        return list(self._robots) if self._chosen is None else [self._chosen]

    def press(self, keys: str) -> None:
        """Does what keys stand for, in order; unknown ones do nothing."""
        for key in keys:
            if key == "q":
                self.ended = True
            elif key == "0":
                self._chosen = None
            elif key.isdigit() and int(key) <= len(self._robots):
                self._chosen = list(self._robots)[int(key) - 1]
            elif key in KEYS:
                self._ask(KEYS[key])

    def _ask(self, key: Key) -> None:
        wanted = {robot: not self._is_on(robot, key) for robot in self.selected}
        if key.service == ESTOP:
            # Who stops all robots may not release those that are stopped already.
            wanted = dict.fromkeys(wanted, any(wanted.values()))
            for robot, on in wanted.items():
                self._press_estop(robot, on)  # Of all, before any service is looked for.
        for robot, on in wanted.items():
            self._call(robot, key, on)

    def _call(self, robot: str, key: Key, on: bool) -> None:
        name = "/" + in_robot(robot, key.service)
        kind = Trigger if key.turned_on is None else SetBool
        request = kind.Request() if key.turned_on is None else SetBool.Request(data=on)
        if key.service == PAUSE:
            (self._pausing.add if on else self._pausing.discard)(robot)
        client = self._clients.get((robot, key.service))
        if client is None:
            client = self._clients[robot, key.service] = self._node.create_client(kind, name)
            client.wait_for_service(FOUND_S)
        if client.service_is_ready():
            client.call_async(request).add_done_callback(partial(self._answered, robot, key))
        elif key.service != ESTOP:
            self._say(f"{robot}: {key.label}: nobody offers the service {name}")

    def _is_on(self, robot: str, key: Key) -> bool:
        """Whether a switch is on; a robot that pauses after its present episode counts as paused."""
        pausing = key.service == PAUSE and robot in self._pausing
        return pausing or (key.turned_on is not None and key.turned_on(self._robots[robot]))

    def _press_estop(self, robot: str, on: bool) -> None:
        """Says it on the topic at once, which is heard without a policy node too; its service keeps it."""
        topic = "/" + in_robot(robot, "estop")
        if robot not in self._estops:
            self._estops[robot] = self._node.create_publisher(Bool, topic, LATCHED)
        self._estops[robot].publish(Bool(data=on))
        self._say(f"{robot}: e-stop {'pressed' if on else 'released'} on {topic}")

    def _answered(self, robot: str, key: Key, future: Any) -> None:
        answer = future.result()
        self._say(f"{robot}: {key.label}: {answer.message or ('done' if answer.success else 'refused')}")

    def _say(self, text: str) -> None:
        self.said.append(f"{time.strftime('%H:%M:%S')} {text}")


class Keyboard:
    """Keys of a terminal, without Enter. Use as a context manager; leaves the terminal as it was."""

    def __enter__(self) -> Keyboard:
        self._file = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._file)
        tty.setcbreak(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def read(self, timeout_s: float) -> str:
        """Returns what was typed, as soon as there is something; empty after the timeout."""
        ready, _, _ = select.select([self._file], [], [], timeout_s)
        # Not through sys.stdin, whose buffer would keep all but the first of several keys.
        return SEQUENCE.sub("", os.read(self._file, 64).decode(errors="ignore")) if ready else ""
