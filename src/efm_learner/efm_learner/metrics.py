"""Scalars of a training: lines of JSON in `metrics.jsonl`, and TensorBoard files in `tensorboard/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from efm_core.files import replace_file


class MetricsWriter:
    """Appends scalars of a run.

    Args:
        run: Folder of the run.
        step: Steps done so far; what an interrupted run wrote of later ones is removed.

    Raises:
        SpoolFull: The disk is full; what an interrupted run wrote is still there.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        run.mkdir(parents=True, exist_ok=True)
        path = run / "metrics.jsonl"
        kept = [entry for entry in read_metrics(run) if entry["step"] <= step] if path.exists() else []
        replace_file(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step; names like "train/loss" are grouped by their first word."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both files."""
        self._file.close()
        self._board.close()


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Returns the lines of `metrics.jsonl`; a last line that was cut by a crash is left out."""
    entries = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
