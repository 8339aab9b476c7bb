"""The main job in small: collect, train, evaluate, practise, evaluate again, through real processes."""

import json

import pytest

from efm_bringup.demo import Demo, isolate
from efm_bringup.recipes import Recipe
from efm_core.bundle import load_bundle
from efm_core.episode import Mode, list_episodes, read_episode, read_summary

TINY = Recipe(
    demonstrations=24,
    training={
        "backbone": {"name": "state", "hidden": [64, 64], "shared_trunk": False},
        "steps": 250,
        "validate_every": 125,
        "labelling.rest_steps": 5,
        "validation_share": 0.25,
        "mixture.batch_size": 256,
        "learning_rate": 3e-3,
    },
    learning={"iterations": 2, "updates": 4, "batch": 32},
    evaluation=4,
    greedy=2,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished demo with tiny numbers: what is learned does not matter here, that everything meets does."""
    isolate()
    folder = tmp_path_factory.mktemp("demo") / "run"
    Demo(folder, "pointmass", robots=2, seconds=3600.0, seed=1, recipe=TINY).run()
    return folder


def test_the_report_counts_success_before_and_after_on_the_same_seeds(run):
    report = json.loads((run / "report.json").read_text())
    for name in ("before", "after"):
        row = report[name]
        assert row["episodes"] == 4
        low, high = row["interval"]
        assert 0.0 <= low <= row["true_success"] <= high <= 1.0
        assert row["mean_steps"] > 0
        assert 0.0 <= row["false_success"] <= row["detected_success"] <= 1.0
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 1
    assert "http" not in page, "the page must show without a network"


def test_practice_made_a_chain_of_bundles_from_the_robots_own_episodes(run):
    metrics = [json.loads(line) for line in (run / "practice" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in metrics] == [1, 2]
    stage_one = json.loads((run / "stages" / "sft.json").read_text())["bundles"]["policy"].rpartition("/")[2]
    first = load_bundle(run / "practice" / "bundles" / metrics[0]["bundle"])
    assert first.manifest.parent_id == stage_one
    assert load_bundle(run / "practice" / "bundles" / metrics[1]["bundle"]).manifest.parent_id == first.id
    taken = {path.name for path in list_episodes(run / "practice" / "episodes")}
    journal = [json.loads(line) for line in (run / "practice" / "journal.jsonl").read_text().splitlines()]
    assert len({line["episode"] for line in journal}) == len(journal), "an episode was taken twice"
    assert taken
    for path in list_episodes(run / "practice" / "episodes"):
        assert read_summary(path).mode == Mode.PRACTICE


def test_both_robots_practised_and_no_training_episode_holds_ground_truth(run):
    from rosbags.rosbag2 import Reader

    robots = set()
    for path in [*list_episodes(run / "practice" / "episodes"), *list_episodes(run / "demonstrations")]:
        robots.add(read_episode(path).summary.robot)
        with Reader(path) as reader:
            assert not any("ground_truth" in connection.topic for connection in reader.connections)
    assert robots == {"robot_1", "robot_2"}


def test_a_finished_demo_is_kept_when_another_begins(run):
    again = Demo(run, "pointmass", robots=2, seconds=3600.0, seed=1, recipe=TINY)
    assert list(run.parent.glob("run-*/report.json"))
    assert not (again.out / "report.json").exists()
