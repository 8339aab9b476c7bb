"""What /diagnostics says of one robot: whether it can act, how its rhythm is, and what an operator should
do.
"""

from __future__ import annotations

from efm_core.embodiment import Embodiment
from efm_policy_node.loop_ports import LoopStatus
from efm_policy_node.robot_io import RobotIo
from efm_ros.lifecycle import ERROR, OK, WARN, EfmLifecycleNode


def diagnose_robot(
    node: EfmLifecycleNode, io: RobotIo, embodiment: Embodiment, rivals: tuple[str, ...]
) -> None:
    """Sets the state of one robot's control loop."""
    status = io.loop.status()
    cadence = status.cadence
    level, message = _judgement(status, embodiment, rivals, io.dry_run)
    node.diagnose(
        f"{io.robot} control" if io.robot else "control",
        level,
        message,
        robot=io.robot,
        acting=status.acting,
        dry_run=io.dry_run,
        episode_id=status.goal.episode_id if status.acting else "",
        instruction=status.goal.instruction if status.acting else "",
        step=status.steps,
        person_in_control=status.takeover,
        estop=status.estop,
        input_age_s=status.input_age_s,
        rate_hz=cadence.achieved_hz,
        wanted_hz=cadence.wanted_hz,
        late_cycles=cadence.late,
        missed_cycles=cadence.missed,
        latency_median_ms=cadence.median_ms,
        latency_p99_ms=cadence.p99_ms,
        latency_worst_ms=cadence.worst_ms,
        other_commanders=", ".join(rivals),
    )


def _judgement(
    status: LoopStatus, embodiment: Embodiment, rivals: tuple[str, ...], dry_run: bool
) -> tuple[bytes, str]:
    period_ms = 1e3 / embodiment.control_rate_hz
    if status.estop:
        return ERROR, "the e-stop is pressed"
    if status.stale:
        return ERROR, f"holding still, stale input: {status.stale}"
    if rivals:
        return ERROR, f"other commanders on '{embodiment.action.topic}': {', '.join(rivals)}; stop them"
    if dry_run:
        return WARN, "a dry run: commands are decided and recorded, but not sent"
    if status.cadence.wanted_hz and status.cadence.median_ms > period_ms:
        return WARN, (
            f"a command takes {status.cadence.median_ms:.0f} ms, more than the control period of "
            f"{period_ms:.0f} ms; use a smaller model, chunks with infer_ahead, or a GPU"
        )
    if status.takeover:
        return OK, "a person has control"
    if status.acting:
        return OK, "acting"
    return OK, "idle"
