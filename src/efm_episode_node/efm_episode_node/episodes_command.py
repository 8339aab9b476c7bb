"""`efm episodes`: looks at recorded episodes, checks them, and takes them to LeRobot and back.

    efm episodes list spool/robot_1
    efm episodes show spool/robot_1/20261122T140102Z-1a2b3c4d
    efm episodes check spool/robot_1
    efm episodes plot spool/robot_1/20261122T140102Z-1a2b3c4d --out episode.png
    efm episodes export --to lerobot spool/robot_1 --out dataset
    efm episodes import --from lerobot dataset --out episodes

Needs no ROS: whatever machine holds the files will do.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from efm_core.embodiment import load_embodiment
from efm_core.episode import check_episode, list_episodes, read_episode, read_summary
from efm_core.episode_file import incomplete_episodes, is_episode, read_episode_file
from efm_core.errors import BadRequest, EfmError
from efm_core.summary import Outcome, Summary

PIPE_WIDTH = 200
FORMATS = ("lerobot",)
ANGLES = ("radians", "degrees")
OUTCOMES = {"success": Outcome.SUCCESS, "failure": Outcome.FAILURE}
COLOURS = {Outcome.SUCCESS: "green", Outcome.FAILURE: "yellow", Outcome.DISCARDED: "red"}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0 when all went well and, for `check`, all episodes are good."""
    options = parse(argv)
    return int(options.run(options) or 0)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="efm episodes", description="Looks at recorded episodes.")
    verbs = parser.add_subparsers(required=True, metavar="list|show|check|plot|export|import")
    verb = verbs.add_parser("list", help="one line for every episode in a folder")
    verb.add_argument("folder", type=Path)
    verb.set_defaults(run=run_list)
    verb = verbs.add_parser("show", help="all about one episode")
    verb.add_argument("episode", type=Path)
    verb.set_defaults(run=run_show)
    verb = verbs.add_parser("check", help="reads everything and says what is wrong or odd")
    verb.add_argument("paths", type=Path, nargs="+", help="episodes, or folders of episodes")
    verb.set_defaults(run=run_check)
    verb = verbs.add_parser("plot", help="draws one episode: images, steps-to-go, actions, state")
    verb.add_argument("episode", type=Path)
    verb.add_argument("--out", type=Path, help="image file (default: <episode>.png here)")
    verb.set_defaults(run=run_plot)
    verb = verbs.add_parser("export", help="writes episodes in the format of others")
    verb.add_argument("--to", choices=FORMATS, required=True, help="LeRobot data set v3.0")
    verb.add_argument("folders", type=Path, nargs="+", help="folders of episodes")
    verb.add_argument("--out", type=Path, required=True, help="data set to make; must not exist yet")
    verb.add_argument("--failures", action="store_true", help="take failed attempts too (next.success false)")
    verb.set_defaults(run=run_export)
    verb = verbs.add_parser("import", help="makes episodes of what others recorded")
    verb.add_argument("--from", dest="source_format", choices=FORMATS, required=True)
    verb.add_argument("source", type=Path, help="data set")
    verb.add_argument(
        "--out", type=Path, required=True, help="folder of episodes to make; must not exist yet"
    )
    verb.add_argument("--embodiment", help="name or file, where the data set was not exported by EFM")
    verb.add_argument(
        "--outcome", choices=OUTCOMES, help="of all episodes, where the data set does not say it"
    )
    verb.add_argument("--angles", choices=ANGLES, default="", help="unit, where the data set does not say it")
    verb.add_argument("--by-order", action="store_true", help="match numbers by their place, not their name")
    verb.set_defaults(run=run_import)
    return parser.parse_args(argv)


def run_list(options: argparse.Namespace) -> int:
    """Prints a table of episodes."""
    table = Table(box=None, pad_edge=False)
    for column in ("episode", "robot", "by", "outcome", "end", "steps", "instruction"):
        table.add_column(column, justify="right" if column == "steps" else "left", no_wrap=True)
    outcomes: Counter[str] = Counter()
    steps, errors = 0, []
    paths = episodes_in(options.folder)
    for path in paths:
        try:
            summary = read_summary(path)
        except EfmError as error:
            table.add_row(path.name, "", "", "[red]unreadable[/red]")
            errors.append(str(error))
            outcomes["unreadable"] += 1
            continue
        outcomes[summary.outcome.name.lower()] += 1
        steps += summary.steps
        colour = COLOURS.get(summary.outcome, "white")
        table.add_row(
            path.name,
            escape(summary.robot),
            f"{summary.mode.name.lower()}/{summary.actor.name.lower()}",
            f"[{colour}]{summary.outcome.name.lower()}[/{colour}]",
            summary.end_reason.name.lower(),
            str(summary.steps),
            escape(summary.instruction),
        )
    # Whole lines for files and pipes, which have no width.
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(table)
    counted = ", ".join(f"{number} {name}" for name, number in sorted(outcomes.items()))
    console.print(f"{len(paths)} episodes, {steps} steps: {counted or 'nothing'}")
    for text in errors:
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    return 1 if outcomes["unreadable"] else 0


def run_show(options: argparse.Namespace) -> int:
    """Prints all about one episode."""
    episode = read_episode(options.episode)
    console = Console()
    table = Table(title=episode.id, show_header=False)
    for name, value in described(episode.summary).items():
        table.add_row(name, escape(value))
    console.print(table)
    topics = Table("topic", "type", "messages", title="recorded")
    for name, topic in sorted(read_episode_file(options.episode).topics.items()):
        topics.add_row(name, topic.type_name, str(len(topic.messages)))
    console.print(topics)
    console.print(f"embodiment {episode.embodiment.name} ({episode.embodiment.digest}), {len(episode)} rows")
    for note in episode.notes:
        console.print(note, style="yellow", markup=False)
    return 0


def described(summary: Summary) -> dict[str, str]:
    """Returns the fields of a summary as people read them."""
    began = datetime.datetime.fromtimestamp(summary.start_ns / 1e9, datetime.timezone.utc)
    judged = np.isfinite(summary.steps_to_go_first)
    d = f"{summary.steps_to_go_first:.1f} -> {summary.steps_to_go_last:.1f}" if judged else "not judged"
    return {
        "instruction": summary.instruction,
        "robot": summary.robot or "(no namespace)",
        "mode": summary.mode.name.lower(),
        "actor": summary.actor.name.lower(),
        "outcome": summary.outcome.name.lower(),
        "end": summary.end_reason.name.lower(),
        "steps": str(summary.steps),
        "began (robot clock)": f"{began:%Y-%m-%d %H:%M:%S.%f}",
        "seconds": f"{(summary.stamp_ns - summary.start_ns) / 1e9:.2f}",
        "seed": str(summary.seed) if summary.seed else "none",
        "steps-to-go": d,
        "policy": f"{summary.policy_bundle_id or 'none'}, version {summary.policy_version}",
        "reward": summary.reward_bundle_id or "none",
        "message": summary.message or "-",
    }


def run_check(options: argparse.Namespace) -> int:
    """Checks episodes and prints what is wrong with them."""
    paths = [
        path for given in options.paths for path in ([given] if is_episode(given) else episodes_in(given))
    ]
    bad = 0
    for path in tqdm(paths, unit="episode", disable=not sys.stderr.isatty()):
        problems = check_episode(path)
        bad += bool(problems)
        for problem in problems:
            print(f"{path.name}: {problem}")
    print(f"{len(paths)} episodes checked, {bad} with something to say")
    return 1 if bad else 0


def run_plot(options: argparse.Namespace) -> int:
    """Draws one episode."""
    from efm_episode_node.episode_plot import plot_episode

    episode = read_episode(options.episode)
    out = options.out or Path(f"{episode.id}.png")
    plot_episode(episode, out)
    print(f"drawn to {out}")
    return 0


def run_export(options: argparse.Namespace) -> int:
    """Writes a LeRobot data set."""
    from efm_episode_node.lerobot.export import export_lerobot
    from efm_episode_node.lerobot.format import EFM_PATH

    # A folder that is named twice, or lies within another, gives its episodes once.
    folders = list(
        {path.resolve(): path for given in options.folders for path in episodes_in(given)}.values()
    )
    count, left_out = export_lerobot(folders, options.out, options.failures)
    print(f"{count} episodes exported to {options.out}")
    for reason, number in sorted(left_out.items()):
        print(f"left out: {number} {reason}")
    for text in json.loads((options.out / EFM_PATH).read_text())["lost"]:
        print(f"lost: {text}")
    return 0


def run_import(options: argparse.Namespace) -> int:
    """Makes episodes of a LeRobot data set."""
    from efm_episode_node.lerobot.importing import ImportOptions, import_lerobot

    embodiment = load_embodiment(options.embodiment) if options.embodiment else None
    outcome = OUTCOMES.get(options.outcome, Outcome.UNSET)
    given = ImportOptions(embodiment, outcome, options.angles, options.by_order)
    count = import_lerobot(options.source, options.out, given, np.random.default_rng())
    print(f"{count} episodes imported to {options.out}")
    return 0


def episodes_in(folder: Path) -> list[Path]:
    """Returns the episodes of a folder, also those that lack a file; reading them says which.

    Raises:
        BadRequest: There is no such folder, or no episode in it.
    """
    found = sorted({*list_episodes(folder), *incomplete_episodes(folder)}, key=lambda path: path.name)
    if not found:
        what = "no episode in it" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
        raise BadRequest(f"{folder}: expected a folder of episodes, found {what}")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
