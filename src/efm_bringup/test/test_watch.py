"""`efm watch`: what is told of a fleet, and what keys do."""

import os
import pty
import subprocess
import sys
import time

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from fake_robot import FakeRobot, learner, meanwhile
from rclpy.node import Node
from rich.console import Console
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from efm_bringup import watch_command
from efm_bringup.monitor import FleetMonitor, RobotView
from efm_bringup.operator_keys import HELP, KEYS, Keyboard, Operator
from efm_bringup.watch_table import (
    LEARNER_PHASES,
    MODEL_STATES,
    PHASES,
    picture,
    robot_line,
    sparkline,
    success_words,
)
from efm_core.embodiment import load_embodiment
from efm_core.errors import WaitTimeout
from efm_msgs.msg import EpisodeStatus, EpisodeSummary, LearnerStatus, ModelStatus
from efm_ros.lifecycle import WARN, EfmLifecycleNode
from efm_ros.qos import EVENTS, LATCHED
from efm_ros.testing import PATIENCE_S

EFM = [sys.executable, "-m", "efm_bringup.efm"]


@pytest.fixture
def world(run):
    return run(Node("world"))


@pytest.fixture
def robot(world):
    return FakeRobot(world, load_embodiment("table"), "robot_1")


@pytest.fixture
def monitor(ros):
    with FleetMonitor(details=True) as monitor:
        yield monitor


def text(monitor, width=200):
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(picture(monitor, ["robot_1"], HELP, []))
    return console.export_text()


@pytest.mark.parametrize(
    ("prefix", "message", "words"),
    [
        ("PHASE_", EpisodeStatus, PHASES),
        ("PHASE_", LearnerStatus, LEARNER_PHASES),
        ("STATE_", ModelStatus, MODEL_STATES),
    ],
)
def test_there_are_words_for_every_constant(prefix, message, words):
    constants = {getattr(message, name) for name in dir(message) if name.startswith(prefix)}
    assert set(words) == constants - {0}


def test_a_robot_turns_up_and_is_told_in_one_row(world, robot, monitor, spinner):
    announced = learner(world)

    def told():
        monitor.discover()
        robot.status(
            phase=EpisodeStatus.PHASE_ACTING,
            mode=EpisodeSummary.MODE_PRACTICE,
            actor=1,
            episode_id="e1",
            instruction="push the star",
            step=17,
            spool_episodes=3,
            spool_bytes=20,
            spool_quota=100,
        )
        robot.judge("e1", 12.5)
        announced.publish(
            LearnerStatus(phase=1, iteration=4, updates=64, wanted_steps=500, guard="all is well")
        )
        view = monitor.robots.get("robot_1")
        return view and view.steps_to_go and monitor.learner

    spinner.until(told, "status, judgement and learner")
    shown = text(monitor)
    for words in ("practice: policy 17", "push the star", "12.5", "3 (20%)", "iteration 4", "all is well"):
        assert words in shown
    # At 80 columns a person still sees whom a key is for; it once cut names and marks to "r…" and "…".
    shown = text(monitor, 80)
    assert all(words in shown for words in ("▶1", "robot_1", "practice: policy 17", "12.5"))
    assert max(map(len, shown.splitlines())) <= 80
    robot.end(episode_id="e1", outcome=1, steps=18, mode=2)
    spinner.until(lambda: monitor.finished == 1, "a summary")
    assert "1/1 [21%-100%] success" in text(monitor)
    assert monitor.steps == 18


def test_what_is_not_well_is_told_below(monitor, run, spinner):
    class Unwell(EfmLifecycleNode):
        def update_diagnostics(self):
            self.diagnose("disk", WARN, "1 GB free; make room")

    run(Unwell("recorder"))
    spinner.until(lambda: any(name == "recorder: disk" for _, name, _ in monitor.complaints()), "a complaint")
    assert "warning: fleet: recorder: disk: 1 GB free; make room" in text(monitor)
    monitor.learner = LearnerStatus(phase=1, message="1 GB free; make room")
    assert text(monitor).count("make room") == 1, "what a status says is not said twice"


def test_the_success_rate_comes_with_its_interval():
    view = RobotView()
    assert success_words(view) == ""
    view.status = EpisodeStatus(successes=9, episodes_done=10)
    assert success_words(view) == "9/10 [60%-98%]"
    for index in range(60):
        view.take_summary(EpisodeSummary(steps=10, outcome=1 if index >= 20 else 2))
    assert success_words(view) == "40/50 [67%-89%] success"
    view.take_summary(EpisodeSummary(steps=10, outcome=EpisodeSummary.OUTCOME_DISCARDED))
    assert success_words(view) == "40/50 [67%-89%] discarded", "what is thrown away does not count"
    assert view.pace == pytest.approx(610 / 20)


def test_a_robot_is_idle_while_it_neither_acts_nor_is_reset():
    view = RobotView()
    view.spent_s.update(
        {EpisodeStatus.PHASE_ACTING: 6, EpisodeStatus.PHASE_RESETTING: 2, EpisodeStatus.PHASE_PAUSED: 2}
    )
    assert view.idle_share == pytest.approx(0.2)
    for _ in range(2):
        view.take_status(EpisodeStatus(phase=EpisodeStatus.PHASE_SAVING))
    assert view.spent_s[EpisodeStatus.PHASE_SAVING] > 0, "time counts for the phase that ends"


def test_a_line_for_logs_says_what_is_waited_for():
    view = RobotView(status=EpisodeStatus(phase=3, message="put the cube back"), heard_s=time.monotonic())
    assert robot_line("robot_1", view) == "robot_1: WAITS FOR YOU, put the cube back"
    view.heard_s -= 60.0
    assert robot_line("robot_1", view).startswith("robot_1: SILENT")


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([float("nan")], ""),
        ([4.0], "█"),
        ([8.0, 4.0, 0.0], "█▅▁"),
        ([0.0, 0.0], "▁▁"),
        (list(range(240, 0, -1)), 24),
    ],
)
def test_a_sparkline_falls_as_the_numbers_do(values, bars):
    found = sparkline(values)
    if isinstance(bars, int):
        assert len(found) == bars
        assert list(found) == sorted(found, reverse=True)
    else:
        assert found == bars


def test_every_key_is_on_the_screen():
    assert all(f"[{key}]" in HELP for key in KEYS)


def test_keys_ask_the_selected_robots(world, run, spinner):
    asked = []

    def answer(name):
        def serve(request, response):
            asked.append((name, getattr(request, "data", None)))
            response.success, response.message = True, "noted"
            return response

        return serve

    for robot in ("robot_1", "robot_2"):
        world.create_service(Trigger, f"/{robot}/episodes/reset_done", answer(f"{robot} reset"))
        world.create_service(SetBool, f"/{robot}/episodes/pause", answer(f"{robot} pause"))
    views = {"robot_1": RobotView(), "robot_2": RobotView(status=EpisodeStatus(phase=6))}
    operator = Operator(run(Node("operator")), views)
    operator.press("r")
    spinner.until(lambda: len(asked) == 2, "both robots")
    operator.press("2")
    assert operator.selected == ["robot_2"]
    operator.press("p")
    spinner.until(lambda: len(asked) == 3, "robot_2")
    assert asked[2] == ("robot_2 pause", False), "what pauses goes on"
    operator.press("0")
    operator.press("p")
    spinner.until(lambda: len(asked) == 5, "both robots once more")
    assert ("robot_1 pause", True) in asked
    spinner.until(lambda: any("robot_1: pause/resume: noted" in line for line in operator.said), "an answer")
    operator.press("s")
    assert "nobody offers the service /robot_2/episodes/mark_success" in operator.said[-1]
    for key in ("9", "?", ""):
        operator.press(key)
    assert operator.selected == ["robot_1", "robot_2"]
    operator.press("q")
    assert operator.ended


def test_a_pause_is_taken_back_before_it_begins(world, run, spinner):
    asked = []

    def serve(request, response):
        asked.append(request.data)
        response.success = True
        return response

    world.create_service(SetBool, "/robot_1/episodes/pause", serve)
    acting = RobotView(status=EpisodeStatus(phase=EpisodeStatus.PHASE_ACTING))
    operator = Operator(run(Node("operator")), {"robot_1": acting})
    for count in (1, 2, 3):
        operator.press("p")
        spinner.until(lambda count=count: len(asked) == count, "an answer")
    assert asked == [True, False, True]


def test_the_e_stop_works_without_a_policy_node(world, run, spinner):
    heard = []
    world.create_subscription(Bool, "/robot_1/estop", heard.append, LATCHED)
    operator = Operator(run(Node("operator")), {"robot_1": RobotView()})
    operator.press("e")
    spinner.until(lambda: heard, "the e-stop")
    assert heard[0].data is True


def test_the_e_stop_of_all_robots_waits_for_no_service(world, run, spinner, monkeypatch):
    # Each robot without a policy node had delayed the e-stop of the next by a second.
    heard = []
    for name in ("robot_1", "robot_2"):
        world.create_subscription(
            Bool, f"/{name}/estop", lambda message, name=name: heard.append(name), LATCHED
        )
    node = run(Node("operator"))
    made = node.create_client

    def making_a_client(*arguments):
        spinner.until(lambda: set(heard) == {"robot_1", "robot_2"}, "the e-stop of both")
        return made(*arguments)

    monkeypatch.setattr(node, "create_client", making_a_client)
    Operator(node, {"robot_1": RobotView(), "robot_2": RobotView()}).press("e")
    assert set(heard) == {"robot_1", "robot_2"}


def test_who_stops_all_robots_releases_none_that_is_stopped_already(run):
    stopped, moving = RobotView(estop=True), RobotView()
    operator = Operator(run(Node("operator")), {"robot_1": stopped, "robot_2": moving})
    operator.press("e")
    said = "".join(operator.said)
    assert "robot_1: e-stop pressed" in said and "robot_2: e-stop pressed" in said
    moving.estop = True
    operator.press("e")
    said = "".join(operator.said)
    assert "robot_1: e-stop released" in said and "robot_2: e-stop released" in said


def test_keys_that_are_typed_fast_all_count_and_arrows_do_not(monkeypatch):
    # A buffer had kept all but the first: the e-stop came only with the next key.
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        with Keyboard() as keyboard:
            for typed, meant in (("2e", "2e"), ("\x1b[A\x1b[3~\x1b[1;5Cp", "p"), ("\x1bOP\x1bOPq", "q")):
                os.write(ours, typed.encode())
                assert keyboard.read(PATIENCE_S) == meant
            assert keyboard.read(0.0) == ""
    os.close(ours)


def telling(robot, **fields):
    """A robot that says again and again how it is, as an episode node does."""
    return meanwhile(lambda: robot.status(**fields), 0.5)


def test_one_look_ends_by_itself(robot):
    waiting = {"phase": EpisodeStatus.PHASE_WAITING, "message": "put the cube back"}
    with telling(robot, **waiting, episodes_done=4, successes=3):
        seen = subprocess.run([*EFM, "watch", "--once"], capture_output=True, text=True, timeout=100)
    assert seen.returncode == 0, seen.stderr
    for words in ("robot_1", "WAITS FOR YOU", "put the cube back", "3/4 [30%-95%]", "learner: none heard"):
        assert words in seen.stdout


def test_one_look_tells_of_a_dry_run(world, robot):
    policy = world.create_publisher(DiagnosticArray, "/diagnostics", EVENTS)
    control = DiagnosticStatus(
        level=WARN, hardware_id="robot_1", name="policy: control", message="a dry run: nothing is sent"
    )
    with (
        telling(robot, phase=EpisodeStatus.PHASE_IDLE),
        meanwhile(lambda: policy.publish(DiagnosticArray(status=[control])), 0.5),
    ):
        seen = subprocess.run([*EFM, "watch", "--once"], capture_output=True, text=True, timeout=100)
    assert "warning: robot_1: policy: control: a dry run: nothing is sent" in seen.stdout


def test_a_robot_name_with_a_typing_error_is_named_beside_those_that_are_there(robot, monkeypatch):
    monkeypatch.setattr(watch_command, "ONCE_DEADLINE_S", 3.0)
    words = "waited 3 s for the status of robt_1; there is robot_1: correct --robots"
    with telling(robot, phase=EpisodeStatus.PHASE_IDLE), pytest.raises(WaitTimeout, match=words):
        watch_command.main(["--once", "--robots", "robt_1"])


def test_without_a_terminal_changes_are_lines(robot, spinner):
    process = subprocess.Popen(
        [*EFM, "watch"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        with telling(robot, phase=EpisodeStatus.PHASE_IDLE):
            assert process.stdout.readline().strip().endswith("robot_1: idle")
        with telling(robot, phase=EpisodeStatus.PHASE_PAUSED, message="the spool is full"):
            assert process.stdout.readline().strip().endswith("robot_1: paused, the spool is full")
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def test_a_terminal_shows_the_table_until_q(robot):
    robot.status(phase=EpisodeStatus.PHASE_IDLE)
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*EFM, "watch"], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 100
    while not (b"robot_1" in shown and b"[q] quit" in shown) and time.monotonic() < deadline:
        shown += os.read(ours, 4096)
    os.write(ours, b"q")
    try:
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        os.close(ours)
    assert b"robot_1" in shown and b"[q] quit" in shown
