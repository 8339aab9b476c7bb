"""`efm sft`: trains a policy and a reward on a folder of episodes.

    efm sft --episodes runs/demonstrations --embodiment table --out runs/sft
    efm sft --episodes ... --embodiment ... --out ... --set mixture.mismatched=0.2 --set heads=3

Every setting of `SftConfig` can be set; the common ones have options of their own. On several GPUs or
machines: `torchrun --nproc-per-node 2 -m efm_learner.sft_command ...`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from efm_core.errors import BadRequest, EfmError
from efm_learner import sft
from efm_learner.backbones import BACKBONES
from efm_learner.sft_config import SftConfig
from efm_learner.training import Interrupted

# Group -> (option, setting, what it is); its default and type are those of the setting.
_OPTIONS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "network": (
        ("heads", "heads", "steps-to-go heads of the ensemble"),
        ("combine", "combine", "how heads are combined: mean, or max, which is pessimistic"),
    ),
    "training": (
        ("steps", "steps", "gradient steps"),
        ("batch-size", "mixture.batch_size", "rows of a batch, all objectives together"),
        ("learning-rate", "learning_rate", "of AdamW"),
        (
            "foresight",
            "foresight_weight",
            "weight of telling the robot's own later states; helps with images",
        ),
        ("seed", "seed", "of weights, batches and split"),
        ("validation-share", "validation_share", "share of the episodes held out"),
        ("validate-every", "validate_every", "steps between validations"),
        ("checkpoint-every", "checkpoint_every", "steps between checkpoints"),
        ("threads", "threads", "torch threads"),
        ("device", "device", "cpu, or auto for a GPU where there is one"),
        ("precision", "precision", "no for float32, or bf16"),
    ),
    "steps-to-go": (
        (
            "rest-steps",
            "labelling.rest_steps",
            "control steps that demonstrations rest at least after success",
        ),
        (
            "censored",
            "mixture.censored",
            "share of rows from unsuccessful episodes; 0 is the paper's plain head",
        ),
        ("mismatched", "mixture.mismatched", "share of rows under a foreign instruction"),
        ("rewound", "mixture.rewound", "share of rows with reversed history"),
    ),
}


def parser() -> argparse.ArgumentParser:
    """Returns the command's options; what is not given keeps the default of `SftConfig`."""
    defaults = SftConfig()
    made = argparse.ArgumentParser(
        prog="efm sft",
        description="Stage 1: learns to act and to judge from demonstrations. Writes a policy bundle and a "
        "reward bundle. Run again with the same options, it goes on from its last checkpoint.",
        argument_default=argparse.SUPPRESS,
    )
    add = made.add_argument_group("data and output").add_argument
    add("--episodes", required=True, metavar="DIR", help="folder of recorded episodes")
    add(
        "--embodiment",
        required=True,
        metavar="NAME",
        help="embodiment that they were recorded with, or its file",
    )
    add(
        "--out", required=True, metavar="DIR", help="folder of the run: bundles/, checkpoints/, metrics.jsonl"
    )
    add("--cache", metavar="DIR", help="folder of decoded frames (default: .cache in that of the episodes)")
    add("--config", metavar="FILE", help="settings in YAML or JSON, such as the config.json of another run")
    text = "any setting by its dotted name, value in YAML; wins over the others and may be given again"
    add("--set", action="append", metavar="KEY=VALUE", dest="settings", help=text)
    text = f"what looks at observations (default: {defaults.backbone['name']})"
    made.add_argument("--backbone", choices=list(BACKBONES), help=text)
    text = "adds the paper's objective 'instruction from first and last image' with this weight"
    made.add_argument("--tell-instruction", type=float, metavar="WEIGHT", help=text)
    for title, options in _OPTIONS.items():
        group = made.add_argument_group(title)
        for name, key, text in options:
            default: Any = functools.reduce(getattr, key.split("."), defaults)
            shown = f"{text} (default: {default})"
            group.add_argument(f"--{name}", type=type(default), metavar="X", help=shown)
    return made


def config_from(arguments: Sequence[str]) -> SftConfig:
    """Returns the settings that a command line asks for.

    Raises:
        BadRequest: An unknown setting, or a value out of range.
    """
    given = vars(parser().parse_args(arguments))
    values: dict[str, Any] = {}
    if "config" in given:
        values = _read_config(Path(given["config"]))
    for key in ("episodes", "embodiment", "out"):
        values[key] = given[key]
    if "cache" in given:
        values["cache"] = given["cache"]
    for option, key, _ in itertools.chain(*_OPTIONS.values()):
        if option.replace("-", "_") in given:
            _set(values, key, given[option.replace("-", "_")])
    if "backbone" in given and values.get("backbone", {}).get("name") != given["backbone"]:
        values["backbone"] = {"name": given["backbone"]}
    if "tell_instruction" in given:
        values["instruction_weight"] = given["tell_instruction"]
        _set(values, "mixture.instruction", given["tell_instruction"] > 0)
    for text in given.get("settings", []):
        key, separator, value = text.partition("=")
        if not separator:
            raise BadRequest(f"--set: expected KEY=VALUE, found {text!r}")
        if key.startswith("backbone."):  # A setting of the default backbone keeps its name.
            values.setdefault("backbone", dict(SftConfig.from_dict({}).backbone))
        try:
            _set(values, key, yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise BadRequest(f"--set: expected a value in YAML after {key}=, found {value!r}") from error
    return SftConfig.from_dict(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 after an error, or 75 where it was interrupted and can go on."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        result = sft.main(config_from(sys.argv[1:] if arguments is None else arguments))
    except EfmError as error:
        print(f"efm sft: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"efm sft: {where}{error.strerror or error}; choose another --out or --cache", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(f"efm sft: {error}", file=sys.stderr)
        return 75
    if result is not None:
        print(describe(result))
    return 0


def describe(result: sft.SftResult) -> str:
    """Returns what came out, for people."""
    lines = [f"policy  {result.policy.path}", f"reward  {result.reward.path}"]
    if not result.report:
        return "\n".join([*lines, "no successful episode was held out: the reward has no success threshold"])
    detector = result.report["detector"]
    lines.append(
        f"success when d <= {detector['threshold']:.2f} at {detector['hold']} observations in a row: on "
        f"{result.report['successful_episodes']} successful and {result.report['unsuccessful_episodes']} "
        f"unsuccessful held-out episodes recall {detector['recall']:.2f}, precision "
        f"{detector['precision']:.2f}, early {detector['early']:.2f}, false {detector['false']:.2f}"
    )
    if detector["recall"] == 0:
        lines.append(
            "the detector recognises none of the held-out successes, and practice would never see one: train "
            "longer (--steps), or record more episodes, with steps of rest after success (--rest-steps)"
        )
    if not detector["limits_kept"]:
        lines.append(
            "no threshold keeps false and early successes within the limit: the detector will be fooled; "
            "record more varied and unsuccessful episodes, with steps of rest after success (--rest-steps)"
        )
    return "\n".join(lines)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadRequest(f"--config {path}: {error}") from error
    if not isinstance(values, dict):
        raise BadRequest(f"--config {path}: expected settings, found {type(values).__name__}")
    return values


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key in nested dicts."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise BadRequest(f"settings: '{parent}' has no settings of its own, found the key '{key}'")
        values = inner
    values[last] = value


if __name__ == "__main__":
    sys.exit(main())
