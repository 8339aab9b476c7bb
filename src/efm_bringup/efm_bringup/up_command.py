"""`efm up STACK name:=value ...`: starts the nodes of a stack on this machine, without `ros2 launch`."""

from __future__ import annotations

import argparse
import shlex
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from efm_bringup.processes import ProcessGroup, command_of
from efm_bringup.stacks import STACKS, Stack, check, nodes_of
from efm_core.errors import BadRequest

WATCH_PERIOD_S = 0.5
NO_RVIZ = (
    "RViz is no part of this: ros2 launch efm_bringup view.launch.py opens it too, where ROS 2 has it; "
    "elsewhere efm watch shows the fleet"
)


def main(argv: Sequence[str]) -> int:
    """Runs until Ctrl+C; then stops every node with one signal, and returns 0 if all of them ended well."""
    parser = argparse.ArgumentParser(
        prog="efm up",
        description="Starts a stack: " + "; ".join(f"{s.name}: {s.description}" for s in STACKS.values()),
    )
    parser.add_argument("stack", choices=list(STACKS))
    parser.add_argument("arguments", nargs="*", default=[], metavar="name:=value")
    parser.add_argument("--show-args", action="store_true", help="list the stack's arguments and end")
    parser.add_argument(
        "--print", action="store_true", help="print the command lines instead of running them"
    )
    parser.add_argument("--logs", type=Path, help="folder for one log file per node (default: this terminal)")
    options = parser.parse_intermixed_args(argv)
    if options.show_args:
        print(arguments_text(STACKS[options.stack]))
        return 0
    nodes = nodes_of(options.stack, parse_assignments(options.arguments))
    if options.print:
        for node in nodes:
            print(shlex.join(command_of(node)))
        return 0
    check(nodes)
    if options.stack == "view":
        print(NO_RVIZ, flush=True)
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    with ProcessGroup(nodes, options.logs) as group:
        if options.logs:
            names = ", ".join(f"{node.namespace}/{node.name}".replace("//", "/") for node in nodes)
            print(f"started {names}; logs are in {options.logs}, Ctrl+C stops all", flush=True)
        while not ending.wait(WATCH_PERIOD_S):
            for line in group.watch():
                print(line, flush=True)
        codes = group.stop()
    failed = [f"{node.name} ({code})" for node, code in zip(nodes, codes, strict=True) if code]
    if failed:
        print(f"ended with an error: {', '.join(failed)}")
    return 1 if failed else 0


def parse_assignments(texts: Sequence[str]) -> dict[str, str]:
    """Reads `name:=value` arguments.

    Raises:
        BadRequest: An argument is of another form.
    """
    values = {}
    for text in texts:
        name, separator, value = text.partition(":=")
        if not separator or not name:
            raise BadRequest(f"expected name:=value, found {text!r}")
        values[name] = value
    return values


def arguments_text(stack: Stack) -> str:
    """Returns the arguments of a stack for people."""
    lines = []
    for argument in stack.arguments:
        choices = f" [{', '.join(repr(c) for c in argument.choices)}]" if argument.choices else ""
        lines.append(
            f"  {argument.name}:={argument.default or repr('')}{choices}\n      {argument.description}"
        )
    return "\n".join(lines)
