"""Draws one episode into a picture: a strip of images, steps-to-go, actions and state over the control
steps.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase

from efm_core.episode import Episode
from efm_core.errors import BadRequest
from efm_core.files import replace_file
from efm_core.summary import Actor

FRAMES = 8  # Images in the strip of one camera.
WIDTH_INCHES = 12.0
MOST_LABELS = 12


def plot_episode(episode: Episode, out: Path) -> None:
    """Writes the picture; the file's ending says the format.

    Raises:
        BadRequest: `out` is a folder, or ends in a format that cannot be drawn. SpoolFull: The disk is full.
    """
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if out.is_dir() or out.suffix[1:].lower() not in formats:
        found = "a folder" if out.is_dir() else f"the ending {out.suffix!r}"
        raise BadRequest(f"{out}: expected a file that ends in one of {', '.join(formats)}, found {found}")
    cameras = list(episode.images)
    labelled = bool(np.isfinite(episode.steps_to_go).any())
    heights = [1.6] * len(cameras) + ([2.0] if labelled else []) + [2.4]
    heights += [2.4] if episode.state is not None else []
    figure, axes = plt.subplots(
        len(heights),
        1,
        figsize=(WIDTH_INCHES, sum(heights) + 1.0),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    rows = iter(axes[:, 0])
    for camera in cameras:
        _strip(next(rows), episode, camera)
    if labelled:
        axis = next(rows)
        axis.plot(episode.steps_to_go, color="tab:green")
        axis.set_ylabel("steps to go")
    _lines(
        next(rows), episode.actions, [item.name for item in episode.embodiment.action.dimensions], "command"
    )
    if episode.state is not None and episode.embodiment.state is not None:
        names = [entry.name for entry in episode.embodiment.state.entries]
        _lines(next(rows), episode.state, names, "state")
    axes[-1, 0].set_xlabel("control step")
    for axis in axes[len(cameras) :, 0]:
        axis.set_xlim(0, len(episode) - 1)
        axis.grid(alpha=0.3)
        for step in np.flatnonzero(episode.actors == Actor.HUMAN):
            axis.axvspan(step, step + 1, color="tab:orange", alpha=0.15, linewidth=0)
    summary = episode.summary
    figure.suptitle(
        f"{episode.id}   '{summary.instruction}'\n"
        f"{summary.actor.name.lower()}, {summary.outcome.name.lower()} by "
        f"{summary.end_reason.name.lower()}, {summary.steps} steps",
        parse_math=False,  # Instructions are words, also those with a $.
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100, format=out.suffix[1:].lower())
    plt.close(figure)
    replace_file(out, drawn.getvalue())


def _strip(axis: Axes, episode: Episode, camera: str) -> None:
    picked = np.unique(np.linspace(0, len(episode) - 1, FRAMES).round().astype(int))
    images = episode.images.rows(camera, picked)
    axis.imshow(np.concatenate(list(images), axis=1))
    width = images.shape[2]
    axis.set_xticks([width * (index + 0.5) for index in range(len(picked))], [str(step) for step in picked])
    axis.set_yticks([])
    axis.set_ylabel(camera)


def _lines(axis: Axes, values: np.ndarray, names: list[str], label: str) -> None:
    for column, name in enumerate(names):
        axis.plot(values[:, column], label=name, linewidth=1.0)
    axis.set_ylabel(label)
    if len(names) <= MOST_LABELS:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small", frameon=False)
