"""The pictures of a report: curves of practice, and pairs of episodes side by side."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from efm_core.episode import Episode

__all__ = ["curves", "film", "picture"]

FILM_FRAMES = 8


def curves(metrics: Sequence[dict[str, Any]]) -> plt.Figure:
    """Draws what each line of metrics.jsonl says, by iteration."""
    panels = (
        ("success", (("detected", "detected"), ("verified", "confirmed by the verifier"))),
        ("discounted return", (("mean_return", ""),)),
        ("steps per episode", (("mean_steps", ""),)),
        ("steps-to-go at the end", (("steps_to_go_last", ""),)),
        ("KL from Stage 1 [nats]", (("kl", ""),)),
        ("entropy [nats]", (("entropy", ""),)),
    )
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.5), layout="constrained")
    iterations = [line["iteration"] for line in metrics]
    for axis, (title, lines) in zip(axes.flat, panels, strict=True):
        for key, label in lines:
            values = [line.get(key) for line in metrics]
            axis.plot(iterations, [np.nan if v is None else v for v in values], label=label or None)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("iteration", fontsize=8)
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylim(-0.02, 1.02)
    axes.flat[0].legend(fontsize=8)
    return figure


def film(before: Episode, after: Episode, names: tuple[str, str], title: str) -> plt.Figure:
    """Draws two episodes: frames or, without a camera, paths; and d over time.

    Args:
        before: Of the first policy.
        after: Of a later one.
        names: What the two are called.
        title: Of the whole.
    """
    cameras = list(before.images)
    figure = plt.figure(figsize=(11, 4.8 if cameras else 3.4), layout="constrained")
    columns = FILM_FRAMES if cameras else 3
    grid = figure.add_gridspec(3 if cameras else 1, columns, height_ratios=[1, 1, 1.2] if cameras else None)
    for row, (name, episode) in enumerate(zip(names, (before, after), strict=True)):
        if not cameras:
            _path(figure.add_subplot(grid[0, row]), name, episode)
            continue
        for column, index in enumerate(np.linspace(0, len(episode) - 1, columns).astype(int)):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(episode.images[cameras[0]][index])
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"{name} {index}" if column == 0 else str(index), fontsize=8)
    axis = figure.add_subplot(grid[-1, :] if cameras else grid[0, 2])
    for name, episode in zip(names, (before, after), strict=True):
        axis.plot(episode.steps_to_go, label=f"{name}: {episode.summary.end_reason.name.lower()}")
    axis.set_xlabel("control step")
    axis.set_ylabel("predicted steps to go")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return figure


def _path(axis: plt.Axes, name: str, episode: Episode) -> None:
    """Draws the first two entries of the state against each other, for worlds without a camera."""
    if episode.state is None or episode.state.shape[1] < 2 or episode.embodiment.state is None:
        axis.set_axis_off()
        return
    x, y = (episode.embodiment.state.entries[index] for index in (0, 1))
    axis.plot(episode.state[:, 0], episode.state[:, 1], lw=1)
    axis.plot(*episode.state[0, :2], "o", label="start")
    axis.plot(*episode.state[-1, :2], "s", label="end")
    axis.set_xlim(x.low, x.high)
    axis.set_ylim(y.low, y.high)
    axis.set_xlabel(f"{x.name} [{x.unit}]")
    axis.set_ylabel(f"{y.name} [{y.unit}]")
    axis.set_title(f"{name}: {len(episode) - 1} steps", fontsize=9)
    axis.legend(fontsize=8)


def picture(figure: plt.Figure, alternative: str) -> str:
    """Returns a figure as HTML that holds it, and closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<p><img alt='{html.escape(alternative)}' src='data:image/png;base64,{data}'></p>"
