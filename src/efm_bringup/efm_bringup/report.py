"""One self-contained HTML page of a run: success, curves of practice, some episodes.

A demo measured its policies before and after practice on the same seeds. A run of `efm practice` knows no
true success; whoever measures its policies with `efm evaluate --out RUN/evaluations/NAME` finds them in its
page.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from efm_bringup.report_pictures import curves, film, picture
from efm_core.episode import list_episodes, read_episode, read_summary
from efm_core.errors import BadRequest, Reason
from efm_core.files import replace_file

__all__ = ["write_report"]

FILMS = 3
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
        run: Folder of a finished demo, or of `efm practice` after an iteration at least.

    Raises:
        BadRequest: It is neither, or a file in it is damaged.
    """
    if (run / "report.json").is_file():
        parts = _demo(run)
    elif (run / "journal.jsonl").is_file():
        parts = _practice(run)
    else:
        raise BadRequest(f"expected {run / 'report.json'}, {_instead(run)}")
    head = f"<!doctype html><meta charset='utf-8'><title>EFM report</title><style>{STYLE}</style>"
    path = run / "report.html"
    replace_file(path, (head + "".join(parts)).encode())
    return path


def _demo(run: Path) -> list[str]:
    """Returns the page of a finished demo."""
    source = run / "report.json"
    report = _read(source)
    try:
        parts = [
            f"<h1>Practice in {html.escape(report['world'])}</h1>",
            _lead(report),
            _table({label: report[key] for key, label in ROWS}),
            "<h2>Practice</h2>",
            _practice_text(report),
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(source, f"{type(error).__name__}: {error}") from error
    metrics = _lines(run / "practice" / "metrics.jsonl")
    return [*parts, picture(curves(metrics), "practice by iteration"), "<h2>Episodes</h2>", *_films(run)]


def _practice(run: Path) -> list[str]:
    """Returns the page of a run of `efm practice`, finished or not."""
    metrics, journal = (_lines(run / f"{name}.jsonl") for name in ("metrics", "journal"))
    if not metrics:
        raise BadRequest(f"{run}: expected an iteration in metrics.jsonl, found none; let it practise longer")
    last = metrics[-1]
    refused = Counter(entry["reason"] for entry in journal if entry["reason"] != Reason.OK)
    minutes, idle = (
        sum(line.get(key, 0.0) for line in metrics for key in keys) / 60
        for keys in (("collect_s", "update_s", "export_s"), ("idle_s",))
    )
    text = (
        f"{last['iteration']} iterations, {last['updates']} updates, {last['total_episodes']} episodes of "
        f"{last['total_steps']} control steps; {refused.total()} more were refused, "
        f"{refused[Reason.EPISODE_STALE]} of them as stale. {minutes:.1f} minutes, of which the learner "
        f"waited {idle:.1f}. The guard holds <code>{html.escape(last['best'])}</code> for the best bundle."
    )
    guard = last["guard"]["message"]
    measured = {path.parent.name: _read(path) for path in sorted(run.glob("evaluations/*/evaluation.json"))}
    return [
        f"<h1>Practice in {html.escape(run.resolve().name)}</h1>",
        f"<p>{text}</p>",
        f"<p><b>{html.escape(guard)}</b></p>" if guard else "",
        _table(measured) if measured else "<p class='note'>True success was not measured.</p>",
        picture(curves(metrics), "practice by iteration"),
        "<h2>Episodes</h2>",
        *_own_films(run, journal),
    ]


def _instead(run: Path) -> str:
    """Says what a folder is that is none of a run, and what to do."""
    if (run / "stages").is_dir():
        return "found a demo that has not come to its end; start it again, and it goes on"
    found = "a folder without it" if run.is_dir() else "a file" if run.exists() else "no such folder"
    return f"found {found}; name the folder of a demo, such as runs/demo, or the --run of efm practice"


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
        f"{path}: expected what efm wrote there, as JSON, found it missing or damaged ({found}); of a demo, "
        "remove it and report.json and start the demo again, which makes both anew"
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


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    head = ("policy", "episodes", "true success", "95 % interval", "detected", "false", "missed", "steps")
    lines = [f"<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>"]
    for label, row in rows.items():
        low, high = row["interval"] or (None, None)
        cells = [
            html.escape(label),
            row["episodes"],
            _share(row["true_success"]),
            f"{_share(low)} – {_share(high)}",
            *(_share(row[name]) for name in ("detected_success", "false_success", "missed_success")),
            f"{row['mean_steps']:.1f}",
        ]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    caption = "<caption>Nobody learns from these episodes. Compare rows of the same seeds.</caption>"
    return f"<table>{caption}{''.join(lines)}</table>"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


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


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a JSON file, without one that was cut off."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise BadRequest(
            f"{path}: expected JSON in every line, found: {error}; repair or remove that line"
        ) from error


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
    return [_pair(found[first][seed], found[last][seed], ("before", "after")) for seed in seeds]


def _own_films(run: Path, journal: Iterable[Mapping[str, Any]]) -> list[str]:
    """The first and the newest episodes that a practice run took in; their seeds differ."""
    taken = [run / "episodes" / entry["episode"] for entry in journal if entry["reason"] == Reason.OK]
    there = [folder for folder in taken if folder.is_dir()]
    count = min(FILMS, len(there) // 2)
    if not count:
        return ["<p class='note'>There are not two recorded episodes.</p>"]
    pairs = zip(there[:count], there[-count:], strict=True)
    return [_pair(first, last, ("first", "newest")) for first, last in pairs]


def _pair(first: Path, last: Path, names: tuple[str, str]) -> str:
    one, other = read_episode(first), read_episode(last)
    titles = dict.fromkeys(f"seed {e.summary.seed}: {e.instruction}" for e in (one, other))
    title = ", then ".join(titles)
    return picture(film(one, other, names, title), title)
