"""`efm report` of folders that are not those of a finished demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efm_bringup.report import _metrics, write_report
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
    assert _metrics(demo) == [{"iteration": 1, "detected": 0.5}]
    assert "no recorded episodes of two policies" in write_report(demo).read_text()


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("practice/journal.jsonl", "found a practice run; its numbers are in result.json"),
        ("stages/before.json", "found a demo that has not come to its end; start it again"),
        ("other", "found a folder without it; name the folder of a demo"),
    ],
)
def test_another_folder_is_told_for_what_it_is(tmp_path: Path, file: str, told: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(BadRequest, match=told):
        write_report(path.parent if path.parent.name == "practice" else tmp_path)


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
    with pytest.raises(BadRequest, match=f"{file}: expected what efm demo wrote there"):
        write_report(demo)


def test_a_line_of_metrics_that_is_no_json_is_told(demo: Path) -> None:
    (demo / "practice" / "metrics.jsonl").write_text('{"iteration: 1}\n{"iteration": 2}\n')
    with pytest.raises(BadRequest, match="expected JSON in every line"):
        write_report(demo)
