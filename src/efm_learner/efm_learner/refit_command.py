"""`efm refit`: learns steps-to-go anew from demonstrations and the episodes of a finished practice run.

    efm refit --run runs/practice --reward REWARD --verifier VERIFIER --episodes runs/demos --out runs/refit

The new reward is for a new run; see `refit.py` for what counts as success and what it leaves out.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from efm_core.bundle import load_bundle
from efm_core.errors import EfmError
from efm_learner.refit import RefitResult, refit
from efm_learner.run_folder import owned
from efm_learner.training import Interrupted


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    made = argparse.ArgumentParser(
        prog="efm refit",
        description="Learns steps-to-go anew, also from the robot's own episodes: successes that the "
        "verifier confirms, and all others as 'at least so many steps were left'. Writes a reward bundle for "
        "a new run. Run again with the same options, it goes on from its last checkpoint.",
    )
    made.add_argument("--run", required=True, type=Path, help="folder of the practice run")
    made.add_argument("--reward", required=True, help="the run's reward bundle; its settings are used again")
    made.add_argument("--verifier", required=True, help="a reward bundle that was trained apart")
    made.add_argument("--episodes", required=True, type=Path, help="folder of the demonstrations")
    made.add_argument("--out", required=True, type=Path, help="folder of the training")
    made.add_argument("--steps", type=int, help="gradient steps (default: as the reward was made)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 after an error, or 75 where it was interrupted and can go on."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    chosen = parser().parse_args(arguments)
    try:
        reward, verifier = load_bundle(chosen.reward), load_bundle(chosen.verifier)
        with owned(chosen.out):
            result = refit(chosen.run, reward, verifier, chosen.episodes, chosen.out, chosen.steps)
    except EfmError as error:
        print(f"efm refit: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(f"efm refit: {error}", file=sys.stderr)
        return 75
    print(describe(result))
    return 0


def describe(result: RefitResult) -> str:
    """Returns what came out, for people."""
    counts = ", ".join(f"{count} {name}" for name, count in result.labelled.items() if count)
    lines = [f"reward  {result.reward.path}", f"practice episodes: {counts}"]
    if result.reward.manifest.success_threshold is None:
        lines.append("no successful episode was held out: the reward has no success threshold")
    if result.fooled is not None:
        lines.append(
            "held-out practice episodes that do not count as success, in which the detector fires: "
            f"{result.fooled['before']:.2f} before, {result.fooled['after']:.2f} after"
        )
    lines.append("train a new verifier for the next run: the opinion of this one is in the reward now")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
