"""`efm doctor`: looks at a running graph for a few seconds and says what is missing or odd, and what to do.

    efm doctor                                   # the robots that EFM's nodes serve
    efm doctor --embodiment my_arm --robots left # a robot alone, before EFM is started

Left out: repairing anything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from efm_bringup.findings import Finding, Level
from efm_bringup.graph_checks import examine
from efm_bringup.graph_look import GraphLook
from efm_core.embodiment import load_embodiment

STYLES = {Level.WRONG: "bold red", Level.ODD: "yellow", Level.OK: "green"}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 1 when something is wrong."""
    parser = argparse.ArgumentParser(
        prog="efm doctor", description="Looks at a running graph and says what is missing or odd."
    )
    parser.add_argument(
        "--embodiment", default="", help="of the robots, by name or path (default: as the nodes say)"
    )
    parser.add_argument("--robots", default="", help="names with commas between (default: all)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to listen (3)")
    parser.add_argument("--json", action="store_true", help="findings as JSON")
    options = parser.parse_args(argv)
    if options.seconds < 1.0:
        parser.error(f"--seconds: expected 1 or more, found {options.seconds:g}")
    embodiment = load_embodiment(options.embodiment) if options.embodiment else None
    robots = [name.strip().strip("/") for name in options.robots.split(",") if name.strip()]
    with GraphLook(embodiment, robots) as look:
        findings = examine(look.take(options.seconds))
    if options.json:
        print(json.dumps([_plain(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    return 1 if any(finding.level is Level.WRONG for finding in findings) else 0


def _plain(finding: Finding) -> dict[str, str]:
    return {
        "level": finding.level.value,
        "about": finding.about,
        "text": finding.text,
        "advice": finding.advice,
    }


def _show(findings: Sequence[Finding]) -> None:
    console = Console(soft_wrap=True)
    for finding in findings:
        line = Text(f"{finding.level.value:<6}", STYLES[finding.level])
        line.append(f"{finding.about}: ", "bold").append(finding.text, "default")
        console.print(line)
        if finding.advice:
            console.print(Text(f"      -> {finding.advice}", "default"))
    count = {level: sum(finding.level is level for finding in findings) for level in Level}
    console.print(f"{count[Level.WRONG]} wrong, {count[Level.ODD]} odd, {count[Level.OK]} well")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
