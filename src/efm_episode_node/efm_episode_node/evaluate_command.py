"""`efm evaluate`: measures running policies against the world's own truth, on fixed seeds.

    efm evaluate --episodes 50 --out runs/evaluation

Every robot runs its share in mode EVALUATE; nobody learns from it. What the success detector said is printed
beside what the simulator knows: true success, false success (detected, but not true) and missed success
(true, but not detected), with Wilson 95 % intervals. Truth counts when it held at any observation until the
episode ended. On real robots nobody knows the truth, and only the detector is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import io
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from efm_core.errors import BadRequest
from efm_core.files import replace_file, replace_json
from efm_core.statistics import wilson_interval
from efm_core.summary import Mode, Outcome, Summary
from efm_episode_node.fleet_client import FleetClient, Listener, Wish
from efm_msgs.msg import GroundTruth
from efm_ros.conversion import stamp_to_ns
from efm_ros.intake import Intake
from efm_ros.names import in_robot
from efm_ros.qos import EVENTS, deep

# Fixed, and far from the seeds that anybody would collect demonstrations with.
FIRST_SEED = 900_001
LEAST_EPISODES = 50
COLUMNS = (
    "episode",
    "seed",
    "instruction",
    "true_success",
    "detected",
    "false",
    "missed",
    "steps",
    "seconds",
)
TRUTH_WAIT_S, TAKER_END_S = 5.0, 5.0
TRUTH_KEPT = 20_000
UNMOVED = "without a command to the robot, as in a dry run (dry_run:=true, or the embodiment's) or in shadow"


@dataclass(frozen=True)
class Row:
    """One evaluated episode.

    Attributes:
        true_success: None where nobody knows the truth.
        detected: None where the truth ended the episode, so that the detector had no say.
        seconds: On the robot's clock.
        end: Name of the end reason.
        Others: As in EpisodeSummary.
    """

    episode: str
    robot: str
    seed: int
    instruction: str
    true_success: bool | None
    detected: bool | None
    steps: int
    seconds: float
    end: str

    @property
    def false(self) -> bool | None:
        """Detected, but not true."""
        return None if None in (self.true_success, self.detected) else self.detected and not self.true_success

    @property
    def missed(self) -> bool | None:
        """True, but not detected."""
        return None if None in (self.true_success, self.detected) else self.true_success and not self.detected


class TruthBook:
    """What the simulator said about the newest observations of one robot."""

    def __init__(self) -> None:
        """Begins empty."""
        self._changed = threading.Condition()
        self._success: dict[int, bool] = {}

    def add(self, message: GroundTruth) -> None:
        """Takes a message."""
        with self._changed:
            self._success[stamp_to_ns(message.header.stamp)] = message.success
            while len(self._success) > TRUTH_KEPT:
                del self._success[next(iter(self._success))]
            self._changed.notify_all()

    def opened(self, timeout_s: float) -> bool:
        """Waits for a first message: only then does the simulator know that we listen."""
        with self._changed:
            return self._changed.wait_for(lambda: self._success, timeout_s)

    def verdict(self, summary: Summary) -> bool | None:
        """Says whether the world saw success in an episode; None when it said nothing about its end."""
        with self._changed:
            if not self._changed.wait_for(lambda: summary.stamp_ns in self._success, TRUTH_WAIT_S):
                return None
            return any(
                success
                for stamp_ns, success in self._success.items()
                if summary.start_ns <= stamp_ns <= summary.stamp_ns
            )


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0 when all episodes were run."""
    options = parse(argv)
    report = evaluate(
        robots=[name.strip().strip("/") for name in options.robots.split(",") if name.strip()],
        wish=Wish(
            mode=int(Mode.EVALUATE),
            episodes=options.episodes,
            instructions=tuple(options.instruction),
            max_steps=options.max_steps,
            seed=options.seed,
            actor="policy",
            temperature=-1.0 if options.greedy else options.temperature,
            end_on_truth=options.end_on_truth,
        ),
        out=options.out or Path("runs/evaluation") / f"{datetime.datetime.now():%Y%m%d-%H%M%S}",
    )
    for error in report["errors"]:
        print(f"efm evaluate: {error}", file=sys.stderr)
    return 0 if report["episodes"] >= options.episodes else 1


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="efm evaluate", description="Measures running policies.")
    parser.add_argument(
        "--episodes", type=int, default=LEAST_EPISODES, help="number of all robots together (50)"
    )
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help=f"of the first episode ({FIRST_SEED})")
    parser.add_argument(
        "--robots", default="", help="names with commas between (default: all that are there)"
    )
    parser.add_argument("--instruction", action="append", default=[], help="to draw from; may be repeated")
    parser.add_argument("--max-steps", type=int, default=0, help="greatest length of an episode")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the policy; 0: the node's own")
    parser.add_argument("--greedy", action="store_true", help="the policy takes its most probable action")
    parser.add_argument(
        "--end-on-truth", action="store_true", help="the world ends episodes, not the detector"
    )
    parser.add_argument("--out", type=Path, help="folder for evaluation.csv and evaluation.json")
    options = parser.parse_args(argv)
    if options.episodes < 1 or options.seed < 1:
        parser.error("--episodes and --seed: expected 1 or more")
    return options


def evaluate(robots: Sequence[str], wish: Wish, out: Path | None, quiet: bool = False) -> dict[str, Any]:
    """Runs an evaluation on robots that are there.

    Args:
        robots: Namespaces. Empty: all that are there.
        wish: What to run; mode EVALUATE, with a seed.
        out: Folder for evaluation.csv and evaluation.json. None: nothing is written.
        quiet: No table and no progress.

    Returns:
        The report, as in evaluation.json.

    Raises:
        WaitTimeout: A robot was not found.
        BadRequest: The wish is none of an evaluation, or `out` cannot be written.
    """
    if wish.mode != Mode.EVALUATE or not wish.seed:
        raise BadRequest("expected mode EVALUATE and a seed")
    if out is not None:  # Now, and not when all has been measured.
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise BadRequest(f"{out}: expected a folder that can be written to; choose another --out")
    rows: list[Row] = []
    summaries: list[Summary] = []
    waiting: list[threading.Thread] = []
    began = time.monotonic()
    with (
        FleetClient("efm_evaluate") as fleet,
        tqdm(total=wish.episodes, unit="episode", file=sys.stdout, disable=quiet, mininterval=0.5) as bar,
        contextlib.ExitStack() as stack,
    ):
        names = fleet.robots(robots)
        books = stack.enter_context(truth_of(fleet.node, names))

        def episode(robot: str, summary: Summary) -> None:
            # The truth about the last observation may come later: not waited for in the executor's thread.
            def note() -> None:
                rows.append(_row(robot, summary, books[robot].verdict(summary), wish.end_on_truth))
                bar.update()

            if not summary.steps and all(before.steps for before in summaries):
                words(robot, f"an episode {UNMOVED}")
            summaries.append(summary)
            waiting.append(threading.Thread(target=note, daemon=True))
            waiting[-1].start()

        def words(robot: str, text: str) -> None:
            bar.write(f"{robot or 'robot'}: {text}", file=sys.stdout)

        errors = fleet.run(names, wish, Listener(episode, words))
        for thread in waiting:
            thread.join(TRUTH_WAIT_S + 1.0)
    report = _report(sorted(rows, key=lambda row: (row.seed, row.episode)), summaries, wish, names)
    report |= {"wall_seconds": time.monotonic() - began, "errors": [str(error) for error in errors]}
    if unmoved := sum(not summary.steps for summary in summaries):
        report["errors"].append(f"{unmoved} of {len(summaries)} episodes {UNMOVED}")
    if not quiet:
        show(report)
    if out is not None:
        write(report, out)
        if not quiet:
            print(f"written to {out}")
    return report


def write(report: dict[str, Any], out: Path) -> None:
    """Writes evaluation.csv and evaluation.json."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in report["rows"]:
        cells = {key: int(value) if isinstance(value, bool) else value for key, value in row.items()}
        writer.writerow(cells | {"seconds": f"{row['seconds']:.3f}"})
    replace_file(out / "evaluation.csv", text.getvalue().encode())
    replace_json(out / "evaluation.json", report, indent=1)


def show(report: dict[str, Any]) -> None:
    """Prints the table."""
    table = Table(title=f"{report['episodes']} episodes, seeds {report['seeds'][0]} to {report['seeds'][1]}")
    for column in ("", "episodes", "share", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    number = report["episodes"]
    rates = ("true_success", "detected_success", "false_success", "missed_success")
    for key in rates:
        share = report[key]
        if share is None:
            table.add_row(key.replace("_", " "), "", "unknown", "")
            continue
        low, high = report["intervals"][key]
        table.add_row(
            key.replace("_", " "), str(round(share * number)), f"{share:.3f}", f"{low:.3f} .. {high:.3f}"
        )
    console = Console()
    console.print(table)
    console.print(
        f"mean steps {report['mean_steps']:.1f}, policy {report['policy_bundle_ids'] or 'unknown'}, "
        f"{_sampling(report['temperature'])}"
    )


def _sampling(temperature: float) -> str:
    if temperature < 0:
        return "greedy"
    return f"temperature {temperature:g}" if temperature else "temperature as the node has it"


@contextlib.contextmanager
def truth_of(node: Node, robots: Sequence[str]) -> Iterator[dict[str, TruthBook]]:
    """Hears what the simulator says of each robot; first waits for all of them together.

    Also when the command is interrupted no thread is left waiting in the middleware: the process would abort.
    """
    books = {name: TruthBook() for name in robots}
    intake = Intake(node)
    topics = {name: "/" + in_robot(name, "ground_truth") for name in robots}
    for name, topic in topics.items():
        intake.subscribe(GroundTruth, topic, books[name].add, deep(EVENTS))
    ended = threading.Event()
    taker = threading.Thread(target=_take, args=(intake, ended), name="truth", daemon=True)
    taker.start()
    try:
        deadline = time.monotonic() + TRUTH_WAIT_S
        for name, topic in topics.items():
            if node.count_publishers(topic):
                books[name].opened(max(0.0, deadline - time.monotonic()))
        yield books
    finally:
        ended.set()
        intake.wake()
        taker.join(TAKER_END_S)
        intake.close()


def _take(intake: Intake, ended: threading.Event) -> None:
    while not ended.is_set():
        intake.take(0.2)


def _row(robot: str, summary: Summary, truth: bool | None, ended_by_truth: bool) -> Row:
    return Row(
        episode=summary.episode_id,
        robot=robot,
        seed=summary.seed,
        instruction=summary.instruction,
        true_success=truth,
        detected=None if ended_by_truth else summary.outcome is Outcome.SUCCESS,
        steps=summary.steps,
        seconds=(summary.stamp_ns - summary.start_ns) / 1e9,
        end=summary.end_reason.name,
    )


def _report(rows: list[Row], summaries: list[Summary], wish: Wish, robots: Sequence[str]) -> dict[str, Any]:
    number = len(rows)
    of_row = {
        "true_success": lambda row: row.true_success,
        "detected_success": lambda row: row.detected,
        "false_success": lambda row: row.false,
        "missed_success": lambda row: row.missed,
    }
    counts: dict[str, int | None] = {}
    for key, value in of_row.items():
        values = [value(row) for row in rows]
        counts[key] = None if None in values else sum(values)
    intervals = {
        key: list(wilson_interval(count, number)) for key, count in counts.items() if count is not None
    }
    return {
        "episodes": number,
        **{key: None if count is None or not number else count / number for key, count in counts.items()},
        "interval": intervals.get("true_success"),
        "intervals": intervals,
        "mean_steps": sum(row.steps for row in rows) / number if number else math.nan,
        "seeds": [wish.seed, wish.seed + wish.episodes - 1],
        "temperature": wish.temperature,
        "end_on_truth": wish.end_on_truth,
        "robots": list(robots),
        "policy_bundle_ids": sorted({item.policy_bundle_id for item in summaries if item.policy_bundle_id}),
        "reward_bundle_ids": sorted({item.reward_bundle_id for item in summaries if item.reward_bundle_id}),
        "rows": [asdict(row) | {"false": row.false, "missed": row.missed} for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
