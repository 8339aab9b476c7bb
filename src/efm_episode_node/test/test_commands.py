"""`efm collect` and `efm evaluate` against real nodes."""

import contextlib
import csv
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rclpy.node import Node

from efm_core.errors import BadRequest, SpoolLocked, WaitTimeout
from efm_core.files import lock_folder
from efm_core.summary import EndReason, Mode, Summary
from efm_episode_node import collect_command, episodes_command, evaluate_command
from efm_episode_node.evaluate_command import TruthBook, evaluate
from efm_episode_node.fleet_client import FleetClient, Listener, Wish, next_seeds
from efm_msgs.msg import GroundTruth
from efm_ros.conversion import ns_to_stamp


@pytest.fixture
def in_background(stack):
    """Runs a function in a thread while this thread keeps looking at the stack."""

    def run(function, what, timeout_s=200):
        results = []
        thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
        thread.start()
        stack.until(lambda: not thread.is_alive(), what, timeout_s)
        return results[0]

    return run


def test_collect_runs_the_episodes_of_all_robots_and_shows_the_progress(stack, in_background, capsys):
    stack.start_sim(robots=["robot_1", "robot_2"])
    stack.start_episodes()
    other = str(stack.folder / "other")
    stack.start_episodes("episodes_2", namespace="/robot_2", spool=other)
    command = ["--episodes", "5", "--robots", "robot_1,robot_2", "--seed", "4"]
    assert in_background(lambda: collect_command.main(command), "the collection") == 0
    output = capsys.readouterr().out
    assert "5 episodes of robot_1, robot_2" in output and "5/5" in output
    assert len(stack.episodes()) == 3


def test_options_of_a_simulation_need_its_world(capsys):
    changes = ["--expert-changes", '{"fail": 0.4}']
    options = collect_command.parse(["--world", "table", *changes])
    assert collect_command.stack_arguments(options) == [
        "world:=table", "spool:=spool", 'expert_changes:={"fail": 0.4}'
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        collect_command.parse(changes)
    assert "expected --world" in capsys.readouterr().err


def test_a_simulation_is_not_started_beside_robots_that_would_answer_in_its_place(stack, in_background):
    stack.start_sim()
    stack.start_episodes()
    spool = stack.folder / "other"

    def refused():
        with pytest.raises(BadRequest, match="expected no robot in this ROS domain .* found robot_1"):
            collect_command.main(["--world", "pointmass", "--episodes", "1", "--spool", str(spool)])
        return True

    assert in_background(refused, "the refusal")
    assert [path.name for path in spool.iterdir()] == [".logs"]


COLLECT = [sys.executable, "-m", "efm_bringup.efm", "collect", "--world", "pointmass"]


def test_a_collection_ends_at_once_where_the_stack_that_it_started_refuses_its_arguments(
    tmp_path, empty_domain
):
    """It waited a minute for robots that nobody was going to start."""
    command = [*COLLECT, "--spool", str(tmp_path), "--expert-changes", "fail=0.3"]
    ended = subprocess.run(command, env=empty_domain, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert "the simulated stack has ended with code 1" in ended.stderr
    assert "expected a JSON object" in ended.stderr


def test_nothing_goes_on_when_a_collection_is_killed_that_started_a_simulation(tmp_path, empty_domain):
    """It went on to record, and kept the next collection out."""
    command = [*COLLECT, "--episodes", "9999", "--spool", str(tmp_path)]
    collection = subprocess.Popen(command, env=empty_domain)
    try:
        until(lambda: list(tmp_path.glob("robot_1/2*")), "the first episode")
    finally:
        collection.kill()
        collection.wait()
    until(lambda: not any(str(tmp_path) in line for line in command_lines()), "the end of the nodes")
    assert not list(tmp_path.glob("robot_1/.*partial")), "the node ended in order"


def until(condition, what):
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline, f"waited 60 s for {what}"
        time.sleep(0.1)


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_text(errors="replace")


def test_a_second_collection_into_the_same_folder_is_refused(tmp_path):
    (tmp_path / ".logs").mkdir()
    lock = lock_folder(tmp_path / ".logs")
    with pytest.raises(SpoolLocked, match="another efm collect .* name another --spool"):
        collect_command.main(["--world", "pointmass", "--episodes", "1", "--spool", str(tmp_path)])
    os.close(lock)


def test_evaluate_writes_what_the_detector_said_beside_the_truth(stack, in_background, capsys):
    stack.start_sim()
    stack.start_models()
    stack.start_episodes()
    out = stack.folder / "evaluation"
    command = ["--episodes", "6", "--robots", "robot_1", "--seed", "50", "--out", str(out)]
    assert in_background(lambda: evaluate_command.main(command), "the evaluation") == 0
    with (out / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(evaluate_command.COLUMNS)
    assert [int(row["seed"]) for row in rows] == list(range(50, 56))
    assert {row["instruction"] for row in rows} == {"reach the goal"}
    report = json.loads((out / "evaluation.json").read_text())
    assert (report["episodes"], report["true_success"], report["detected_success"]) == (6, 1.0, 1.0)
    assert (report["false_success"], report["missed_success"]) == (0.0, 0.0)
    assert report["interval"][0] == pytest.approx(0.61, abs=0.01) and report["interval"][1] == 1.0
    assert (report["policy_bundle_ids"], report["reward_bundle_ids"]) == (["policy0"], ["reward0"])
    assert "95 % interval" in capsys.readouterr().out


def test_an_interrupted_evaluation_leaves_no_thread_in_the_middleware(ros):
    """The process aborted when it ended under one."""
    node = Node("interrupted")
    with pytest.raises(KeyboardInterrupt), evaluate_command.truth_of(node, ["robot_1"]):
        assert "truth" in {thread.name for thread in threading.enumerate()}
        raise KeyboardInterrupt
    assert "truth" not in {thread.name for thread in threading.enumerate()}
    node.destroy_node()


def test_all_robots_are_waited_for_together_until_the_simulator_speaks(ros, monkeypatch):
    """It was five seconds for each silent robot, one after the other."""
    node = Node("deaf")
    robots = [f"robot_{number}" for number in range(1, 6)]
    for name in robots:
        node.create_publisher(GroundTruth, f"/{name}/ground_truth", 10)
    monkeypatch.setattr(evaluate_command, "TRUTH_WAIT_S", 0.5)
    began = time.monotonic()
    with evaluate_command.truth_of(node, robots) as books:
        assert list(books) == robots
        assert 0.5 <= time.monotonic() - began < 2.0
    node.destroy_node()


def test_evaluate_tells_a_detector_that_lies(stack, in_background):
    stack.start_sim()
    stack.start_models(instant=True)
    stack.start_episodes()
    wish = Wish(mode=int(Mode.EVALUATE), episodes=4, seed=50, actor="policy")
    report = in_background(lambda: evaluate(["robot_1"], wish, None, quiet=True), "the evaluation")
    assert (report["true_success"], report["detected_success"], report["false_success"]) == (0.0, 1.0, 1.0)


def test_evaluate_and_the_episode_say_that_a_dry_run_moved_nothing(stack, in_background, capsys):
    stack.start_sim(lockstep=False)
    stack.start_models(dry=True)
    stack.start_episodes()
    command = ["--episodes", "2", "--max-steps", "10", "--out", str(stack.folder / "evaluation")]
    assert in_background(lambda: evaluate_command.main(command), "the evaluation") == 0
    said = capsys.readouterr()
    assert said.out.count("robot_1: an episode without a command to the robot, as in a dry run") == 1
    assert "efm evaluate: 2 of 2 episodes without a command to the robot, as in a dry run" in said.err
    episodes_command.main(["show", str(stack.episodes(".evaluation")[0])])
    assert "steps that were decided was sent: a dry run" in " ".join(capsys.readouterr().out.split())


def test_the_same_seeds_give_the_same_evaluation(stack, in_background):
    stack.start_sim()
    stack.start_models()
    stack.start_episodes()
    wish = Wish(mode=int(Mode.EVALUATE), episodes=3, seed=50, actor="policy")
    reports = [
        in_background(lambda: evaluate(["robot_1"], wish, None, quiet=True), "the evaluation")
        for _ in range(2)
    ]
    first, second = ([(row["seed"], row["steps"]) for row in report["rows"]] for report in reports)
    assert first == second


def test_a_run_goes_on_where_it_was_after_the_episode_node_was_killed(stack, in_background):
    stack.start_sim()
    stack.start_models(slow_s=0.1)
    stack.start_episodes()
    heard, words = [], []
    wish = Wish(mode=int(Mode.PRACTICE), episodes=4, seed=50, actor="policy")

    def run():
        with FleetClient("fleet_test") as fleet:
            return fleet.run(
                ["robot_1"], wish, Listener(lambda robot, one: heard.append(one), lambda *w: words.append(w))
            )

    results = []
    thread = threading.Thread(target=lambda: results.append(run()), daemon=True)
    thread.start()
    stack.until(lambda: heard, "the first episode")
    stack.until_acting(1)
    stack.kill("episodes")
    stack.start_episodes()
    stack.until(lambda: not thread.is_alive(), "the end of the run", 200)
    assert results == [[]], results
    assert [summary.seed for summary in heard] == [50, 51, 52, 53]
    assert any("knows of no run" in text or "silent" in text for _, text in words)


def test_the_seeds_that_were_not_run_are_asked_for_row_by_row():
    assert next_seeds(50, 4, set()) == (50, 4)
    assert next_seeds(50, 2, {50, 51}) == (52, 2)
    assert next_seeds(50, 2, {50, 52}) == (51, 1)
    assert next_seeds(50, 0, {50, 51}) == (52, 0), "without end"


def test_a_robot_that_is_not_there_is_named(stack):
    with FleetClient("fleet_test") as fleet, pytest.raises(WaitTimeout, match="episodes/run of robot_7"):
        fleet.robots(["robot_7"], deadline_s=1.0)


def test_the_truth_counts_at_any_observation_until_the_end():
    book = TruthBook()
    for stamp_ns, success in ((10, True), (20, False), (30, True), (40, False), (50, True)):
        message = GroundTruth(success=success)
        message.header.stamp = ns_to_stamp(stamp_ns)
        book.add(message)

    def verdict(start_ns, stamp_ns):
        return book.verdict(Summary("e", start_ns, stamp_ns, end_reason=EndReason.MAX_STEPS))

    assert verdict(20, 40) is True
    assert verdict(40, 40) is False
    assert verdict(10, 20) is True


def test_nothing_said_about_the_end_of_an_episode_is_no_verdict(monkeypatch):
    monkeypatch.setattr(evaluate_command, "TRUTH_WAIT_S", 0.05)
    assert TruthBook().verdict(Summary("e", 10, 20)) is None


@pytest.mark.parametrize(
    "wish", [Wish(mode=int(Mode.PRACTICE), episodes=1, seed=1), Wish(mode=3, episodes=1)]
)
def test_an_evaluation_needs_its_mode_and_a_seed(wish):
    with pytest.raises(BadRequest, match="expected mode EVALUATE and a seed"):
        evaluate([], wish, None)


@pytest.mark.parametrize(
    ("command", "option", "told"),
    [
        (collect_command, ["--max-steps", "-1"], "max_steps: expected 0 to 1000000, found -1"),
        (collect_command, ["--seed", "-1"], "seed: expected 0 to"),
        (collect_command, ["--episodes", "99999999999999999999"], "episodes: expected 0 to 1000000"),
        (evaluate_command, ["--temperature", "nan"], "temperature: expected -1.0 to 1000.0, found nan"),
        (evaluate_command, ["--max-steps", "99999999999"], "max_steps: expected 0 to 1000000"),
        (evaluate_command, ["--seed", "99999999999999999999"], "seed: expected 0 to"),
    ],
)
def test_a_number_that_no_episode_has_is_refused_before_anything_is_started(command, option, told):
    with pytest.raises(BadRequest, match=told):
        command.main(option)


def test_an_evaluation_that_could_not_be_written_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    wish = Wish(mode=int(Mode.EVALUATE), episodes=1, seed=50)
    with pytest.raises(BadRequest, match="can be written to; choose another --out"):
        evaluate(["robot_1"], wish, tmp_path)
