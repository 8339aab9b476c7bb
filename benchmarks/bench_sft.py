"""Is the loader the bottleneck? Training of `small` against the bare network, the cache against decoding.

    python benchmarks/bench_sft.py --out docs/results/sft.json

Demonstrations of the table world are recorded as bags. Then, in one run and in alternating blocks: steps of
`efm_learner.training.train` from the cache (batches, shifts of images, losses, optimiser, all of it), and
forward and backward of the same network on random tensors of the same shapes. And: the time to have all
frames of all episodes in memory by decoding the bags, and from the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("LP_NUM_THREADS", "1")  # Read by the software renderer when it starts.

import numpy as np
import torch
from in_process import demonstrations, fitted

from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.episode import (
    Actor,
    EndReason,
    EpisodeWriter,
    Mode,
    Outcome,
    Summary,
    list_episodes,
    read_episode,
)
from efm_core.schemas import make_header, message_class, serialize
from efm_learner.batches import BatchMaker, Mixture
from efm_learner.dataset import load_tables
from efm_learner.network import build_network
from efm_learner.objectives import SftObjective
from efm_learner.samples import EpisodeArrays, Labelling, StepTable
from efm_learner.sft_config import SftConfig
from efm_learner.training import train
from efm_learner.words import with_word_table
from efm_sim.expert import ExpertStyle
from efm_sim.world import make_world

LABELLING = Labelling(rest_steps=5)
SKIPPED = 3  # First steps of a block: allocations, and the file system's cache.


def record(directory: Path, arrays: EpisodeArrays, embodiment: Embodiment) -> None:
    """Writes an episode as a bag, as the recorder does."""
    name = f"episode_{int(arrays.id):06d}"
    writer = EpisodeWriter(directory, name, embodiment)
    joints, step_kind = message_class("sensor_msgs/msg/JointState"), message_class("efm_msgs/msg/PolicyStep")
    names = [entry.name for entry in embodiment.state.entries]
    period_ns = int(1e9 / embodiment.control_rate_hz)
    for step in range(len(arrays)):
        stamp = (step + 1) * period_ns
        for camera, images in arrays.images.items():
            writer.write_image(camera, stamp, images[step])
        position = np.array(arrays.state[step], np.float64)
        message = joints(make_header(stamp), names, position, np.zeros(0), np.zeros(0))
        writer.write(embodiment.state.topic, "sensor_msgs/msg/JointState", stamp, serialize(message))
        if step == len(arrays) - 1:
            break
        command = np.array(arrays.actions[step], np.float64)
        message = step_kind(
            header=make_header(stamp), episode_id=name, bundle_id="", step=step, chunk_index=0,
            actor=int(Actor.EXPERT), gate=0, tokens=np.zeros(0, np.uint16), log_prob=np.nan,
            temperature=np.nan, action=command, command=command, latency=np.nan,
        )  # fmt: skip
        writer.write("policy_step", "efm_msgs/msg/PolicyStep", stamp, serialize(message))
    writer.close(
        Summary(
            episode_id=name,
            start_ns=period_ns,
            stamp_ns=len(arrays) * period_ns,
            instruction=arrays.instruction,
            mode=Mode.COLLECT,
            outcome=Outcome.SUCCESS if arrays.success else Outcome.FAILURE,
            end_reason=EndReason.ACTOR_DONE,
            actor=Actor.EXPERT,
            steps=len(arrays) - 1,
        )
    )


def seconds(work: Callable[[], object]) -> float:
    """Returns the wall time of some work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def all_frames(table: StepTable) -> int:
    """Reads every frame of a table into memory."""
    parts = np.array_split(np.arange(len(table)), max(1, len(table) // 256))
    return sum(frames.take(part).nbytes for frames in table.frames.values() for part in parts)


def cache_times(folder: Path, embodiment: Embodiment, repeats: int) -> dict[str, Any]:
    """Times decoding of all bags against reading them from the cache."""

    def decode() -> None:
        for path in list_episodes(folder):
            episode = read_episode(path)
            for camera in episode.images:
                np.asarray(episode.images[camera])

    def cached() -> None:
        all_frames(load_tables(folder, embodiment, LABELLING, validation_share=0).training)

    cached()  # Makes the cache.
    decoding, reading = zip(*((seconds(decode), seconds(cached)) for _ in range(repeats)), strict=True)
    found = {"decoding_s": float(np.median(decoding)), "cache_s": float(np.median(reading))}
    return {**found, "times_faster": found["decoding_s"] / found["cache_s"]}


def training_times(
    table: StepTable, embodiment: Embodiment, steps: int, blocks: int, batch: int
) -> dict[str, Any]:
    """Times steps of training against forward and backward on random tensors, in alternating blocks."""
    config = SftConfig(
        backbone=with_word_table({"name": "small"}, table.instructions),
        steps=steps,
        mixture=Mixture(batch_size=batch),
        labelling=LABELLING,
        validate_every=steps,
        checkpoint_every=steps,
    )
    network = build_network(embodiment, config.backbone, config.heads)
    objective = SftObjective(network)
    batches = BatchMaker(table, network, config.mixture, LABELLING, seed=0)
    inputs, targets = batches.tensors(batches.plan(0))
    generator = torch.Generator().manual_seed(0)
    random = {
        name: torch.randint(0, 256, value.shape, dtype=torch.uint8, generator=generator)
        if value.dtype == torch.uint8
        else value
        for name, value in inputs.items()
    }

    def bare() -> list[np.ndarray]:
        stamps = []
        for _ in range(steps):
            stamps.append(_now())
            objective.zero_grad(set_to_none=True)
            objective(random, targets)["loss"].backward()
        return list(np.diff(stamps, axis=0)[SKIPPED:])

    def whole() -> list[np.ndarray]:
        stamps: list[tuple[float, float]] = []
        with tempfile.TemporaryDirectory() as out:
            train(config, embodiment, table, None, Path(out), on_step=lambda *_: stamps.append(_now()))
        return list(np.diff(stamps, axis=0)[SKIPPED:-1])  # The last step also writes weights.

    bare_s: list[np.ndarray] = []
    whole_s: list[np.ndarray] = []
    for _ in range(blocks):
        bare_s += bare()
        whole_s += whole()
    (bare_wall, bare_cpu), (wall, cpu) = np.median(bare_s, axis=0), np.median(whole_s, axis=0)
    return {
        "parameters": network.trained_parameters(),
        "rows": batch,
        "bare_rows_per_s": batch / bare_wall,
        "training_rows_per_s": batch / wall,
        "ratio": bare_wall / wall,
        "ratio_of_cpu_time": bare_cpu / cpu,
    }


def _now() -> tuple[float, float]:
    """Wall and CPU time; the second tells more where others use the machine too."""
    return time.perf_counter(), time.process_time()


def main() -> None:
    """Runs both and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25, help="of a block")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, help="side of the images (default: the embodiment's)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    embodiment = fitted(load_embodiment("table"), options.image_size)
    world = make_world("table")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        style = ExpertStyle.named("imperfect")
        for episode in demonstrations(world, style, range(options.episodes)):
            record(folder, episode, embodiment)
        table = load_tables(folder, embodiment, LABELLING, validation_share=0).training
        results = {
            "episodes": len(table.first),
            "frames": len(table),
            "image_size": embodiment.cameras[0].width,
            "cache": cache_times(folder, embodiment, repeats=3),
            "training": training_times(table, embodiment, options.steps, options.blocks, options.batch),
        }
    print(json.dumps(results, indent=1))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
