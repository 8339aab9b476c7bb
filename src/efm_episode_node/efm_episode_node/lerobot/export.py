"""Writes episodes as a LeRobot data set v3.0, with PyArrow and PyAV alone.

One frame for every control step: observation and the command that answered it. The last observation of an
episode, which no command answers, is no frame; its state stands in a column of `meta/episodes`, its images in
the video between two episodes, where LeRobot does not look. Units stay as they are (SI and radians) and are
named in `info.json`. Live steps-to-go and the reward made of it are written where every episode has them.
One episode is in memory at a time. Left out: sharing on a hub, and episodes of different embodiments in one
data set.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from efm_core.embodiment import Embodiment
from efm_core.episode import Episode, read_episode, read_summary
from efm_core.errors import BadRequest, EfmError, EmbodimentMismatch
from efm_core.files import made_whole, sync
from efm_core.summary import Actor, EndReason, Outcome, Summary
from efm_episode_node.lerobot import format as lerobot
from efm_episode_node.lerobot.statistics import ImageStatistics, RunningStatistics, vector_statistics
from efm_episode_node.lerobot.video import CODEC, QUALITY, VideoFiles

UNREADABLE = "unreadable"
BATCH = 50  # Rows of meta/episodes that are written at once.
LOST_OF_IMAGES = f"images were encoded as video ({CODEC}, crf {QUALITY}), which changes pixels a little"
LOST = (
    "stamps became multiples of the control period",
    "of the recorded topics only observations, commands, labels and summaries were taken: no tokens, "
    "log-probabilities, safety gate flags or ground truth",
)

_log = logging.getLogger(__name__)


def export_lerobot(
    folders: Sequence[Path], out: Path, failures: bool = False, file_mb: tuple[float, float] | None = None
) -> tuple[int, dict[str, int]]:
    """Writes a data set.

    Args:
        folders: Of the episodes, in order.
        out: Of the data set; made under another name and renamed when it is whole.
        failures: Take failed attempts too; they have next.success false.
        file_mb: Sizes at which files of data and videos roll over. None: LeRobot's.

    Returns:
        Number of episodes written, and reason -> number of those left out.

    Raises:
        BadRequest: `out` exists, there is nothing to write, the control rate is no whole number, or images
            change their size.
        EmbodimentMismatch: The episodes are of different embodiments.
        SpoolFull: The disk is full.
    """
    left_out: Counter[str] = Counter()
    with made_whole(out, "the data set") as partial:
        wanted, judged = _wanted(folders, failures, left_out)
        labelled = judged and all(_is_labelled(folder) for folder in wanted)
        count = _write(wanted, partial, labelled, left_out, file_mb)
        if not count:
            reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
            raise BadRequest(f"expected episodes to export, found none: {reasons or 'no episode at all'}")
    return count, dict(left_out)


def _wanted(folders: Sequence[Path], failures: bool, left_out: Counter[str]) -> tuple[list[Path], bool]:
    """Returns the episodes to take, and whether a reward node judged all of them."""
    wanted: list[Path] = []
    judged = True
    for folder in folders:
        try:
            summary = read_summary(folder)
        except EfmError as error:
            _log.warning("%s", error)
            left_out[UNREADABLE] += 1
            continue
        if reason := _unwanted(summary, failures):
            left_out[reason] += 1
            continue
        judged = judged and bool(summary.reward_bundle_id)
        wanted.append(folder)
    return wanted, judged


def _write(
    folders: Sequence[Path],
    partial: Path,
    labelled: bool,
    left_out: Counter[str],
    file_mb: tuple[float, float] | None,
) -> int:
    writer: _Writer | None = None
    for folder in tqdm(folders, desc="exporting", unit="episode", disable=None):
        try:
            episode = read_episode(folder)
        except EfmError as error:
            _log.warning("%s", error)
            left_out[UNREADABLE] += 1
            continue
        if len(episode) < 2 or not np.isfinite(episode.actions[:-1]).all():
            left_out["without a known command for every step"] += 1
            continue
        if writer is None:
            sizes = file_mb or (lerobot.DATA_FILE_MB, lerobot.VIDEO_FILE_MB)
            writer = _Writer(partial, episode.embodiment, labelled, *sizes)
        writer.add(episode)
    if writer is None:
        return 0
    return writer.close()


def _unwanted(summary: Summary, failures: bool) -> str:
    """Says why an episode is left out; empty: it is not."""
    if summary.outcome is Outcome.DISCARDED:
        return "discarded by a person"
    if summary.end_reason is EndReason.FAULT:
        return "ended by a fault"
    if summary.outcome is not Outcome.SUCCESS and not failures:
        return "failed attempts (--failures takes them)"
    return ""


def _is_labelled(folder: Path) -> bool:
    try:
        return bool(np.isfinite(read_episode(folder).steps_to_go).all())
    except EfmError:
        return True  # It is left out.


class _Writer:
    """Writes one data set, episode by episode."""

    def __init__(
        self, root: Path, embodiment: Embodiment, labelled: bool, data_mb: float, video_mb: float
    ) -> None:
        self._fps = round(embodiment.control_rate_hz)
        if abs(self._fps - embodiment.control_rate_hz) > 1e-9:
            raise BadRequest(
                f"embodiment '{embodiment.name}': LeRobot needs a whole number of frames per second, found a "
                f"control rate of {embodiment.control_rate_hz:g} Hz"
            )
        self._root, self._embodiment, self._labelled = root, embodiment, labelled
        self._limits = data_mb, video_mb
        self._features = lerobot.features(embodiment, labelled)
        self._schema = lerobot.schema(self._features)
        self._data = lerobot.TableFiles(root, lerobot.DATA_PATH, data_mb)
        self._meta = lerobot.TableFiles(root, lerobot.EPISODES_PATH, data_mb)
        self._videos = [VideoFiles(root, camera.name, self._fps, video_mb) for camera in embodiment.cameras]
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._statistics = RunningStatistics()
        self._episodes = self._frames = 0

    def add(self, episode: Episode) -> None:
        """Writes one episode."""
        if episode.embodiment.digest != self._embodiment.digest:
            raise EmbodimentMismatch(
                f"{episode.path}: expected embodiment {self._embodiment.digest} ('{self._embodiment.name}') "
                f"like the episodes before, found {episode.embodiment.digest} ('{episode.embodiment.name}'); "
                "export them apart"
            )
        steps = len(episode) - 1
        columns = self._columns(episode, steps)
        self._data.make_room()
        arrays = [_array(columns[field.name], field.type) for field in self._schema]
        self._data.write(pa.Table.from_arrays(arrays, schema=self._schema))
        row: dict[str, Any] = {
            "episode_index": self._episodes,
            "tasks": [episode.instruction],
            "length": steps,
            "data/chunk_index": self._data.roll.chunk,
            "data/file_index": self._data.roll.file,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + steps,
        }
        found = {name: vector_statistics(values) for name, values in columns.items()}
        for camera, video in zip(self._embodiment.cameras, self._videos, strict=True):
            statistics = ImageStatistics(steps)
            video.begin()
            for index, image in enumerate(episode.images.recorded(camera.name)):
                video.write(image)
                statistics.add(index, image)
            row |= video.place(steps)
            found[video.key] = statistics.total()
        row |= _origin(episode)
        row |= {f"stats/{name}/{key}": value for name, one in found.items() for key, value in one.items()}
        self._statistics.add(found)
        self._rows.append(row)
        self._episodes += 1
        self._frames += steps
        if len(self._rows) == BATCH:
            self._write_rows()

    def close(self) -> int:
        """Finishes all files; returns the number of episodes."""
        self._write_rows()
        for file in (self._data, self._meta, *self._videos):
            file.close()
        _write_tasks(self._root / lerobot.TASKS_PATH, list(self._tasks))
        data_mb, video_mb = self._limits
        info = {
            "codebase_version": lerobot.VERSION,
            "robot_type": self._embodiment.name,
            "total_episodes": self._episodes,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": lerobot.CHUNK_SIZE,
            "data_files_size_in_mb": max(1, round(data_mb)),
            "video_files_size_in_mb": max(1, round(video_mb)),
            "fps": self._fps,
            "splits": {"train": f"0:{self._episodes}"},
            "data_path": lerobot.DATA_PATH,
            "video_path": lerobot.VIDEO_PATH if self._videos else None,
            "features": {**{video.key: video.feature() for video in self._videos}, **self._features},
        }
        efm = {
            "format": 1,
            "embodiment": self._embodiment.to_dict(),
            "lost": [LOST_OF_IMAGES] * bool(self._videos) + list(LOST),
        }
        for path, value in (
            (lerobot.INFO_PATH, info),
            (lerobot.STATS_PATH, self._statistics.total()),
            (lerobot.EFM_PATH, efm),
        ):
            (self._root / path).write_text(json.dumps(value, indent=4))
        for folder, _, names in os.walk(self._root):
            for name in (".", *names):
                sync(Path(folder) / name)
        return self._episodes

    def _columns(self, episode: Episode, steps: int) -> dict[str, np.ndarray]:
        last = np.arange(steps) == steps - 1
        task = self._tasks.setdefault(episode.instruction, len(self._tasks))
        by_person = episode.actors[:steps] == Actor.HUMAN
        columns = {
            lerobot.ACTION: episode.actions[:steps],
            lerobot.DONE: last,
            lerobot.SUCCESS: last & (episode.summary.outcome is Outcome.SUCCESS),
            lerobot.INTERVENTION: by_person & (episode.summary.actor is not Actor.HUMAN),
            lerobot.POLICY_VERSION: np.full(steps, episode.summary.policy_version),
            "timestamp": np.arange(steps, dtype=np.float32) / np.float32(self._fps),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, self._episodes),
            "index": np.arange(self._frames, self._frames + steps),
            "task_index": np.full(steps, task),
        }
        if episode.state is not None:
            columns[lerobot.STATE] = episode.state[:steps]
        if self._labelled:
            columns[lerobot.STEPS_TO_GO] = episode.steps_to_go[:steps]
            columns[lerobot.REWARD] = episode.steps_to_go[:-1] - episode.steps_to_go[1:]
        return columns

    def _write_rows(self) -> None:
        if not self._rows:
            return
        self._meta.make_room()
        place = self._meta.roll.chunk, self._meta.roll.file
        for row in self._rows:
            row["meta/episodes/chunk_index"], row["meta/episodes/file_index"] = place
        self._meta.write(pa.Table.from_pylist(self._rows))
        self._rows.clear()


def _origin(episode: Episode) -> dict[str, Any]:
    """Returns what an import needs to make the same episode again."""
    summary = episode.summary
    found: dict[str, Any] = {
        "episode_id": summary.episode_id,
        "start_ns": summary.start_ns,
        "robot": summary.robot,
        "mode": summary.mode.name,
        "outcome": summary.outcome.name,
        "end_reason": summary.end_reason.name,
        "actor": summary.actor.name,
        "seed": str(summary.seed),
        "policy_bundle_id": summary.policy_bundle_id,
        "policy_version": summary.policy_version,
        "message": summary.message,
    }
    if episode.state is not None:
        found["last_state"] = episode.state[-1].tolist()
    return {f"{lerobot.OURS}{name}": value for name, value in found.items()}


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    return pa.array(np.asarray(values).reshape(len(values)), type=kind)


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """Writes the tasks; LeRobot reads them with pandas, which finds its index by this note in the schema."""
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    note = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [{**column, "metadata": None} for column in columns],
        "pandas_version": "2.0.0",
    }
    table = pa.table(
        {"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())}
    )
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(note)}), path)
