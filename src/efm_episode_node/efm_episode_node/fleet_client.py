"""Asks the episode nodes of one or several robots for episodes, and stays with the run through restarts.

A robot's share is one goal of RunEpisodes. When the episode node dies, its goal is lost: the client notices
the silence, waits until the node is back, and asks for what is missing, with the seeds that were not run yet.
Left out: what is done with the summaries, which the commands `collect` and `evaluate` know.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import rclpy
from rclpy.action import get_action_names_and_types
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from efm_core.errors import BadRequest, EfmError, Reason, WaitTimeout
from efm_core.summary import EndReason, Outcome, Summary
from efm_msgs.action import RunEpisodes
from efm_msgs.msg import EpisodeStatus, EpisodeSummary
from efm_ros.action_client import ActionClient
from efm_ros.executors import SingleThreadedExecutor
from efm_ros.qos import EVENTS, LATCHED

ACTION = "episodes/run"
FOUND_WITHIN_S, TOLD_AFTER_S = 60.0, 5.0  # Robots that are being started.
ALONE_S = 2.0  # Robots that are there are found sooner.
POLL_S = 0.1
SILENCE_S = 15.0  # The status comes once a second; a node that is silent for so long is gone.
ANSWER_S = 5.0
UNANSWERED_GOALS = 6
CANCEL_S = 10.0
# Greater numbers are slips of the hand; episode i of all has the seed `seed + i`.
MOST_EPISODES, MOST_STEPS, MOST_SEED, MOST_TEMPERATURE = 10**6, 10**6, 2**63 - 1, 1000.0
LATE_S = 5.0  # Summaries travel on a topic of their own and may come after the action's result.


@dataclass(frozen=True)
class Wish:
    """What the robots shall do together; fields as in RunEpisodes.

    Raises:
        BadRequest: A number is out of range.
    """

    mode: int
    episodes: int
    instructions: tuple[str, ...] = ()
    max_steps: int = 0
    seed: int = 0
    actor: str = ""
    temperature: float = 0.0
    end_on_truth: bool = False

    def __post_init__(self) -> None:
        """Refuses what RunEpisodes has no place for."""
        for name, least, most in (
            ("episodes", 0, MOST_EPISODES),
            ("max_steps", 0, MOST_STEPS),
            ("seed", 0, MOST_SEED),
            ("temperature", -1.0, MOST_TEMPERATURE),
        ):
            if not least <= getattr(self, name) <= most:
                raise BadRequest(f"{name}: expected {least} to {most}, found {getattr(self, name)}")


@dataclass
class Listener:
    """What a command wants to hear, in the threads of the robots: episodes that count, and words for
    people.
    """

    episode: Callable[[str, Summary], None]
    words: Callable[[str, str], None]
    began: Callable[[str], None] = field(default=lambda robot: None)


class FleetClient:
    """A node with the clients of several robots. Use as a context manager.

    Args:
        name: Of the node.
        look: Called again and again while robots are waited for or run; what it raises ends that.
    """

    def __init__(self, name: str, look: Callable[[], None] = lambda: None) -> None:
        """Makes the node; rclpy is initialised where it is not."""
        self._look = look
        self._own_context = not rclpy.ok()
        if self._own_context:
            # Ctrl+C is for `run`, which cancels the goals; rclpy's own handler would cut the connection
            # first.
            rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node(name)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._ending = threading.Event()
        self._shares: list[_Share] = []
        self._thread = threading.Thread(target=self._spin, name="executor", daemon=True)

    def __enter__(self) -> FleetClient:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel()
        self._ending.set()
        self._executor.wake()
        self._thread.join(5.0)
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        if self._own_context:
            rclpy.try_shutdown()

    def robots(self, wanted: Sequence[str], deadline_s: float = FOUND_WITHIN_S) -> list[str]:
        """Finds robots by their action `episodes/run`; what it waits for longer is told.

        Args:
            wanted: Namespaces without leading slash. Empty: all that can be found.
            deadline_s: Longest wait (steady clock).

        Raises:
            WaitTimeout: One that is wanted, or any at all, was not found.
        """
        began = time.monotonic()
        found: set[str] = set()
        told = False
        while time.monotonic() < began + deadline_s:
            self._look()
            now = self._there()
            if (wanted and set(wanted) <= now) or (not wanted and now and now == found):
                return list(wanted) or sorted(now)
            found = now
            missing = [name for name in wanted if name not in found] or ["any robot"]
            what = (
                f"{deadline_s:g} s for the action {ACTION} of {', '.join(missing)}, found that of "
                f"{sorted(found) or 'no robot'}; is the episode node running? (efm up collect)"
            )
            if not told and time.monotonic() > began + TOLD_AFTER_S:
                self.node.get_logger().info(f"waits at most {what}")
                told = True
            self._ending.wait(0.5)
        raise WaitTimeout(f"waited {what}")

    def expect_nobody(self, seconds: float = ALONE_S) -> None:
        """Returns after some seconds (steady clock) in which no robot was found.

        Raises:
            BadRequest: One was; of two simulations of a domain, either would answer requests.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self._there():
                raise BadRequest(
                    "expected no robot in this ROS domain before one is started, found "
                    f"{', '.join(name or 'one without a name' for name in sorted(found))}; collect with "
                    "those (without --world), wait for their end, or choose another ROS_DOMAIN_ID"
                )
            self._ending.wait(POLL_S)

    def run(self, robots: Sequence[str], wish: Wish, listener: Listener) -> list[EfmError]:
        """Runs the wished episodes on all robots at once, and gives the errors that ended a robot's share
        early.

        Episodes are dealt out in blocks; with a seed, episode i of all uses seed + i. Ctrl+C cancels.
        """
        shares = [
            _Share(self, robot, *block, wish, listener)
            for robot, block in zip(robots, _blocks(wish.episodes, len(robots)), strict=True)
            if block[1] or wish.episodes == 0
        ]
        self._shares = shares
        for share in shares:
            share.start()
        try:
            while any(share.thread.is_alive() for share in shares):
                self._look()
                for share in shares:
                    share.thread.join(POLL_S)
        except KeyboardInterrupt:
            self._cancel()
            raise
        return [share.error for share in shares if share.error is not None]

    def _there(self) -> set[str]:
        """Returns the robots that are found now."""
        names = [name for name, _ in get_action_names_and_types(self.node)]
        return {name[: -len(ACTION)].strip("/") for name in names if name.endswith("/" + ACTION)}

    def _cancel(self) -> None:
        """Cancels what still runs and waits for its end."""
        for share in self._shares:
            share.cancel()
        for share in self._shares:
            if share.thread.is_alive():
                share.thread.join(CANCEL_S)

    def _spin(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(rclpy.executors.ExternalShutdownException):
                self._executor.spin_once(timeout_sec=0.5)


class _Share:
    """The episodes of one robot, in a thread."""

    def __init__(
        self, fleet: FleetClient, robot: str, first: int, episodes: int, wish: Wish, listener: Listener
    ) -> None:
        self.error: EfmError | None = None
        self._robot = robot
        self._first = first
        self._episodes = episodes
        self._wish = wish
        self._listener = listener
        self._node = fleet.node
        self._cancelled = threading.Event()
        self._heard_at = time.monotonic()
        self._idle_since: float | None = None
        self._seen: dict[str, Summary] = {}
        self._words = ""
        self._unanswered = 0
        self._name = f"/{robot}" if robot else ""
        group = ReentrantCallbackGroup()
        self._client = ActionClient(self._node, RunEpisodes, f"{self._name}/{ACTION}", callback_group=group)
        self._subscriptions = [
            self._node.create_subscription(
                EpisodeStatus, f"{self._name}/episode_status", self._on_status, LATCHED, callback_group=group
            ),
            self._node.create_subscription(
                EpisodeSummary,
                f"{self._name}/episode_summary",
                self._on_summary,
                EVENTS,
                callback_group=group,
            ),
        ]
        self.thread = threading.Thread(target=self._main, name=f"share of {robot}", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def cancel(self) -> None:
        self._cancelled.set()

    def _main(self) -> None:
        try:
            while not self._cancelled.is_set() and self._left() != 0:
                self._ask()
        except EfmError as error:
            self.error = error
        finally:
            self._client.destroy()
            for subscription in self._subscriptions:
                self._node.destroy_subscription(subscription)

    def _left(self) -> int:
        """Returns how many episodes are missing; -1 where there is no end."""
        return self._episodes - len(self._seen) if self._wish.episodes else -1

    def _ask(self) -> None:
        """Sends one goal and stays with it to its end, or until the node falls silent."""
        self._wait(self._client.server_is_ready, f"the action {self._name}/{ACTION}", 60.0)
        seed, episodes = 0, max(0, self._left())
        if self._wish.seed:
            seed, episodes = next_seeds(
                self._wish.seed + self._first, episodes, {one.seed for one in self._seen.values()}
            )
        goal = RunEpisodes.Goal(
            mode=self._wish.mode,
            episodes=episodes,
            instructions=list(self._wish.instructions),
            max_steps=self._wish.max_steps,
            seed=seed,
            actor=self._wish.actor,
            temperature=self._wish.temperature,
            end_on_truth=self._wish.end_on_truth,
        )
        sent = self._client.send_goal_async(goal)
        try:
            self._wait(sent.done, f"an answer of {self._name}/{ACTION}", ANSWER_S)
        except WaitTimeout:
            # A node that was killed stays in the graph for a while, and a goal that was sent to it is lost.
            self._unanswered += 1
            if self._cancelled.is_set() or self._unanswered >= UNANSWERED_GOALS:
                raise
            return
        self._unanswered = 0
        handle = sent.result()
        if not handle.accepted:
            raise BadRequest(f"{self._name}/{ACTION} refused the goal")
        self._listener.began(self._robot)
        self._heard_at, self._idle_since = time.monotonic(), None
        done = handle.get_result_async()
        cancelling = False
        while not done.done():
            time.sleep(POLL_S)
            if self._cancelled.is_set() and not cancelling:
                cancelling = True
                handle.cancel_goal_async()
            if time.monotonic() - self._heard_at > SILENCE_S:
                self._listener.words(self._robot, "the episode node is silent; waits until it is back")
                return
            if self._idle_since is not None and time.monotonic() - self._idle_since > LATE_S:
                self._listener.words(self._robot, "the episode node knows of no run; asks it for the rest")
                return
        self._finish(done.result().result)

    def _finish(self, result: RunEpisodes.Result) -> None:
        """Waits for late summaries, and raises what ended the goal early."""
        deadline = time.monotonic() + LATE_S
        while time.monotonic() < deadline and not set(result.episode_ids) <= set(self._seen):
            time.sleep(POLL_S)
        if result.reason == Reason.BUSY:
            raise BadRequest(f"{self._name}: {result.message}")
        if result.reason not in (Reason.OK, Reason.CANCELLED):
            raise WaitTimeout(f"{self._name}: {Reason(result.reason).name}: {result.message}")
        if result.reason == Reason.CANCELLED:
            self._cancelled.set()
        elif lost := [name for name in result.episode_ids if name not in self._seen]:
            raise WaitTimeout(f"{self._name}: the summaries of {len(lost)} episodes did not arrive")

    def _wait(self, condition: Callable[[], bool], what: str, deadline_s: float) -> None:
        deadline = time.monotonic() + deadline_s
        while not condition():
            if self._cancelled.is_set():
                raise WaitTimeout(f"cancelled while waiting for {what}")
            if time.monotonic() > deadline:
                raise WaitTimeout(f"waited {deadline_s:g} s for {what}")
            time.sleep(POLL_S)

    def _on_status(self, status: EpisodeStatus) -> None:
        self._heard_at = time.monotonic()
        if status.phase != EpisodeStatus.PHASE_IDLE:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = self._heard_at
        if status.message != self._words:
            self._words = status.message
            if status.message:
                self._listener.words(self._robot, status.message)

    def _on_summary(self, message: EpisodeSummary) -> None:
        summary = Summary.of(message)
        counts = summary.outcome is not Outcome.DISCARDED and summary.end_reason is not EndReason.FAULT
        if summary.mode == self._wish.mode and counts and summary.episode_id not in self._seen:
            self._seen[summary.episode_id] = summary
            self._listener.episode(self._robot, summary)


def next_seeds(first: int, missing: int, run: set[int]) -> tuple[int, int]:
    """Returns the first seed from `first` on that was not run, and how many follow it without a gap.

    Gaps come from episodes that were lost on a disk, which a node repeats after later ones.

    Args:
        first: Seed.
        missing: Episodes that are still to be run. 0: without end.
        run: Seeds that were run.
    """
    start = next(seed for seed in itertools.count(first) if seed not in run)
    length = next((index for index in range(missing) if start + index in run), missing)
    return start, length


def _blocks(episodes: int, robots: int) -> list[tuple[int, int]]:
    """Deals episodes out: (first, number) for every robot."""
    sizes = [episodes // robots + (index < episodes % robots) for index in range(robots)]
    return [(sum(sizes[:index]), size) for index, size in enumerate(sizes)]
