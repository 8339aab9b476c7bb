"""`efm collect`: asks robots for episodes and shows the progress.

    efm collect --world table --episodes 100          # starts a simulated stack for it
    efm collect --episodes 100 --actor teleop         # uses the robots that are there

Left out: the episodes themselves; they lie in the spool of each robot, and `efm episodes list SPOOL` shows
them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from efm_core.errors import EfmError, SpoolLocked, WaitTimeout
from efm_core.files import lock_folder
from efm_core.leash import leashed
from efm_core.summary import Mode, Outcome, Summary
from efm_episode_node.fleet_client import FleetClient, Listener, Wish

STOP_S = 15.0


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0 when all episodes were recorded."""
    options = parse(argv)
    wish = wish_of(options)
    with started_stack(options) as (robots, look):
        return collect(wish, robots, look)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="efm collect", description="Runs episodes and shows their progress."
    )
    parser.add_argument(
        "--episodes", type=int, default=100, help="number of episodes of all robots together (100)"
    )
    parser.add_argument("--mode", choices=("collect", "practice"), default="collect")
    parser.add_argument(
        "--actor", default="", help="expert, teleop, external or policy (default: the node's)"
    )
    parser.add_argument(
        "--robots", default="", help="names with commas between (default: all that are there)"
    )
    parser.add_argument("--instruction", action="append", default=[], help="to draw from; may be repeated")
    parser.add_argument("--max-steps", type=int, default=0, help="greatest length of an episode")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode; 0: drawn")
    parser.add_argument(
        "--world", default="", help="start a simulated stack with this world for the collection"
    )
    parser.add_argument("--world-options", metavar="JSON", help="options of that world")
    parser.add_argument("--embodiment", default="", help="its robot: name or file (default: the world's)")
    text = """changes to its expert's style "imperfect", such as '{"fail": 0.4}'"""
    parser.add_argument("--expert-changes", metavar="JSON", help=text)
    parser.add_argument("--spool", type=Path, default=Path("spool"), help="where that stack records (spool/)")
    options = parser.parse_args(argv)
    if options.episodes < 1:
        parser.error(f"--episodes: expected 1 or more, found {options.episodes}")
    if not options.world and (options.world_options or options.embodiment or options.expert_changes):
        parser.error(
            "--world-options, --embodiment and --expert-changes: expected --world, whose stack they are for"
        )
    return options


def wish_of(options: argparse.Namespace) -> Wish:
    """Returns what the options ask robots for.

    Raises:
        BadRequest: A number is out of range.
    """
    return Wish(
        mode=int(Mode[options.mode.upper()]),
        episodes=options.episodes,
        instructions=tuple(options.instruction),
        max_steps=options.max_steps,
        seed=options.seed,
        actor=options.actor,
    )


def collect(wish: Wish, robots: Sequence[str], look: Callable[[], None] = lambda: None) -> int:
    """Runs the episodes on robots that are there; `look` is called all the time and may raise."""
    outcomes: Counter[Outcome] = Counter()
    steps = 0
    lock = threading.Lock()
    began = time.monotonic()
    with (
        FleetClient("efm_collect", look) as fleet,
        tqdm(total=wish.episodes, unit="episode", file=sys.stdout, mininterval=0.5) as bar,
    ):

        def episode(robot: str, summary: Summary) -> None:
            nonlocal steps
            with lock:
                outcomes[summary.outcome] += 1
                steps += summary.steps
                rate = steps / max(time.monotonic() - began, 1e-9)
                bar.set_postfix_str(
                    f"{outcomes[Outcome.SUCCESS]} successful, {rate:.0f} steps/s", refresh=False
                )
                bar.update()

        def words(robot: str, text: str) -> None:
            bar.write(f"{robot or 'robot'}: {text}", file=sys.stdout)

        names = fleet.robots(robots)
        errors = fleet.run(names, wish, Listener(episode, words))
    number = sum(outcomes.values())
    print(
        f"{number} episodes of {', '.join(name or 'the robot' for name in names)}: "
        f"{outcomes[Outcome.SUCCESS]} successful, {outcomes[Outcome.FAILURE]} failed, "
        f"{steps} steps in {time.monotonic() - began:.1f} s"
    )
    for error in errors:
        print(f"efm collect: {error}", file=sys.stderr)
    return 0 if number >= wish.episodes and not errors else 1


def stack_arguments(options: argparse.Namespace) -> list[str]:
    """Returns what the options say to the stack that they start."""
    names = ("world", "spool", "world_options", "embodiment", "expert_changes")
    return [f"{name}:={given}" for name in names if (given := getattr(options, name))]


@contextlib.contextmanager
def alone(logs: Path) -> Iterator[None]:
    """Keeps others from recording to the same place while the block runs.

    Args:
        logs: Folder that is locked, made where it is missing.

    Raises:
        SpoolLocked: Another collection has it. BadRequest: There are robots in this ROS domain already.
    """
    logs.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(logs)
    except BlockingIOError:
        raise SpoolLocked(
            f"{logs.parent}: expected it free, found another efm collect that records there; wait for its "
            "end, or name another --spool"
        ) from None
    try:
        with FleetClient("efm_collect_look") as fleet:
            fleet.expect_nobody()
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def started_stack(options: argparse.Namespace) -> Iterator[tuple[list[str], Callable[[], None]]]:
    """Runs `efm up collect` around a block where a world is named.

    Gives the names of the robots wanted, and what raises WaitTimeout once that command has ended.
    """
    names = [name.strip().strip("/") for name in options.robots.split(",") if name.strip()]
    if not options.world:
        yield names, lambda: None
        return
    names = names or ["robot_1"]
    logs = options.spool / ".logs"
    command = [sys.executable, "-m", "efm_bringup.efm", "up", "collect", "--logs", str(logs)]
    command += [f"robots:={','.join(names)}", *stack_arguments(options)]
    with alone(logs):
        # A session of its own: Ctrl+C reaches this command, which then stops the stack in order.
        process = subprocess.Popen(leashed(command), start_new_session=True)

        def look() -> None:
            if process.poll() is not None:
                raise WaitTimeout(
                    f"the simulated stack has ended with code {process.returncode}; what it said is above"
                )

        try:
            yield names, look
        except EfmError:
            print(f"efm collect: the logs of the started nodes are in {logs}", file=sys.stderr)
            raise
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
