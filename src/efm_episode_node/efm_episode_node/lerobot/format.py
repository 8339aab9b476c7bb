"""What LeRobot's data set format v3.0 looks like: names, paths, columns, and files that roll over.

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet  videos/<key>/chunk-000/file-000.mp4

Several episodes follow one another in a file until it has its size. `meta/efm.json` is ours: the embodiment,
and what was lost; LeRobot does not look at it. Left out: earlier versions of the format, images outside of
videos, and depth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from efm_core.embodiment import Embodiment

VERSION = "v3.0"
CHUNK_SIZE = 1000  # Files in one chunk folder.
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
TASKS_PATH = "meta/tasks.parquet"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
EFM_PATH = "meta/efm.json"

STATE = "observation.state"
ACTION = "action"
IMAGES = "observation.images."
# Columns that every data set has: name -> dtype.
DEFAULTS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
# Those of reinforcement learning, and what LeRobot keeps under complementary_info.
DONE, SUCCESS, REWARD = "next.done", "next.success", "next.reward"
STEPS_TO_GO = "complementary_info.steps_to_go"
INTERVENTION = "complementary_info.is_intervention"
POLICY_VERSION = "complementary_info.policy_version"
# Columns of meta/episodes that LeRobot does not know, from which an import makes the same episodes again.
OURS = "efm/"
LAST_STATE = f"{OURS}last_state"

MEGABYTE = 1 << 20
KINDS = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}


def features(embodiment: Embodiment, labelled: bool) -> dict[str, dict[str, Any]]:
    """Returns the columns as info.json has them, without videos; units stand beside the names.

    Args:
        embodiment: Of the episodes.
        labelled: Steps-to-go and the reward made of it are there.
    """
    dimensions = embodiment.action.dimensions
    found: dict[str, dict[str, Any]] = {}
    if embodiment.state is not None:
        entries = embodiment.state.entries
        found[STATE] = _vector([entry.name for entry in entries], [entry.unit for entry in entries])
    found[ACTION] = _vector([item.name for item in dimensions], [item.unit for item in dimensions])
    scalars = {DONE: "bool", SUCCESS: "bool", INTERVENTION: "bool", POLICY_VERSION: "int64"}
    scalars |= {REWARD: "float32", STEPS_TO_GO: "float32"} if labelled else {}
    for name, dtype in {**scalars, **DEFAULTS}.items():
        found[name] = {"dtype": dtype, "shape": [1], "names": None}
    return found


def schema(columns: dict[str, dict[str, Any]]) -> pa.Schema:
    """Returns the schema of the data files."""
    fields = []
    for name, feature in columns.items():
        kind, size = KINDS[feature["dtype"]], feature["shape"][0]
        fields.append(pa.field(name, kind if size == 1 else pa.list_(kind, size)))
    return pa.schema(fields)


def _vector(names: list[str], units: list[str]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(names)], "names": names, "info": {"units": units}}


class FileRoll:
    """Numbers the files of one kind; an episode that would make a file too large goes into the next one."""

    def __init__(self, root: Path, pattern: str, limit_mb: float, **names: str) -> None:
        """Begins with the first file."""
        self._root, self._pattern, self._names = root, pattern, names
        self._limit = limit_mb * MEGABYTE
        self._episodes = 0
        self.chunk = self.file = 0

    def path(self) -> Path:
        """Returns the present file; its folder is there."""
        path = self._root / self._pattern.format(chunk_index=self.chunk, file_index=self.file, **self._names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def is_full(self, size: int) -> bool:
        """Counts one more episode; True if it belongs into a new file, going by the mean size of those in
        this one, which has `size` bytes so far.
        """
        full = self._episodes > 0 and size + size / self._episodes > self._limit
        self._episodes += 1
        return full

    def next(self) -> None:
        """Goes on to a new file, for the episode that was counted last."""
        self._episodes = 1
        self.file += 1
        if self.file == CHUNK_SIZE:
            self.chunk, self.file = self.chunk + 1, 0


class TableFiles:
    """Parquet files of one kind, written batch by batch, one row group each."""

    def __init__(self, root: Path, pattern: str, limit_mb: float = DATA_FILE_MB) -> None:
        """Begins; files are made when there is something to write."""
        self.roll = FileRoll(root, pattern, limit_mb)
        self._writer: pq.ParquetWriter | None = None

    def make_room(self) -> None:
        """Goes on to a new file if the next batch belongs there; `roll` then says where it is."""
        path = self.roll.path()
        if self.roll.is_full(path.stat().st_size if path.exists() else 0):
            self.close()
            self.roll.next()

    def write(self, table: pa.Table) -> None:
        """Writes one batch; all have one schema."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.roll.path(), table.schema, compression="snappy")
        self._writer.write_table(table)

    def close(self) -> None:
        """Finishes the present file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
