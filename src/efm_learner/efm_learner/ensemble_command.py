"""`efm ensemble`: makes one cautious reward of several that have seen different demonstrations.

    efm ensemble --rewards FIRST SECOND --episodes runs/others --out runs/ensemble

See `ensemble.py` for what it is good for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from efm_core.bundle import load_bundle
from efm_core.errors import EfmError
from efm_learner.ensemble import ensemble


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    made = argparse.ArgumentParser(
        prog="efm ensemble",
        description="Makes one reward bundle of several, each trained on demonstrations of its own: of what "
        "they say, the most steps to go count, and success is what all of them see. Trains nothing.",
    )
    made.add_argument(
        "--rewards", required=True, nargs="+", metavar="BUNDLE", help="two reward bundles or more"
    )
    text = "demonstrations; those that no reward was trained on choose the success detector"
    made.add_argument("--episodes", required=True, type=Path, metavar="DIR", help=text)
    made.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the new bundle")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 1 after an error."""
    chosen = parser().parse_args(arguments)
    try:
        rewards = [load_bundle(path) for path in chosen.rewards]
        bundle, report = ensemble(rewards, chosen.episodes, chosen.out)
    except EfmError as error:
        print(f"efm ensemble: {error}", file=sys.stderr)
        return 1
    detector = report["detector"]
    print(f"reward  {bundle.path}")
    print(
        f"success at {detector['threshold']:.2f} steps, held for {detector['hold']}: recall "
        f"{detector['recall']:.2f}, precision {detector['precision']:.2f} on "
        f"{report['successful_episodes']} successful and {report['unsuccessful_episodes']} failed episodes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
