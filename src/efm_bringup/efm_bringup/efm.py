"""The command `efm`: one table of subcommands, each in the package that it belongs to.

A subcommand is a function `main(argv) -> int`; its module is imported only when it is asked for, so that
`efm --help` is quick and `efm bundle` needs neither torch nor ROS.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from efm_bringup.config import use_middleware_profile
from efm_core.errors import EfmError, nearest
from efm_core.files import DISK_FULL

# Name -> (module, what it does). In the order of a first run.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("efm_bringup.demo", "From nothing to a policy that practised, with a report."),
    "up": ("efm_bringup.up_command", "Start a stack of nodes, as the launch file of that name does."),
    "collect": ("efm_episode_node.collect_command", "Run episodes and show their progress."),
    "episodes": ("efm_episode_node.episodes_command", "List, show, check, plot, export and import episodes."),
    "sft": ("efm_learner.sft_command", "Stage 1: train a policy and a reward model on demonstrations."),
    "bundle": ("efm_core.bundle_command", "Show, check, compare and convert model bundles."),
    "evaluate": (
        "efm_episode_node.evaluate_command",
        "Measure a running cell against the world's ground truth.",
    ),
    "practice": (
        "efm_bringup.practice_command",
        "Stage 2: let robots practise until the budget or the guard ends it.",
    ),
    "refit": ("efm_learner.refit_command", "Learn steps-to-go anew, also from a practice run."),
    "ensemble": ("efm_learner.ensemble_command", "Make one cautious reward of several."),
    "report": ("efm_bringup.report_command", "Make one HTML page of a run."),
    "watch": ("efm_bringup.watch_command", "The fleet in a terminal."),
    "doctor": ("efm_bringup.doctor_command", "Look at a running graph and say what is missing or odd."),
}


def usage() -> str:
    """Returns the help text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: efm COMMAND [options]", "", "commands:", *lines, "", "efm COMMAND --help tells more."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Returns:
        Exit code: 0 done, 1 failed (the reason is on stderr), 2 wrong usage, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"efm: unknown command {name!r}{nearest(name, COMMANDS)}\n\n{usage()}", file=sys.stderr)
        return 2
    sys.argv[0] = f"efm {name}"
    # SIGTERM ends a command in order, as Ctrl+C does. What a shell's script starts in the background would
    # ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        if name != "demo":  # It chooses for itself, to stay on this machine.
            use_middleware_profile(os.environ)
        return int(importlib.import_module(COMMANDS[name][0]).main(rest) or 0)
    except EfmError as error:
        print(f"efm {name}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `efm … | head`: nobody reads on. What is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None and error.errno not in DISK_FULL:
            raise  # No file is to blame, so a person cannot mend it.
        print(f"efm {name}: {refused(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def refused(error: OSError) -> str:
    """Returns what the system refused, for people."""
    where = f"{error.filename}: " if error.filename is not None else ""
    return (
        f"{where}{error.strerror}; expected a place that this user may read or write, on a disk with free "
        "space; choose another place, or mend this one, and try again"
    )


if __name__ == "__main__":
    sys.exit(main())
