"""`efm report RUN`: one self-contained HTML page of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from efm_bringup.report import write_report


def main(argv: Sequence[str]) -> int:
    """Writes the page and prints where it is."""
    parser = argparse.ArgumentParser(prog="efm report", description="Makes one HTML page of a run.")
    parser.add_argument("run", type=Path, help="folder of a demo, for example runs/demo")
    print(write_report(parser.parse_args(argv).run))
    return 0
