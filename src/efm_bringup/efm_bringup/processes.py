"""Starts the nodes of a stack as processes of this machine, watches them, and stops them with one signal.

What `ros2 launch` does where it is installed, for machines without it and for commands that need a stack for
a while (`efm demo`, `efm practice`). Left out: event handlers, composition, remote machines.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from efm_bringup.config import config_file
from efm_bringup.stacks import NodeSpec
from efm_core.errors import EXIT_REFUSED, BadRequest, WaitTimeout
from efm_core.leash import leashed

RESPAWN_DELAY_S = 1.0
# One that dies again within so long waits twice as long as before, since it will say the same words again.
SETTLED_S = 20.0
LONGEST_DELAY_S = 32.0
STOP_DEADLINE_S = 10.0  # Twice what a whole stack may take; a learner ends its iteration first.
KILL_DEADLINE_S = 2.0
LAST_BYTES = 4096  # Of a log, in which the last line is looked for.


def command_of(node: NodeSpec) -> list[str]:
    """Returns the command line that starts a node with this Python."""
    command = [sys.executable, "-m", node.module, "--ros-args"]
    command += ["-r", f"__node:={node.name}", "-r", f"__ns:={node.namespace}"]
    for source, target in node.remappings:
        command += ["-r", f"{source}:={target}"]
    if node.config:
        command += ["--params-file", str(config_file(node.config))]
    for name, value in node.parameters.items():
        command += ["-p", f"{name}:={_yaml(value)}"]
    return [*command, *node.ros_arguments]


@dataclass
class _Running:
    node: NodeSpec
    process: subprocess.Popen[bytes]
    started_s: float
    delay_s: float = 0.0  # Before the newest start; 0: it was the first.
    restart_at: float | None = None

    def next_delay_s(self, now_s: float) -> float:
        """Returns how long a node that died now stays down: ever longer, until it has lived for a while."""
        if not self.node.respawn:
            return math.inf
        if not self.delay_s or now_s - self.started_s > SETTLED_S:
            return RESPAWN_DELAY_S
        return min(2.0 * self.delay_s, LONGEST_DELAY_S)


class ProcessGroup:
    """The processes of a stack; a context manager that leaves none behind.

    Used from one thread, which has to live as long as the nodes.

    Args:
        nodes: What to start.
        logs: Folder for one log file per node; None: all write to this terminal.
        environment: Added to this process's.
    """

    def __init__(
        self,
        nodes: Sequence[NodeSpec],
        logs: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._nodes = list(nodes)
        self._logs = logs
        self._environment = {**os.environ, **(environment or {})}
        self._running: list[_Running] = []
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> ProcessGroup:
        if self._logs:
            self._logs.mkdir(parents=True, exist_ok=True)
        try:
            for node in self._nodes:
                self._running.append(_Running(node, self._start(node), time.monotonic()))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def watch(self) -> list[str]:
        """Starts nodes again that died, and returns a line for each that was found dead.

        Call it every second or so. A node without `respawn` stays dead. One that dies again and again is
        started ever more seldom.

        Raises:
            BadRequest: A node refused its parameters when it was started for the first time.
        """
        lines = []
        now = time.monotonic()
        for running in self._running:
            code = running.process.poll()
            if code is None:
                continue
            if code == EXIT_REFUSED and not running.delay_s:
                raise BadRequest(self._obituary(running))
            if running.restart_at is None:
                delay_s = running.next_delay_s(now)
                again = f"; it is started again in {delay_s:g} s" if running.node.respawn else ""
                lines.append(self._obituary(running, again))
                running.delay_s, running.restart_at = delay_s, now + delay_s
            elif now >= running.restart_at:
                running.process, running.started_s = self._start(running.node), now
                running.restart_at = None
        return lines

    @property
    def dead(self) -> list[str]:
        """A line for each node that does not run now."""
        return [self._obituary(running) for running in self._running if running.process.poll() is not None]

    def pid(self, name: str, namespace: str = "/") -> int:
        """Returns the process id of a node, for tests that kill it."""
        for running in self._running:
            if (running.node.name, running.node.namespace) == (name, namespace):
                return running.process.pid
        raise KeyError(
            f"no node {name!r} in {namespace!r}; there are {[_label(r.node) for r in self._running]}"
        )

    def stop(self) -> list[int]:
        """Sends one SIGTERM to each, waits, and kills what is left; returns the exit codes in start order.

        SIGTERM and not SIGINT, which are the same to a node that is up, since Python would fill the terminal
        with the tracebacks of those that are still starting. Such a node dies of it and counts as ended well.
        """
        for running in self._running:
            if running.process.poll() is None:
                running.process.terminate()
        deadline = time.monotonic() + STOP_DEADLINE_S
        for running in self._running:
            try:
                running.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait(KILL_DEADLINE_S)
        codes = [running.process.returncode for running in self._running]
        codes = [0 if code == -signal.SIGTERM else code for code in codes]
        for file in self._files:
            file.close()
        self._running, self._files = [], []
        return codes

    def _start(self, node: NodeSpec) -> subprocess.Popen[bytes]:
        output: IO[bytes] | None = None
        if self._logs:
            output = self._log(node, self._logs).open("ab")
            self._files.append(output)
        return subprocess.Popen(
            leashed(command_of(node)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            env=self._environment,
            start_new_session=True,  # Ctrl+C reaches this process alone, which stops the others.
        )

    def _obituary(self, running: _Running, again: str = "") -> str:
        """Returns how a node ended, and the last that it said where its log is kept."""
        text = f"{_label(running.node)} ended with code {running.process.returncode}{again}"
        if not self._logs:
            return text
        log = self._log(running.node, self._logs)
        said = _last_line(log)
        return f"{text}; see {log}" + (f", whose last line is: {said}" if said else "")

    @staticmethod
    def _log(node: NodeSpec, folder: Path) -> Path:
        return folder / f"{_label(node).strip('/').replace('/', '.')}.log"


def wait_for(condition, what: str, deadline_s: float, group: ProcessGroup | None = None) -> None:
    """Polls until a condition holds; a node that died meanwhile ends the wait at once.

    Raises:
        WaitTimeout: Names what was waited for and which nodes are dead.
    """
    end = time.monotonic() + deadline_s
    while not condition():
        if group is not None and group.dead:
            raise WaitTimeout(f"waited for {what}, but {'; '.join(group.dead)}")
        if time.monotonic() > end:
            raise WaitTimeout(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.05)


def _last_line(log: Path) -> str:
    """Returns the last line that is not empty; empty where there is none, or no such file any more."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _label(node: NodeSpec) -> str:
    return f"{node.namespace.rstrip('/')}/{node.name}"


def _yaml(value: object) -> str:
    """Text that ROS reads back as the same type: JSON is YAML."""
    return json.dumps(value)
