"""Makes episodes of a LeRobot data set v3.0, as if somebody had commanded the robot and EFM had recorded it.

A data set that EFM exported carries its embodiment and the last observation of every episode. Of any other,
the embodiment is named, its numbers are matched by name, and the last frame of an episode becomes its last
observation: what its command led to is not in the data set. Nothing is guessed: angles, outcome and order are
said by whoever imports where the data set does not. One frame is in memory at a time, and one data file.
Left out: images outside of videos, depth, and data sets of version 2 (LeRobot converts them).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest
from efm_core.files import made_whole
from efm_core.ids import new_episode_id
from efm_core.summary import Actor, EndReason, Mode, Outcome, Summary
from efm_episode_node.lerobot import format as lerobot
from efm_episode_node.lerobot.columns import Columns
from efm_episode_node.lerobot.episode_maker import make_episode
from efm_episode_node.lerobot.video import read_video

SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class ImportOptions:
    """What the data set may not say itself.

    Attributes:
        embodiment: Of the episodes. None: that of the data set, if EFM exported it.
        outcome: Of episodes where `next.success` is missing.
        angles: radians or degrees, where no units are recorded.
        by_order: Numbers are matched by their place instead of their name.
    """

    embodiment: Embodiment | None = None
    outcome: Outcome = Outcome.UNSET
    angles: str = ""
    by_order: bool = False


def import_lerobot(source: Path, out: Path, options: ImportOptions, rng: np.random.Generator) -> int:
    """Writes a folder of episodes; returns their number.

    Args:
        source: Of the data set.
        out: Of the episodes; made under another name and renamed when all are there.
        options: See there.
        rng: For new ids.

    Raises:
        BadRequest: `out` exists, the data set is damaged or of another version, does not fit the embodiment,
            or leaves something open that `options` does not say.
        SpoolFull: The disk is full.
    """
    dataset = _DataSet(source, options)
    count = 0
    with made_whole(out, "the episodes") as partial:
        rows = dataset.episodes()
        for row in tqdm(rows, total=dataset.length, desc="importing", unit="episode", disable=None):
            dataset.write(row, partial, rng)
            count += 1
        if not count:
            raise BadRequest(f"{source}: expected episodes, found none")
    return count


class _DataSet:
    """One data set and how its numbers become those of the embodiment."""

    def __init__(self, root: Path, options: ImportOptions) -> None:
        self._root, self._options = root, options
        info = _json(root, lerobot.INFO_PATH)
        if info.get("codebase_version") != lerobot.VERSION:
            raise BadRequest(
                f"{root / lerobot.INFO_PATH}: expected codebase_version {lerobot.VERSION}, found "
                f"{info.get('codebase_version')}; LeRobot converts older data sets "
                "(lerobot.scripts.convert_dataset_v21_to_v30)"
            )
        self._is_ours = (root / lerobot.EFM_PATH).is_file()
        embodiment = options.embodiment
        if embodiment is None:
            if not self._is_ours:
                raise BadRequest(
                    f"{root}: does not say for which embodiment it is; name one with --embodiment"
                )
            plain = _json(root, lerobot.EFM_PATH)["embodiment"]
            embodiment = Embodiment.from_dict(plain, f"{root / lerobot.EFM_PATH}: embodiment")
        self.embodiment = embodiment
        self._fps = float(info["fps"])
        if abs(self._fps - embodiment.control_rate_hz) > 1e-6:
            raise BadRequest(
                f"{root}: expected {embodiment.control_rate_hz:g} frames per second like the control rate of "
                f"embodiment '{embodiment.name}', found {self._fps:g}"
            )
        features = info["features"]
        self._columns = Columns(features, embodiment, options.by_order, options.angles, str(root))
        self._has_success = lerobot.SUCCESS in features
        if not self._has_success and options.outcome is Outcome.UNSET:
            raise BadRequest(
                f"{root}: does not say which episodes succeeded ({lerobot.SUCCESS}); say it with --outcome "
                "success or --outcome failure"
            )
        self._has_interventions = lerobot.INTERVENTION in features
        self._patterns = {"data": info["data_path"], "video": info.get("video_path") or ""}
        self.length = int(info.get("total_episodes", 0))
        self._tasks = self._read_tasks()
        self._open: tuple[Path, pa.Table] | None = None

    def episodes(self) -> Iterator[dict[str, Any]]:
        """Yields the rows of meta/episodes in order."""
        files = sorted((self._root / "meta/episodes").glob("*/*.parquet"))
        if not files:
            raise BadRequest(f"{self._root / 'meta/episodes'}: expected Parquet files, found none")
        for file in files:
            with _told(file):
                parquet = pq.ParquetFile(file)
                wanted = [
                    name for name in parquet.schema_arrow.names if not name.startswith(("stats/", "meta/"))
                ]
            for batch in parquet.iter_batches(batch_size=64, columns=wanted):
                yield from batch.to_pylist()

    def write(self, row: dict[str, Any], folder: Path, rng: np.random.Generator) -> None:
        """Makes one episode."""
        table = self._frames(row)
        state, action = self._columns.state(table), self._columns.action(table)
        steps = len(action)
        by_person = np.zeros(steps, bool)
        if self._has_interventions:
            by_person = table.column(lerobot.INTERVENTION).to_numpy(zero_copy_only=False).astype(bool)
        last = row.get(lerobot.LAST_STATE)
        is_whole = self._is_ours and f"{lerobot.OURS}episode_id" in row
        if is_whole:
            state = state if state is None else np.vstack([state, np.array([last], np.float32)])
        else:
            steps -= 1
        if steps < 1:
            raise BadRequest(f"{self._root}: episode {row['episode_index']}: expected two frames at least")
        summary = self._summary(row, table, steps, is_whole, rng)
        actors = np.where(by_person[:steps], int(Actor.HUMAN), int(summary.actor))
        images = {name: self._images(name, row, steps + 1) for name in self._columns.cameras}
        make_episode(folder, self.embodiment, summary, state, action[:steps], actors, images)

    def _summary(
        self, row: dict[str, Any], table: pa.Table, steps: int, is_whole: bool, rng: np.random.Generator
    ) -> Summary:
        period_ns = SECOND_NS / self._fps
        tasks = {self._tasks.get(int(task), "") for task in table.column("task_index").to_pylist()}
        if len(tasks) != 1 or "" in tasks:
            raise BadRequest(
                f"{self._root}: episode {row['episode_index']}: expected one task, found {sorted(tasks)}"
            )
        text = f"imported from the LeRobot data set '{self._root.resolve().name}'"
        if not is_whole:
            outcome = self._options.outcome
            if self._has_success:
                reached = pc.any(table.column(lerobot.SUCCESS)).as_py()
                outcome = Outcome.SUCCESS if reached else Outcome.FAILURE
            start_ns = int(row["dataset_from_index"] * period_ns) + SECOND_NS
            return Summary(
                new_episode_id(datetime.now(timezone.utc), rng),
                start_ns,
                start_ns + round(steps * period_ns),
                instruction=tasks.pop(),
                mode=Mode.COLLECT,
                outcome=outcome,
                end_reason=EndReason.ACTOR_DONE,
                actor=Actor.EXTERNAL,
                steps=steps,
                message=text,
            )
        ours = {
            name.removeprefix(lerobot.OURS): value
            for name, value in row.items()
            if name.startswith(lerobot.OURS)
        }
        return Summary(
            ours["episode_id"],
            ours["start_ns"],
            ours["start_ns"] + round(steps * period_ns),
            robot=ours["robot"],
            instruction=tasks.pop(),
            mode=Mode[ours["mode"]],
            outcome=Outcome[ours["outcome"]],
            end_reason=EndReason[ours["end_reason"]],
            actor=Actor[ours["actor"]],
            seed=int(ours["seed"]),
            steps=steps,
            policy_bundle_id=ours["policy_bundle_id"],
            policy_version=ours["policy_version"],
            message="; ".join(filter(None, (ours["message"], text))),
        )

    def _frames(self, row: dict[str, Any]) -> pa.Table:
        """Returns the frames of an episode."""
        file = self._root / self._patterns["data"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        if self._open is None or self._open[0] != file:
            with _told(file):
                self._open = file, pq.read_table(file)
        index = int(row["episode_index"])
        frames = self._open[1].filter(pc.equal(self._open[1].column("episode_index"), index))
        if len(frames) != row["length"]:
            raise BadRequest(
                f"{file}: expected {row['length']} frames of episode {index}, found {len(frames)}"
            )
        return frames

    def _images(self, camera: str, row: dict[str, Any], count: int) -> Iterator[np.ndarray]:
        key = f"{lerobot.IMAGES}{camera}"
        file = self._root / self._patterns["video"].format(
            video_key=key,
            chunk_index=row[f"videos/{key}/chunk_index"],
            file_index=row[f"videos/{key}/file_index"],
        )
        return read_video(file, float(row[f"videos/{key}/from_timestamp"]), count, self._fps)

    def _read_tasks(self) -> dict[int, str]:
        file = self._root / lerobot.TASKS_PATH
        with _told(file):
            columns = pq.read_table(file).to_pydict()
        texts = next((values for name, values in columns.items() if name != "task_index"), None)
        if texts is None or "task_index" not in columns:
            raise BadRequest(f"{file}: expected task_index and a text, found {', '.join(columns)}")
        return {int(index): str(text) for index, text in zip(columns["task_index"], texts, strict=True)}


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Turns what PyArrow says about a damaged or missing file into BadRequest."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise BadRequest(f"{file}: expected a Parquet file, found: {error}") from error


def _json(root: Path, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((root / name).read_text())
    except (OSError, ValueError) as error:
        raise BadRequest(f"{root}: expected a LeRobot data set with {name}, found: {error}") from error
    return found
