"""Demonstrations of an experiment in files: recorded once, by several processes, and then mapped, not read.

A block is a folder of plain arrays, all of whose episodes follow one another. It appears as a whole or not
at all, so that recording can be stopped and goes on.
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from in_process import demonstrations
from tqdm import tqdm

from efm_learner.samples import EpisodeArrays
from efm_sim.expert import ExpertStyle
from efm_sim.world import World

BLOCK = 100  # Demonstrations in one folder.
IMAGES = "images."

_world: World | None = None


def record(
    folder: Path,
    count: int,
    first_seed: int,
    make: Callable[[], World],
    style: ExpertStyle,
    processes: int = 1,
) -> None:
    """Records what is missing of `count` demonstrations; block n lies in `folder/<n * BLOCK>`.

    Args:
        folder: For the blocks.
        count: Of demonstrations, rounded up to whole blocks.
        first_seed: Of the first demonstration; the others follow.
        make: Makes the world; called once by each process.
        style: Of the expert.
        processes: That record side by side.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(0, count, BLOCK) if not (folder / str(n)).exists()]
    tasks = [(folder / str(n), range(first_seed + n, first_seed + n + BLOCK), style) for n in missing]
    if not tasks:
        return
    # A renderer does not survive a fork. Unlike multiprocessing's, this pool ends where no process can begin.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(tasks)), context, _open, (make,)) as pool:
        for done in tqdm(
            as_completed([pool.submit(_record_block, t) for t in tasks]), None, len(tasks), unit="block"
        ):
            done.result()


def load(folder: Path, count: int) -> list[EpisodeArrays]:
    """Returns the first `count` demonstrations; their images stay in the files."""
    episodes: list[EpisodeArrays] = []
    for number in range(0, count, BLOCK):
        block = folder / str(number)
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in block.glob("*.npy")}
        episodes += _unpacked(arrays)
    return episodes[:count]


def _open(make: Callable[[], World]) -> None:
    global _world
    _world = make()


def _record_block(task: tuple[Path, Sequence[int], ExpertStyle]) -> None:
    path, seeds, style = task
    assert _world is not None
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, array in _packed(demonstrations(_world, style, seeds)).items():
        np.save(partial / f"{name}.npy", array)
    partial.rename(path)


def _packed(episodes: list[EpisodeArrays]) -> dict[str, np.ndarray]:
    """Returns episodes as plain arrays, one after another."""
    arrays = {
        "ids": np.array([e.id for e in episodes]),
        "instructions": np.array([e.instruction for e in episodes]),
        "success": np.array([e.success for e in episodes]),
        "lengths": np.array([len(e) for e in episodes]),
        **{
            key: np.concatenate([getattr(e, key) for e in episodes])
            for key in ("state", "actions", "imitate")
        },
    }
    for camera in episodes[0].images:
        arrays[IMAGES + camera] = np.concatenate([e.images[camera] for e in episodes])
    return arrays


def _unpacked(arrays: Mapping[str, Any]) -> list[EpisodeArrays]:
    """Returns the episodes of packed arrays."""
    ends = np.cumsum(arrays["lengths"])
    cameras = {name.removeprefix(IMAGES): a for name, a in arrays.items() if name.startswith(IMAGES)}
    return [
        EpisodeArrays(
            id=str(arrays["ids"][index]),
            instruction=str(arrays["instructions"][index]),
            images={camera: value[end - length : end] for camera, value in cameras.items()},
            state=arrays["state"][end - length : end],
            actions=arrays["actions"][end - length : end],
            imitate=arrays["imitate"][end - length : end],
            success=bool(arrays["success"][index]),
            digest=str(arrays["ids"][index]),
        )
        for index, (end, length) in enumerate(zip(ends, arrays["lengths"], strict=True))
    ]
