"""`efm practice`: robots practise until the budget is spent, the guard stops them, or a person does.

    efm practice --world pointmass --robots 2 --policy POLICY_BUNDLE --reward REWARD_BUNDLE --minutes 5

Starts the stack `practice` and shows its progress; with `--attach` it only watches a stack that runs already.
What is learned is in the run's folder; the same command goes on with a run that was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from efm_bringup.monitor import FleetMonitor
from efm_bringup.processes import ProcessGroup, wait_for
from efm_bringup.stacks import STACKS, check, nodes_of, read_arguments
from efm_bringup.up_command import parse_assignments
from efm_core.errors import BadRequest, EfmError, WaitTimeout
from efm_core.files import replace_json
from efm_msgs.msg import LearnerStatus

START_DEADLINE_S = 300.0  # On a busy machine a learner takes minutes to load; one that dies ends the wait.
ATTACH_DEADLINE_S = 60.0
COMPANY_S = 3.0  # A learner that runs tells of itself every second.
POLL_S = 0.5


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0 when practice came to its end."""
    parser = argparse.ArgumentParser(
        prog="efm practice", description="Stage 2: robots practise on their own and get better."
    )
    parser.add_argument("--world", default="pointmass", help="world to simulate (default: pointmass)")
    parser.add_argument("--robots", default="2", help="number of robots or their names with commas (2)")
    parser.add_argument("--policy", required=True, help="folder of the Stage-1 policy bundle")
    parser.add_argument("--reward", required=True, help="folder of the reward bundle, frozen during practice")
    parser.add_argument(
        "--verifier", default="", help="folder of a reward bundle trained apart, for the guard"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/practice"), help="folder of the run")
    parser.add_argument("--minutes", type=float, default=0.0, help="longest practice; 0: no limit")
    parser.add_argument("--iterations", type=int, default=0, help="iterations of the learner; 0: no limit")
    parser.add_argument("--attach", action="store_true", help="start nothing; watch the stack that runs")
    parser.add_argument("arguments", nargs="*", metavar="name:=value", help="further arguments of the stack")
    options = parser.parse_args(argv)
    if not 0 <= options.minutes < float("inf") or options.iterations < 0:
        parser.error(
            "--minutes and --iterations: expected numbers of 0 or more, found "
            f"{options.minutes} and {options.iterations}"
        )
    arguments = arguments_of(options)
    result = practise(arguments, options.minutes * 60.0, attach=options.attach)
    print(
        f"{result['iterations']} iterations, {result['episodes']} episodes; "
        f"best policy: {result['best_path']}"
    )
    if result["message"]:
        print(result["message"])
    return 0


def arguments_of(options: argparse.Namespace) -> dict[str, str]:
    """Returns the arguments of the stack that a command line asks for.

    Raises:
        BadRequest: `learning` is no JSON object, or the iterations are given twice.
    """
    arguments = {
        "world": options.world,
        "robots": options.robots,
        "policy": options.policy,
        "reward": options.reward,
        "verifier": options.verifier,
        "run": str(options.run),
        "spool": str(options.run / "spool"),
        "bundles": str(options.run / "fetched"),
        **parse_assignments(options.arguments),
    }
    learning = read_arguments(STACKS["practice"], arguments).json_object("learning")
    if options.iterations and "iterations" in learning:
        raise BadRequest(
            f"expected the iterations once, found --iterations {options.iterations} and "
            f"{learning['iterations']} in learning:=; leave one out"
        )
    return {**arguments, "learning": json.dumps({"iterations": options.iterations, **learning})}


def practise(
    arguments: Mapping[str, str], seconds: float, attach: bool = False, quiet: bool = False
) -> dict[str, object]:
    """Practises and returns what came out.

    Args:
        arguments: Of the stack `practice`.
        seconds: Longest time after the first finished episode; 0: no limit.
        attach: Start nothing.
        quiet: No progress bar.

    Raises:
        WaitTimeout: The learner or the robots did not come up.
        BadRequest: Another learner is there, whose numbers would be taken for this run's.
        EfmError: What `stacks.check` refuses.
    """
    values = read_arguments(STACKS["practice"], arguments)
    run = Path(values.path("run"))
    with contextlib.ExitStack() as stack:
        group = None
        monitor = stack.enter_context(FleetMonitor(values.robots))
        if not attach:
            nodes = nodes_of("practice", arguments)
            check(nodes)
            refuse_company(monitor, COMPANY_S)
            group = stack.enter_context(ProcessGroup(nodes, run / "logs"))
        deadline_s = ATTACH_DEADLINE_S if attach else START_DEADLINE_S
        hint = "is the stack up? (efm up practice)" if attach else f"what it does is in {run / 'logs'}"
        wait_for(lambda: monitor.learner is not None, f"the learner's status; {hint}", deadline_s, group)
        wait_for(
            lambda: monitor.finished > 0 or _stopped(monitor), f"a first episode; {hint}", deadline_s, group
        )
        bar = stack.enter_context(tqdm(unit="episode", file=sys.stdout, disable=quiet, mininterval=1.0))
        end = time.monotonic() + seconds if seconds else float("inf")
        began, iteration, doubt = time.monotonic(), -1, ""
        with contextlib.suppress(KeyboardInterrupt):
            while not _stopped(monitor) and time.monotonic() < end:
                for line in group.watch() if group else ():
                    bar.write(line, file=sys.stdout)
                status = monitor.learner
                assert status is not None
                if status.iteration != iteration:
                    iteration = status.iteration
                    bar.write(_line(status), file=sys.stdout)
                if status.guard != doubt:
                    doubt = status.guard
                    bar.write(f"guard: {doubt or 'no doubt any more'}", file=sys.stdout)
                rate = monitor.steps / max(1e-9, time.monotonic() - began)
                bar.set_postfix_str(f"iteration {iteration}, {rate:.0f} steps/s", refresh=False)
                bar.update(monitor.finished - bar.n)
                time.sleep(POLL_S)
        status = monitor.learner
        assert status is not None
        if status.iteration != iteration:
            bar.write(_line(status), file=sys.stdout)
        result: dict[str, object] = {
            "iterations": int(status.iteration),
            "updates": int(status.updates),
            "episodes": int(status.episodes),
            "steps": int(status.steps),
            "refused": int(status.refused),
            "wall_seconds": time.monotonic() - began,
            "idle_share": float(status.idle_share),
            "robots_idle_share": {name: view.idle_share for name, view in monitor.robots.items()},
            "best": status.best_bundle_id,
            "best_path": str(run / "bundles" / status.best_bundle_id),
            "message": status.message,
        }
        # Before the nodes are stopped, which takes seconds that impatient people cut off.
        replace_json(run / "result.json", result)
    return result


def refuse_company(monitor: FleetMonitor, seconds: float) -> None:
    """Returns after some seconds in which no learner was heard.

    Raises:
        BadRequest: One was.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if monitor.learner is not None:
            raise BadRequest(
                "expected no learner in this ROS domain yet, found one, of another run or one that is just "
                "ending; wait for its end, watch it with --attach, or choose another ROS_DOMAIN_ID"
            )
        time.sleep(POLL_S / 10)


def _stopped(monitor: FleetMonitor) -> bool:
    status = monitor.learner
    if status is not None and status.phase == LearnerStatus.PHASE_FAULT:
        raise WaitTimeout(f"the learner cannot go on: {status.message or 'see its log'}")
    return status is not None and status.phase == LearnerStatus.PHASE_STOPPED


def _line(status: LearnerStatus) -> str:
    return (
        f"iteration {status.iteration}: {status.episodes} episodes, detected {status.detected_success:.2f}, "
        f"{status.mean_steps:.1f} steps an episode, return {status.mean_return:.2f}, KL {status.kl:.3f}"
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EfmError as error:
        sys.exit(f"efm practice: {error}")
