"""One self-contained HTML page of a demo: success before and after, curves of practice, some episodes."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from efm_core.episode import Episode, list_episodes, read_episode, read_summary
from efm_core.errors import BadRequest
from efm_core.files import replace_file

__all__ = ["write_report"]

FILMS = 3
FILM_FRAMES = 8
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .3rem .8rem; text-align: right;
border-bottom: 1px solid #ddd } td:first-child, th:first-child { text-align: left } img { max-width: 100% }
caption { text-align: left; color: #555; padding-bottom: .4rem } .note { color: #555 }
"""
ROWS = (
    ("before", "before practice, sampled"),
    ("after", "after practice, sampled"),
    ("before_greedy", "before practice, greedy"),
    ("after_greedy", "after practice, greedy"),
)


def write_report(run: Path) -> Path:
    """Writes `report.html` into a run's folder and returns its path.

    Args:
        run: Folder with `report.json`, `practice/metrics.jsonl` and `evaluations/`.

    Raises:
        BadRequest: The folder is not that of a finished demo, or a file in it is damaged.
    """
    source = run / "report.json"
    if not source.is_file():
        raise BadRequest(f"expected {source}, {_instead(run)}")
    report = _read(source)
    try:
        parts = [
            f"<h1>Practice in {html.escape(report['world'])}</h1>",
            _lead(report),
            _table(report),
            "<h2>Practice</h2>",
            _practice_text(report),
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(source, f"{type(error).__name__}: {error}") from error
    parts += [
        _picture(_curves(_metrics(run)), "practice by iteration"),
        "<h2>Episodes</h2>",
        *_films(run),
    ]
    head = f"<!doctype html><meta charset='utf-8'><title>EFM report</title><style>{STYLE}</style>"
    page = head + "".join(parts)
    path = run / "report.html"
    replace_file(path, page.encode())
    return path


def _instead(run: Path) -> str:
    """Says what a folder is that is none of a finished demo, and what to do."""
    if (run / "journal.jsonl").is_file():
        return (
            "which efm demo writes, found a practice run; its numbers are in result.json and metrics.jsonl, "
            "and efm evaluate measures its policies"
        )
    if (run / "stages").is_dir():
        return "found a demo that has not come to its end; start it again, and it goes on"
    found = "a folder without it" if run.is_dir() else "a file" if run.exists() else "no such folder"
    return f"found {found}; name the folder of a demo, such as runs/demo"


def _read(path: Path) -> dict[str, Any]:
    """Returns a file's JSON object."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(path, type(found).__name__)
    return found


def _damaged(path: Path, found: str) -> BadRequest:
    return BadRequest(
        f"{path}: expected what efm demo wrote there, as JSON, found it missing or damaged ({found}); remove "
        "it and report.json and start the demo again, which makes both anew"
    )


def _lead(report: dict[str, Any]) -> str:
    before, after = report["before"], report["after"]
    text = (
        f"{report['demonstrations']} demonstrations, then {report['practice']['episodes']} episodes of "
        f"practice by {report['robots']} robots. True success went from "
        f"<b>{before['true_success']:.2f}</b> to <b>{after['true_success']:.2f}</b>."
    )
    note = (
        "True success is counted by the simulator and was never shown to anything that learns. "
        "Detected success is what the robots believe."
    )
    return f"<p>{text}</p><p class='note'>{note}</p>"


def _table(report: dict[str, Any]) -> str:
    head = ("policy", "episodes", "true success", "95 % interval", "detected", "false", "missed", "steps")
    lines = [f"<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>"]
    for key, label in ROWS:
        row = report[key]
        low, high = row["interval"]
        cells = [
            label,
            row["episodes"],
            f"{row['true_success']:.2f}",
            f"{low:.2f} – {high:.2f}",
            *(f"{row[name]:.2f}" for name in ("detected_success", "false_success", "missed_success")),
            f"{row['mean_steps']:.1f}",
        ]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    caption = "<caption>The same fixed seeds in every row; nobody learns from these episodes.</caption>"
    return f"<table>{caption}{''.join(lines)}</table>"


def _practice_text(report: dict[str, Any]) -> str:
    practice, detector = report["practice"], report["detector"]
    minutes = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in report["seconds"].items())
    text = (
        f"{practice['iterations']} iterations, {practice['updates']} updates, {practice['steps']} control "
        f"steps, {practice['refused']} episodes refused, mostly as stale; the learner waited for robots "
        f"{practice['idle_share']:.0%} of the time. Success: at most {detector['threshold']:.2f} predicted "
        f"steps to go, {detector['hold']} observations in a row. Minutes: {minutes}."
    )
    message = f"<p><b>{html.escape(practice['message'])}</b></p>" if practice["message"] else ""
    return f"<p>{text}</p>{message}"


def _metrics(run: Path) -> list[dict[str, Any]]:
    path = run / "practice" / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise BadRequest(
            f"{path}: expected JSON in every line, found: {error}; repair or remove that line"
        ) from error


def _curves(metrics: Sequence[dict[str, Any]]) -> plt.Figure:
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


def _films(run: Path) -> list[str]:
    """Episodes before and after practice on the same seeds: frames or paths, and d over time."""
    first, last = (_read(run / "stages" / f"{name}.json").get("policy", "") for name in ("before", "after"))
    found: dict[str, dict[int, Path]] = {first: {}, last: {}}
    for folder in sorted(
        episode
        for robot in (run / "evaluations").glob("*/")
        for episode in list_episodes(robot / ".evaluation")
    ):
        summary = read_summary(folder)
        # Sampled episodes come first, and greedy ones use the same seeds.
        found.get(summary.policy_bundle_id, {}).setdefault(summary.seed, folder)
    seeds = sorted(found[first].keys() & found[last].keys())[:FILMS]
    if not seeds or first == last:
        return ["<p class='note'>There are no recorded episodes of two policies on the same seeds.</p>"]
    pairs = [(read_episode(found[first][seed]), read_episode(found[last][seed])) for seed in seeds]
    return [_picture(_film(*pair), f"seed {pair[0].summary.seed}") for pair in pairs]


def _film(before: Episode, after: Episode) -> plt.Figure:
    cameras = list(before.images)
    figure = plt.figure(figsize=(11, 4.8 if cameras else 3.4), layout="constrained")
    columns = FILM_FRAMES if cameras else 3
    grid = figure.add_gridspec(3 if cameras else 1, columns, height_ratios=[1, 1, 1.2] if cameras else None)
    for row, (name, episode) in enumerate((("before", before), ("after", after))):
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
    for name, episode in (("before", before), ("after", after)):
        axis.plot(episode.steps_to_go, label=f"{name}: {episode.summary.end_reason.name.lower()}")
    axis.set_xlabel("control step")
    axis.set_ylabel("predicted steps to go")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.suptitle(f"seed {before.summary.seed}: {before.instruction}", fontsize=10)
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


def _picture(figure: plt.Figure, alternative: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<p><img alt='{html.escape(alternative)}' src='data:image/png;base64,{data}'></p>"
