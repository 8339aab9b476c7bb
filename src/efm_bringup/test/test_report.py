"""`efm report` of a practice run, of damaged folders, and of folders that are none of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efm_bringup.report import _lines, write_report
from efm_core.errors import BadRequest

ROW = {
    "episodes": 4,
    "true_success": 0.5,
    "interval": [0.2, 0.8],
    "detected_success": 0.5,
    "false_success": 0.0,
    "missed_success": 0.0,
    "mean_steps": 20.0,
}
REPORT = {
    "world": "pointmass",
    "robots": 1,
    "demonstrations": 4,
    **dict.fromkeys(("before", "after", "before_greedy", "after_greedy"), ROW),
    "detector": {"threshold": 2.0, "hold": 1},
    "practice": {"iterations": 1, "updates": 1, "episodes": 1, "steps": 9, "refused": 0, "idle_share": 0.1}
    | {"message": ""},
    "seconds": {"collect": 60.0},
}


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The folder of a finished demo, without its episodes."""
    (tmp_path / "practice").mkdir()
    (tmp_path / "stages").mkdir()
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "practice" / "metrics.jsonl").write_text('{"iteration": 1, "detected": 0.5}\n{"iterat')
    for name in ("before", "after"):
        (tmp_path / "stages" / f"{name}.json").write_text(json.dumps({"policy": name}))
    return tmp_path


def test_a_page_is_made_also_where_the_last_line_of_metrics_was_cut_off(demo: Path) -> None:
    assert _lines(demo / "practice" / "metrics.jsonl") == [{"iteration": 1, "detected": 0.5}]
    assert "no recorded episodes of two policies" in write_report(demo).read_text()


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("stages/before.json", "found a demo that has not come to its end; start it again"),
        ("other", "found a folder without it; name the folder of a demo"),
    ],
)
def test_another_folder_is_told_for_what_it_is(tmp_path: Path, file: str, told: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(BadRequest, match=told):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("report.json", ""),
        ("report.json", '{"before": {"epi'),
        ("report.json", "[]"),
        ("report.json", '{"world": "pointmass", "before": 3}'),
        ("stages/after.json", ""),
        ("stages/before.json", "3"),
    ],
)
def test_a_damaged_file_is_named(demo: Path, file: str, content: str) -> None:
    (demo / file).write_text(content)
    with pytest.raises(BadRequest, match=f"{file}: expected what efm wrote there"):
        write_report(demo)


def test_a_practice_run_gets_a_page_with_what_was_measured_of_it(tmp_path: Path) -> None:
    line = {"iteration": 2, "updates": 8, "total_episodes": 5, "total_steps": 635, "best": "73653ddda7a940d6"}
    line |= {"guard": {"message": "good episodes fell"}, "collect_s": 60.0, "update_s": 30.0, "idle_s": 12.0}
    journal = [{"episode": str(n), "reason": reason} for n, reason in enumerate((1, 62, 62, 63))]
    for name, lines in (("metrics", [line]), ("journal", journal)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    page = write_report(tmp_path).read_text()
    assert "5 episodes of 635 control steps; 3 more were refused, 2 of them as stale" in page
    assert "1.5 minutes, of which the learner waited 0.2" in page and "good episodes fell" in page
    assert "True success was not measured" in page
    for name, row in (("first", ROW), ("real robot", {**ROW, "true_success": None, "interval": None})):
        (tmp_path / "evaluations" / name).mkdir(parents=True)
        (tmp_path / "evaluations" / name / "evaluation.json").write_text(json.dumps(row))
    page = write_report(tmp_path).read_text()
    assert "<td>first</td><td>4</td><td>0.50</td><td>0.20 – 0.80</td>" in page
    assert "<td>real robot</td><td>4</td><td>unknown</td>" in page


def test_a_practice_run_without_an_iteration_has_no_page_yet(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text("")
    with pytest.raises(BadRequest, match="expected an iteration in metrics.jsonl, found none"):
        write_report(tmp_path)


def test_a_line_of_metrics_that_is_no_json_is_told(demo: Path) -> None:
    (demo / "practice" / "metrics.jsonl").write_text('{"iteration: 1}\n{"iteration": 2}\n')
    with pytest.raises(BadRequest, match="expected JSON in every line"):
        write_report(demo)
