"""The fleet as text: one row a robot, the learner below, then what is not well. Rich tables, no ROS.

What is shown comes from `monitor` and is only put into words here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from efm_bringup.monitor import FleetMonitor, RobotView
from efm_core.statistics import wilson_interval
from efm_core.summary import Actor, Mode, Outcome
from efm_msgs.msg import EpisodeStatus, LearnerStatus, ModelStatus

SILENT_S = 5.0  # A status comes once a second; later than this the node is gone or stuck.
RECENT = 50  # Episodes that the success rate is taken from.
SPARK_WIDTH = 24
# Columns and their shares of what those before them leave; below WIDE only the first three are there.
SHARES = {"instruction": 4, "steps to go": 5, "success": 5, "bundle": 3, "pace": 2, "spool": 2}
WIDE = 110
COMPLAINTS = 6
BARS = "▁▂▃▄▅▆▇█"
PHASES = {
    EpisodeStatus.PHASE_IDLE: ("idle", "dim"),
    EpisodeStatus.PHASE_RESETTING: ("resetting", "cyan"),
    EpisodeStatus.PHASE_WAITING: ("WAITS FOR YOU", "bold yellow"),
    EpisodeStatus.PHASE_ACTING: ("acting", "green"),
    EpisodeStatus.PHASE_SAVING: ("saving", "cyan"),
    EpisodeStatus.PHASE_PAUSED: ("paused", "yellow"),
    EpisodeStatus.PHASE_FAULT: ("FAULT", "bold red"),
}
LEARNER_PHASES = {
    LearnerStatus.PHASE_WAITING: "waiting for episodes",
    LearnerStatus.PHASE_UPDATING: "updating",
    LearnerStatus.PHASE_EXPORTING: "exporting",
    LearnerStatus.PHASE_STOPPED: "stopped",
    LearnerStatus.PHASE_FAULT: "FAULT",
}
MODEL_STATES = {
    ModelStatus.STATE_FETCHING: "fetching",
    ModelStatus.STATE_LOADING: "loading",
    ModelStatus.STATE_READY: "ready",
    ModelStatus.STATE_ACTIVE: "",
    ModelStatus.STATE_REFUSED: "REFUSED",
}
LEVELS = {1: ("warning", "yellow"), 2: ("error", "red"), 3: ("stale", "magenta")}


def picture(monitor: FleetMonitor, selected: Iterable[str], keys: str, said: Sequence[str]) -> RenderableType:
    """Returns everything that the screen shows.

    Args:
        monitor: What is known.
        selected: Robots that keys are for; marked.
        keys: One line that tells the keys; empty: none.
        said: Newest answers to keys.
    """
    parts: list[RenderableType] = [Text(keys, "reverse")] if keys else []  # A low window cuts off the end.
    parts += [_Fleet(monitor, set(selected)), learner_line(monitor.learner)]
    for robot, name, report in monitor.complaints()[:COMPLAINTS]:
        word, style = LEVELS.get(report.level, ("odd", "yellow"))
        parts.append(Text(f"{word}: {robot or 'fleet'}: {name}: {report.message}", style))
    parts += [Text(line) for line in said]
    return Group(*parts)


class _Fleet:
    """The table of the fleet, as wide as the screen."""

    def __init__(self, monitor: FleetMonitor, selected: set[str]) -> None:
        self._monitor, self._selected = monitor, selected

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield fleet_table(self._monitor, self._selected, options.max_width)


def fleet_table(monitor: FleetMonitor, selected: set[str], width: int) -> Table:
    """Returns one row for every robot, in so many columns of the screen.

    Which robot a key is for, its name and its phase are always whole; the others share the rest, and the last
    ones are left out on a narrow screen.
    """
    shares = SHARES if width >= WIDE else dict(list(SHARES.items())[:3])
    table = Table(expand=True, box=None, pad_edge=False, header_style="bold")
    for name in ("", "robot", "phase"):
        table.add_column(name, no_wrap=True)
    for name, share in shares.items():
        table.add_column(name, no_wrap=name != "instruction", overflow="ellipsis", ratio=share)
    for number, (robot, view) in enumerate(monitor.robots.items(), 1):
        mark = "▶" if robot in selected else " "
        phase, style = phase_words(view)
        shared = [
            instruction_words(view),
            Text(f"{distance_words(view)} {sparkline(_curve(view))}".strip()),
            success_words(view),
            bundle_words(view.models),
            pace_words(monitor, robot, view),
            spool_words(view.status),
        ]
        table.add_row(f"{mark}{number}", robot or "(no name)", Text(phase, style), *shared[: len(shares)])
    if not monitor.robots:
        table.add_row("", "", Text("no robot yet: is an episode node running? (efm up collect)", "yellow"))
    return table


def learner_line(status: LearnerStatus | None) -> Text:
    """Returns what the learner does."""
    if status is None:
        return Text("learner: none heard", "dim")
    words = [
        LEARNER_PHASES.get(status.phase, "?"),
        f"iteration {status.iteration}",
        f"{status.updates} updates",
        f"bundle {status.bundle_id[:8]} (version {status.version})" if status.bundle_id else "",
        f"{status.episodes} episodes ({status.refused} refused)",
        f"queue {status.buffered_steps}/{status.wanted_steps} steps",
        f"return {status.mean_return:.2f}" if math.isfinite(status.mean_return) else "",
        f"success {status.detected_success:.0%}" if status.iteration else "",
        f"KL {status.kl:.3f}" if math.isfinite(status.kl) else "",
        f"idle {status.idle_share:.0%}",
        "" if status.accepting else "robots pause",
        status.guard,
        status.message,
    ]
    bad = status.phase == LearnerStatus.PHASE_FAULT
    return Text("learner: " + ", ".join(filter(None, words)), "bold red" if bad else "")


def robot_line(robot: str, view: RobotView) -> str:
    """Returns one robot as a line for logs."""
    words = [
        f"{robot or 'robot'}: {phase_words(view)[0]}",
        instruction_words(view),
        distance_words(view),
        success_words(view),
        spool_words(view.status),
    ]
    return ", ".join(filter(None, words))


def phase_words(view: RobotView) -> tuple[str, str]:
    """Returns the phase and its style."""
    if view.estop:
        return "E-STOP", "bold red"
    if view.status is None:
        return "silent", "dim"
    if time.monotonic() - view.heard_s > SILENT_S:
        return "SILENT", "bold red"
    words, style = PHASES.get(view.status.phase, ("?", "dim"))
    if view.status.phase == EpisodeStatus.PHASE_ACTING:
        actor = "a person" if view.takeover else Actor(view.status.actor).name.lower()
        words = f"{Mode(view.status.mode).name.lower()}: {actor} {view.status.step}"
    return words, style


def instruction_words(view: RobotView) -> str:
    """Returns the instruction, or why there is none."""
    if view.status is None:
        return ""
    return view.status.message or view.status.instruction


def distance_words(view: RobotView) -> str:
    """Returns the newest prediction; empty without one."""
    if not view.steps_to_go:
        return ""
    newest = view.steps_to_go[-1]
    return f"{newest.expectation:.1f}{' success' if newest.success else ''}"


def success_words(view: RobotView) -> str:
    """Returns the success rate with its 95 % interval: of the newest episodes, else of the present run."""
    recent = list(view.outcomes)[-RECENT:]
    successes, episodes = sum(recent), len(recent)
    if not episodes and view.status is not None:
        successes, episodes = view.status.successes, view.status.episodes_done
    if not episodes or successes > episodes:
        return ""
    low, high = wilson_interval(successes, episodes)
    last = f" {Outcome(view.last.outcome).name.lower()}" if view.last is not None else ""
    return f"{successes}/{episodes} [{low:.0%}-{high:.0%}]{last}"


def bundle_words(models: Mapping[str, ModelStatus]) -> str:
    """Returns the policy's bundle, and the reward's where it is another one."""
    found = []
    for node in ("policy", "reward"):
        if node in models:
            words = f"{models[node].bundle_id[:8]} {MODEL_STATES.get(models[node].state, '')}".strip()
            found += [words] if words not in found else []
    return " / ".join(found)


def pace_words(monitor: FleetMonitor, robot: str, view: RobotView) -> str:
    """Returns control steps a second, and the late cycles that the policy node counts."""
    report = monitor.report(robot, "policy:")
    late = report.values.get("late_cycles", "0") if report is not None else "0"
    pace = f"{view.pace:.0f}/s" if view.pace else ""
    return f"{pace} {late} late".strip() if late != "0" else pace


def spool_words(status: EpisodeStatus | None) -> str:
    """Returns what lies in the spool."""
    if status is None or not status.spool_quota:
        return ""
    return f"{status.spool_episodes} ({status.spool_bytes / status.spool_quota:.0%})"


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Returns numbers as bars of text, from 0 to the greatest; the newest `width` groups' means."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    groups = min(width, len(finite))
    ends = [round(index * len(finite) / groups) for index in range(groups + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in zip(ends, ends[1:], strict=False)]
    top = max(*means, 1e-9) if len(means) > 1 else max(means[0], 1e-9)
    return "".join(BARS[min(len(BARS) - 1, max(0, int(mean / top * len(BARS))))] for mean in means)


def _curve(view: RobotView) -> list[float]:
    """Predictions of the newest episode."""
    newest = list(view.steps_to_go)
    return [seen.expectation for seen in newest if seen.episode_id == newest[-1].episode_id]
