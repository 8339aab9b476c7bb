"""Processes of a stack: started, watched, restarted, and stopped with one signal."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from efm_bringup import efm, processes
from efm_bringup.processes import ProcessGroup, command_of, wait_for
from efm_bringup.stacks import NodeSpec
from efm_core.errors import EXIT_REFUSED, BadRequest, WaitTimeout

DEADLINE_S = 60.0  # For what takes milliseconds on an idle machine.
# A node as the operating system sees it: says that it is up, and ends at SIGTERM with the code asked for.
NODE = """
import pathlib, signal, sys, time
words = dict(text.split(":=") for text in sys.argv if ":=" in text)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(words.get("code", 0))))
with pathlib.Path(words["said"].strip('"')).open("a") as file:
    file.write("up\\n")
if words.get("dies") == "true":
    sys.exit(int(words.get("code", 3)))
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def module(tmp_path):
    (tmp_path / "some_node.py").write_text(NODE)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def spec(said: Path, name: str = "node", respawn: bool = True, **parameters: object) -> NodeSpec:
    parameters["said"] = str(said)
    return NodeSpec("package", "x", "some_node", name, "/robot", parameters=parameters, respawn=respawn)


def ups(said: Path) -> int:
    return len(said.read_text().splitlines()) if said.exists() else 0


def test_all_stop_on_one_signal_with_their_exit_codes(tmp_path, module):
    said = tmp_path / "said"
    with ProcessGroup([spec(said), spec(said, "other", code=7)], environment=module) as group:
        wait_for(lambda: ups(said) == 2, "two nodes", DEADLINE_S, group)
        assert group.dead == []
        codes = group.stop()
    assert codes == [0, 7]  # And not what a node says that had to be killed.


def test_a_node_that_died_is_named_and_started_again(tmp_path, module):
    said, logs = tmp_path / "said", tmp_path / "logs"
    with ProcessGroup([spec(said)], logs, module) as group:
        wait_for(lambda: ups(said) == 1, "the node", DEADLINE_S)
        os.kill(group.pid("node", "/robot"), signal.SIGKILL)
        lines: list[str] = []
        wait_for(lambda: lines.extend(group.watch()) or ups(said) == 2, "the node again", DEADLINE_S)
        log = logs / "robot.node.log"
        assert lines == [f"/robot/node ended with code -9; it is started again in 1 s; see {log}"]
        assert group.dead == []


def test_a_node_that_dies_again_and_again_is_started_ever_more_seldom(tmp_path, module, monkeypatch):
    """One that refused its parameters once said so every two seconds, for ever."""
    monkeypatch.setattr(processes, "RESPAWN_DELAY_S", 0.1)
    monkeypatch.setattr(processes, "LONGEST_DELAY_S", 0.4)
    lines: list[str] = []
    with ProcessGroup([spec(tmp_path / "said", dies=True)], environment=module) as group:
        wait_for(lambda: lines.extend(group.watch()) or len(lines) == 4, "the fourth death", DEADLINE_S)
        monkeypatch.setattr(processes, "SETTLED_S", -1.0)  # Now it counts as one that had lived.
        wait_for(lambda: lines.extend(group.watch()) or len(lines) == 5, "the fifth death", DEADLINE_S)
    assert [line.partition("again in ")[2] for line in lines] == ["0.1 s", "0.2 s", "0.4 s", "0.4 s", "0.1 s"]


def test_a_node_that_refuses_its_parameters_ends_the_watch_and_is_not_started_again(tmp_path, module):
    """A mistyped task of a world was once told again and again, and the collection waited for a minute."""
    said = tmp_path / "said"
    group = ProcessGroup([spec(said, dies=True, code=EXIT_REFUSED)], environment=module)
    with group, pytest.raises(BadRequest, match="/robot/node ended with code 2"):
        wait_for(group.watch, "an end", DEADLINE_S)
    assert ups(said) == 1


def test_parameters_that_were_good_once_are_tried_again(tmp_path, module):
    """Somebody changes a file under a node that died: the other robots go on."""
    said = tmp_path / "said"
    with ProcessGroup([spec(said, code=EXIT_REFUSED)], environment=module) as group:
        wait_for(lambda: ups(said) == 1, "the node", DEADLINE_S)
        os.kill(group.pid("node", "/robot"), signal.SIGKILL)
        lines: list[str] = []
        wait_for(lambda: lines.extend(group.watch()) or ups(said) == 2, "the node again", DEADLINE_S)
        os.kill(group.pid("node", "/robot"), signal.SIGTERM)  # It ends as one that refuses.
        wait_for(lambda: lines.extend(group.watch()) or ups(said) == 3, "its third start", DEADLINE_S)
    assert "ended with code 2; it is started again" in lines[1]


def test_a_node_without_respawn_stays_dead_and_ends_a_wait(tmp_path, module):
    said = tmp_path / "said"
    with ProcessGroup([spec(said, respawn=False, dies=True)], environment=module) as group:
        with pytest.raises(WaitTimeout, match="waited for spring, but /robot/node ended"):
            wait_for(lambda: False, "spring", DEADLINE_S, group)
        assert group.watch() == ["/robot/node ended with code 3"]
        assert group.watch() == []
        assert group.dead == ["/robot/node ended with code 3"]


def test_the_last_words_of_a_node_that_died_are_quoted(tmp_path, module):
    """`efm practice` once named only the folder of logs; users had to find out who had refused what."""
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "robot.node.log").write_text("up\nexpected a bundle, found nothing\n\n")
    with ProcessGroup([spec(tmp_path / "said", respawn=False, dies=True)], logs, module) as group:
        log = logs / "robot.node.log"
        words = f"ended with code 3; see {log}, whose last line is: expected a bundle, found nothing"
        with pytest.raises(WaitTimeout, match=f"waited for spring, but /robot/node {re.escape(words)}$"):
            wait_for(lambda: False, "spring", DEADLINE_S, group)
        assert group.watch() == [f"/robot/node {words}"]


def test_a_wait_has_an_end_and_says_what_for():
    with pytest.raises(WaitTimeout, match="waited 0 s for godot"):
        wait_for(lambda: False, "godot", 0.1)


def test_nobody_is_left_behind_when_the_block_fails(tmp_path, module):
    said = tmp_path / "said"
    with pytest.raises(ZeroDivisionError), ProcessGroup([spec(said)], environment=module) as group:
        wait_for(lambda: ups(said) == 1, "the node", DEADLINE_S)
        pid = group.pid("node", "/robot")
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


LAUNCHER = """
import sys, time
from efm_bringup.processes import ProcessGroup
from efm_bringup.stacks import NodeSpec
with ProcessGroup([NodeSpec("package", "x", "some_node", "node", parameters={"said": sys.argv[1]})]) as group:
    print(group.pid("node"), flush=True)
    time.sleep(60)
"""


def test_nobody_is_left_behind_when_the_launcher_is_killed(tmp_path, module):
    """Robots once went on acting after `efm practice` had been killed."""
    said = tmp_path / "said"
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(said)],
        env={**os.environ, **module},
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = int(launcher.stdout.readline())
    wait_for(lambda: ups(said) == 1, "the node", DEADLINE_S)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not _is_alive(pid), "the node's end", DEADLINE_S)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_node_that_was_still_starting_ended_well(tmp_path):
    (tmp_path / "slow_node.py").write_text("import time\ntime.sleep(60)\n")
    node = NodeSpec("package", "x", "slow_node", "node")
    with ProcessGroup([node], environment={"PYTHONPATH": str(tmp_path)}) as group:
        assert group.stop() == [0]


def test_values_keep_their_types_on_the_command_line():
    node = NodeSpec(
        "package",
        "x",
        "module",
        "node",
        "/ns",
        parameters={"text": "true", "flag": True, "names": ["", "b"], "json": '{"a": 1}', "whole": 3},
        remappings=(("a", "b"),),
        ros_arguments=("--log-level", "warn"),
    )
    assert command_of(node)[1:] == [
        *("-m", "module", "--ros-args", "-r", "__node:=node", "-r", "__ns:=/ns", "-r", "a:=b"),
        *("-p", 'text:="true"', "-p", "flag:=true", "-p", 'names:=["", "b"]'),
        *("-p", 'json:="{\\"a\\": 1}"', "-p", "whole:=3", "--log-level", "warn"),
    ]


def test_efm_up_ends_well_when_it_was_started_in_the_background(tmp_path):
    # A shell lets what it starts with & ignore SIGINT; `efm up` must still stop on it.
    command = [sys.executable, "-m", "efm_bringup.efm", "up", "simulation", f"--logs={tmp_path}"]
    process = subprocess.Popen(
        ["sh", "-c", '"$@" & echo $!; wait $!', "sh", *command], stdout=subprocess.PIPE, text=True
    )
    pid = int(process.stdout.readline())
    try:
        assert process.stdout.readline() == f"started /sim; logs are in {tmp_path}, Ctrl+C stops all\n"
        wait_for((tmp_path / "sim.log").exists, "the first node", DEADLINE_S)
        os.kill(pid, signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()


def test_efm_up_view_says_that_rviz_is_no_part_of_it(tmp_path):
    command = [sys.executable, "-m", "efm_bringup.efm", "up", "view", f"--logs={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("RViz is no part of this: ")
        assert process.stdout.readline().startswith("started /view, /annotate; ")
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()


def test_efm_up_starts_nothing_that_could_not_start(capsys):
    assert efm.main(["up", "evaluate", "reward:=nowhere"]) == 1
    assert "nowhere: expected a bundle's folder, found nothing" in capsys.readouterr().err
    assert efm.main(["up", "collect", "world:=tabel"]) == 1
    assert "unknown world 'tabel' (did you mean 'table'?)" in capsys.readouterr().err
