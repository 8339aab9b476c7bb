"""`efm watch`: the fleet in a terminal, with keys to pause, mark episodes, confirm resets and stop robots.

Without a terminal (in a log, under a service manager) it writes a line whenever something changes; `--once`
shows the present state and ends.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from efm_bringup.monitor import FleetMonitor, find_robots
from efm_bringup.operator_keys import HELP, Keyboard, Operator
from efm_bringup.watch_table import learner_line, phase_words, picture, robot_line
from efm_core.errors import WaitTimeout

DISCOVERY_PERIOD_S = 1.0
REFRESH_S = 0.2
ONCE_DEADLINE_S = 15.0
SETTLE_S = 1.5  # Longer than the period of statuses and diagnostics.
WIDE = 160  # Columns, where there is no terminal to ask.


def main(argv: Sequence[str]) -> int:
    """Runs until `q`, and returns 0, or until Ctrl+C."""
    parser = argparse.ArgumentParser(prog="efm watch", description="The fleet in a terminal.")
    parser.add_argument("--robots", default="", help="names with commas between (default: all that turn up)")
    parser.add_argument("--once", action="store_true", help="show the present state and end")
    options = parser.parse_args(argv)
    robots = [name.strip().strip("/") for name in options.robots.split(",") if name.strip()]
    with FleetMonitor(robots, details=True) as monitor:
        if options.once:
            _show_once(monitor, searching=not robots)
        elif sys.stdin.isatty() and sys.stdout.isatty():
            _show_live(monitor, searching=not robots)
        else:
            _log(monitor, searching=not robots)
    return 0


def _show_once(monitor: FleetMonitor, searching: bool) -> None:
    deadline = time.monotonic() + ONCE_DEADLINE_S
    heard_s = math.inf
    while time.monotonic() - heard_s < SETTLE_S:
        if heard_s == math.inf and any(view.status for view in monitor.robots.values()):
            heard_s = time.monotonic()
        elif heard_s == math.inf and time.monotonic() > deadline:
            raise WaitTimeout(_nobody(monitor, searching))
        if searching:
            monitor.discover()
        time.sleep(0.1)
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(picture(monitor, selected=(), keys="", said=()))


def _nobody(monitor: FleetMonitor, searching: bool) -> str:
    """Returns what was waited for; who asked for robots by name is told which there are."""
    wanted = "a robot" if searching else ", ".join(monitor.robots)
    text = f"waited {ONCE_DEADLINE_S:g} s for the status of {wanted}"
    there = sorted(set(find_robots(monitor.node)) - set(monitor.robots))
    if there:
        return f"{text}; there is {', '.join(there)}: correct --robots, or leave it out for all"
    return f"{text}; is an episode node running in this ROS_DOMAIN_ID? (efm doctor tells more)"


def _show_live(monitor: FleetMonitor, searching: bool) -> None:
    operator = Operator(monitor.node, monitor.robots)
    looked_s = 0.0
    with Keyboard() as keyboard, Live(auto_refresh=False, screen=True) as live:
        while not operator.ended:
            if searching and time.monotonic() - looked_s > DISCOVERY_PERIOD_S:
                looked_s = time.monotonic()
                monitor.discover()
            live.update(picture(monitor, operator.selected, HELP, list(operator.said)), refresh=True)
            operator.press(keyboard.read(REFRESH_S))


def _log(monitor: FleetMonitor, searching: bool) -> None:
    told: dict[str, tuple[object, ...]] = {}
    while True:
        if searching:
            monitor.discover()
        heard = ((robot, view) for robot, view in monitor.robots.items() if view.status is not None)
        for robot, view in heard:
            words = phase_words(view)[0].partition(":")[0]
            now = (words, view.status.episode_id, view.finished, view.status.message)
            if told.get(robot) != now:
                told[robot] = now
                print(f"{time.strftime('%H:%M:%S')} {robot_line(robot, view)}", flush=True)
        status = monitor.learner
        if status is not None and told.get("learner:") != (status.phase, status.iteration, status.message):
            told["learner:"] = (status.phase, status.iteration, status.message)
            print(f"{time.strftime('%H:%M:%S')} {learner_line(status).plain}", flush=True)
        time.sleep(DISCOVERY_PERIOD_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
