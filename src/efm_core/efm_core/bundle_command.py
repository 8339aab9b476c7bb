"""`efm bundle show|check|diff|convert`: looks at model bundles, compares them, and makes smaller ones.

Exit codes: 0 fine (diff: no difference), 1 a finding (diff: differences), 2 wrong use.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from efm_core.bundle import Bundle, load_bundle
from efm_core.embodiment import load_embodiment
from efm_core.errors import EfmError
from efm_core.external_data import MODEL_FILE, check_external_data
from efm_core.manifest import leaves

# Settings that are long and seldom wanted: shown with --all.
_LONG = ("embodiment", "training", "data_ids", "files", "backbone")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the arguments after `efm bundle`; returns the exit code."""
    arguments = _parser().parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    try:
        run: Callable[[argparse.Namespace, Console], int] = arguments.run
        return run(arguments, console)
    except EfmError as error:
        console.print(Text(f"{type(error).__name__}: {error}", style="red"))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="efm bundle", description="Look at model bundles, or convert one.")
    commands = parser.add_subparsers(required=True, metavar="show|check|diff|convert")

    show = commands.add_parser("show", help="what a bundle is, where it comes from, what it gives")
    show.add_argument("bundle", help="folder of the bundle")
    show.add_argument(
        "--all", action="store_true", help="also embodiment, training, data and hashes of files"
    )
    show.set_defaults(run=_show)

    check = commands.add_parser("check", help="hash all files, and see whether a robot can use it")
    check.add_argument("bundles", nargs="+", metavar="bundle", help="folders of bundles")
    check.add_argument("--embodiment", help="name or file of the robot that shall use it")
    check.set_defaults(run=_check)

    diff = commands.add_parser("diff", help="what two bundles differ in")
    diff.add_argument("first", help="folder of a bundle")
    diff.add_argument("second", help="folder of another bundle")
    diff.set_defaults(run=_diff)

    text = "write the same model in lower precision, and measure on recorded frames what that changes"
    convert = commands.add_parser("convert", help=text)
    convert.add_argument("bundle", help="folder of the bundle")
    convert.add_argument("--to", required=True, choices=("fp16", "int8"), help="fp16 for GPUs, int8 for CPUs")
    convert.add_argument("--episodes", required=True, metavar="DIR", help="recorded episodes to compare on")
    convert.add_argument("--out", required=True, metavar="DIR", help="where the new bundle's folder is made")
    convert.add_argument(
        "--frames", type=int, default=256, metavar="N", help="frames to compare on (default: 256)"
    )
    text = "least share of actions, and of verdicts, that must come out the same (default: 0.9)"
    convert.add_argument("--least-agreement", type=float, default=0.9, metavar="X", help=text)
    convert.set_defaults(run=_convert)
    return parser


def _show(arguments: argparse.Namespace, console: Console) -> int:
    bundle = load_bundle(arguments.bundle)
    manifest = bundle.manifest
    table = Table(title=f"bundle {bundle.id}", show_header=False, title_justify="left")
    for name, value in _overview(bundle):
        table.add_row(name, Text(str(value)))
    for key, value in leaves({name: getattr(manifest, name) for name in _LONG if arguments.all}).items():
        table.add_row(key, Text(str(value)))
    console.print(table)
    return 0


def _check(arguments: argparse.Namespace, console: Console) -> int:
    embodiment = load_embodiment(arguments.embodiment) if arguments.embodiment else None
    bad = 0
    for path in arguments.bundles:
        try:
            bundle = load_bundle(path)
            if MODEL_FILE in bundle.manifest.files:
                check_external_data(bundle)
            if embodiment is not None:
                bundle.check_embodiment(embodiment)
        except EfmError as error:
            bad += 1
            console.print(Text(f"{path}: {type(error).__name__}: {error}", style="red"))
        else:
            fits = f", fits '{embodiment.name}'" if embodiment is not None else ""
            console.print(Text(f"{path}: {bundle.manifest.kind}, {_files(bundle)}{fits}", style="green"))
    return 1 if bad else 0


def _diff(arguments: argparse.Namespace, console: Console) -> int:
    first, second = load_bundle(arguments.first), load_bundle(arguments.second)
    mine, other = leaves(vars(first.manifest)), leaves(vars(second.manifest))
    differing = [key for key in sorted(mine.keys() | other.keys()) if mine.get(key) != other.get(key)]
    if not differing:
        console.print(f"no difference: both are bundle {first.id}")
        return 0
    # Whole keys and values, whatever the width: a hash that is cut short says nothing.
    sides = (Column(bundle.id, overflow="fold") for bundle in (first, second))
    table = Table(Column("key", no_wrap=True), *sides)
    for key in differing:
        table.add_row(key, Text(str(mine.get(key, "-"))), Text(str(other.get(key, "-"))))
    console.print(table)
    return 1


def _convert(arguments: argparse.Namespace, console: Console) -> int:
    from efm_core.conversion import convert_bundle

    made = convert_bundle(
        load_bundle(arguments.bundle),
        arguments.to,
        arguments.episodes,
        arguments.out,
        frames=arguments.frames,
        least_agreement=arguments.least_agreement,
    )
    console.print(Text(f"{made.path}: {_files(made)}", style="green"))
    for key, value in leaves(made.manifest.parity).items():
        console.print(Text(f"{key} = {value}"))
    return 0


def _overview(bundle: Bundle) -> list[tuple[str, Any]]:
    """Returns what most people want to know, in order."""
    manifest = bundle.manifest
    embodiment = bundle.embodiment
    threshold = manifest.success_threshold
    rows: list[tuple[str, Any]] = [
        ("path", bundle.path),
        ("kind", manifest.kind),
        ("embodiment", f"{embodiment.name} ({embodiment.digest})"),
        ("parent", manifest.parent_id or "none: from scratch"),
        ("version", manifest.version),
        ("instruction", manifest.instruction.get("kind", "none")),
        ("backbone", manifest.backbone.get("name", "unnamed")),
        ("heads", f"{manifest.heads}, combined by {manifest.combine}"),
        ("success", _success(threshold, manifest.success_hold)),
        ("data", f"{len(manifest.data_ids)} episodes or data sets"),
        ("git revision", manifest.git_revision or "unknown"),
        ("files", f"{_files(bundle)}: {', '.join(sorted(manifest.files))}"),
    ]
    for name, table in (("input", manifest.inputs), ("output", manifest.outputs)):
        rows += [(name, f"{key} {spec['dtype']} {spec['shape']}") for key, spec in sorted(table.items())]
    for name, values in (("validation", manifest.validation), ("parity", manifest.parity)):
        rows += [(name, f"{key} = {value}") for key, value in leaves(values).items()]
    return rows


def _files(bundle: Bundle) -> str:
    size = sum(entry["size"] for entry in bundle.manifest.files.values())
    return f"{len(bundle.manifest.files)} files, {size} bytes, all hashes right"


def _success(threshold: float | None, hold: int) -> str:
    if threshold is None:
        return "not calibrated"
    return f"at most {threshold} steps to go, held for {hold} observations"
