"""Makes the pictures of the documentation from real runs of simulated robots.

    .venv/bin/python scripts/pictures.py --reward FOLDER  # of `efm sft` for the point mass

The scripted expert moves two robots at the table (`fleet.png`), and two point masses that the reward model
judges: an episode in four pictures (`annotated.png`) and the screen of `efm watch` (`watch.svg`). Left out:
the data flow, which is drawn by hand, and RViz, which needs a screen.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from efm_bringup.annotation import tile
from efm_bringup.demo import isolate
from efm_bringup.monitor import FleetMonitor
from efm_bringup.operator_keys import HELP
from efm_bringup.processes import ProcessGroup, wait_for
from efm_bringup.stacks import check, nodes_of
from efm_bringup.watch_table import picture
from efm_msgs.msg import EpisodeStatus
from efm_ros.conversion import image_to_rgb
from efm_ros.qos import COMMANDS

Picture = npt.NDArray[np.uint8]
OUT = Path(__file__).resolve().parent.parent / "docs" / "pictures"
ROBOTS = ("robot_1", "robot_2")
START_S = 120.0
FRAMES = 4  # Of the film strip.
SETTLED = 5  # Steps after which everything that is shown belongs to the episode.
COLUMNS = 150  # Of the terminal.


class Camera:
    """Keeps the annotated pictures of the first robot by episode, and the newest of the fleet."""

    def __init__(self, monitor: FleetMonitor) -> None:
        """Subscribes; from now on the annotate node draws."""
        self._monitor = monitor
        self.episodes: dict[str, list[Picture]] = {}
        self.fleet: Picture | None = None
        node = monitor.node
        node.create_subscription(Image, f"/{ROBOTS[0]}/annotated", self._on_robot, COMMANDS)
        node.create_subscription(Image, "/annotate/fleet", self._on_fleet, COMMANDS)

    def _on_robot(self, message: Image) -> None:
        status = self._monitor.robots[ROBOTS[0]].status
        if status is not None and status.phase == EpisodeStatus.PHASE_ACTING and status.step > SETTLED:
            self.episodes.setdefault(status.episode_id, []).append(image_to_rgb(message))

    def _on_fleet(self, message: Image) -> None:
        statuses = [self._monitor.robots[robot].status for robot in ROBOTS]
        if all(status is not None and status.step > SETTLED for status in statuses):
            self.fleet = image_to_rgb(message)


def main() -> None:
    """Runs both fleets and writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reward", required=True)
    parser.add_argument("--seconds", type=float, default=40.0, help="that each fleet acts")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    isolate()
    options.out.mkdir(parents=True, exist_ok=True)
    table, _ = act({"world": "table"}, options.seconds)
    assert table.fleet is not None, "the robots at the table did not act"
    save(options.out / "fleet.png", table.fleet)
    masses, screen = act({"world": "pointmass", "reward": options.reward}, options.seconds)
    episode = max(masses.episodes.values(), key=len)
    chosen = [episode[round(index)] for index in np.linspace(0, len(episode) - 1, FRAMES)]
    save(options.out / "annotated.png", tile(chosen))
    (options.out / "watch.svg").write_text(screen)


def act(cell: dict[str, str], seconds: float) -> tuple[Camera, str]:
    """Lets two robots act; gives what was seen of them, and the screen of `efm watch` at the end."""
    fleet = {"world": cell["world"], "robots": str(len(ROBOTS))}
    with tempfile.TemporaryDirectory() as folder:
        nodes = nodes_of("simulation", {**fleet, "lockstep": "false"})
        more = {"mode": "collect", "lockstep": "false", "spool": f"{folder}/spool"}
        nodes += nodes_of("cell", {**fleet, **cell, **more})
        nodes += nodes_of("view", fleet)
        check(nodes)
        with (
            ProcessGroup(nodes, Path(folder) / "logs") as group,
            FleetMonitor(ROBOTS, details=True) as monitor,
        ):
            wait_for(lambda: all(v.status for v in monitor.robots.values()), "robots", START_S, group)
            camera = Camera(monitor)
            begin(monitor)
            time.sleep(seconds)
            return camera, watched(monitor)


def begin(monitor: FleetMonitor) -> None:
    """Asks every robot to run episodes in its node's mode."""
    for robot in ROBOTS:
        client = monitor.node.create_client(Trigger, f"/{robot}/episodes/start")
        wait_for(client.service_is_ready, f"the service of {robot}", START_S)
        future = client.call_async(Trigger.Request())
        wait_for(future.done, f"an answer of {robot}", START_S)


def watched(monitor: FleetMonitor) -> str:
    """Returns the screen of `efm watch` as SVG, with whatever font the reader has."""
    with open(os.devnull, "w") as nowhere:
        console = Console(width=COLUMNS, record=True, file=nowhere, force_terminal=True)
        console.print(picture(monitor, [], HELP, []))
    svg = console.export_svg(title="efm watch")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.S)
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())


def save(path: Path, image: Picture) -> None:
    """Writes a PNG."""
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
