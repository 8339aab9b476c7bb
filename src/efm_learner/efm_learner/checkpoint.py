"""Checkpoints of a training: everything that is needed to go on with the very next step, without pickle.

`<run>/checkpoints/step_<n>/` holds `weights.safetensors`, `optimizer.safetensors` (with torch's random state)
and `state.json`; it is written under a temporary name, synced and renamed, and the two newest are kept. The
best weights so far lie in `<run>/best/`, named by step, and are removed only when no checkpoint names them.
One process writes at a time, and removes what one before it that was killed left half-written.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from efm_core.errors import BadRequest
from efm_core.files import disk_full_is_told, sync, temporary_folder, write_synced

KEPT = 2
_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
_RANDOM = "random_state"

_log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Where a training stands.

    Attributes:
        step: Steps done.
        best: Name of a choice -> {"step", "loss", "file"} of its best weights so far.
        config: The settings that the training was begun with.
        progress: Whatever else the training wants back, as plain JSON.
    """

    step: int = 0
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    run: Path, state: TrainingState, module: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Path:
    """Writes a checkpoint and removes those that it makes superfluous.

    Raises:
        SpoolFull: The disk is full; the checkpoints before are untouched.
    """
    parent = run / "checkpoints"
    final = parent / f"step_{state.step:08d}"
    with disk_full_is_told("the checkpoint", parent), temporary_folder(parent, ".step_") as partial:
        write_synced(partial / _WEIGHTS, _tensors_to_bytes(module.state_dict()))
        save_optimizer(optimizer, partial / _OPTIMIZER)
        write_synced(partial / _STATE, json.dumps(asdict(state), indent=2).encode())
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(parent)
    for old in checkpoints(run)[:-KEPT]:
        shutil.rmtree(old)
    _remove_unnamed_best(run)
    return final


def checkpoints(run: Path) -> list[Path]:
    """Returns the checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def load_checkpoint(
    run: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, config: Mapping[str, Any]
) -> TrainingState:
    """Puts the newest sound checkpoint into module, optimizer and torch's random state.

    Args:
        run: Folder of the run.
        module: As it was saved.
        optimizer: As it was saved.
        config: Settings that must not have changed since.

    Returns:
        Where the training stands; step 0 where there is no checkpoint.

    Raises:
        BadRequest: The settings differ from those of the checkpoint; says which.
    """
    for folder in reversed(checkpoints(run)):
        try:
            state = TrainingState(**json.loads((folder / _STATE).read_text()))
            weights = load_file(folder / _WEIGHTS)
            load_optimizer(optimizer, folder / _OPTIMIZER)
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            _log.warning("%s is broken (%s); the checkpoint before it is used", folder, error)
            continue
        _check_config(folder, state.config, config)
        module.load_state_dict(weights)
        return state
    return TrainingState(config=dict(config))


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Writes the state of an optimizer and of torch's random numbers into a new file."""
    tensors = {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    write_synced(path, _tensors_to_bytes({**tensors, _RANDOM: torch.random.get_rng_state()}))


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Puts a file of `save_optimizer` back; learning rate and other settings stay as they are.

    Raises:
        OSError, SafetensorError, KeyError, ValueError: The file is not whole; nothing has changed then.
    """
    tensors = load_file(path)
    random_state = tensors.pop(_RANDOM)
    values: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        values.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": values, "param_groups": groups})
    torch.random.set_rng_state(random_state)


def save_best(run: Path, choice: str, step: int, module: torch.nn.Module) -> str:
    """Writes weights to `<run>/best/` and returns the file's name."""
    folder = run / "best"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{choice}_{step:08d}.safetensors"
    partial = folder / f".{final.name}.{os.getpid()}.partial"
    partial.unlink(missing_ok=True)
    with disk_full_is_told("the best weights", folder):
        try:
            write_synced(partial, _tensors_to_bytes(module.state_dict()))
            partial.rename(final)
            sync(folder)
        finally:
            partial.unlink(missing_ok=True)
    return final.name


def load_best(run: Path, state: TrainingState, choice: str, module: torch.nn.Module) -> None:
    """Puts the best weights of a choice into the module."""
    module.load_state_dict(load_file(run / "best" / state.best[choice]["file"]))


def _remove_unnamed_best(run: Path) -> None:
    named: set[str] = set()
    for folder in checkpoints(run):
        try:
            best = json.loads((folder / _STATE).read_text())["best"]
        except (OSError, ValueError, KeyError):
            continue
        named |= {entry["file"] for entry in best.values()}
    for path in (run / "best").glob("*"):
        if path.name not in named:
            path.unlink()


def _check_config(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    keys = sorted(before.keys() | now.keys())
    differences = [
        f"{key}: {before.get(key)!r} then, {now.get(key)!r} now"
        for key in keys
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise BadRequest(
            f"{folder}: the training was begun with other settings ({'; '.join(differences)}); "
            "use the same settings to go on, or another output folder to begin anew"
        )


def _tensors_to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
