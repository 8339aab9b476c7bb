"""The README's commands are true: its bash blocks are run, or, where that takes too long, looked up.

A block after the comment `<!-- runs: no (reason) -->` is looked up: each command, make target, script, launch
file and subcommand of `efm` in it must exist. All other bash blocks run from the root, as readers type them.
"""

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?:^<!-- runs: no \((?P<reason>[^)]+)\) -->\n+)?^(?P<fence>`{3,})bash\n(?P<script>.*?)^(?P=fence)$",
    re.M | re.S,
)
# Commands of a full ROS 2 or of the system, which a bare machine may lack.
ELSEWHERE = {"ros2", "rosdep", "sudo", "apt", "apt-get", "docker"}


@dataclass(frozen=True)
class Block:
    script: str
    reason: str | None
    """Why it is not run; None when it is."""


def blocks(text: str) -> list[Block]:
    return [Block(match["script"], match["reason"]) for match in BLOCK.finditer(text)]


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def commands(script: str) -> list[list[str]]:
    """The simple commands of a script, as words, without assignments in front."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();|&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();|&"):
                if words:
                    found.append(words)
                words = []
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)
    return found


def unknown(words: list[str]) -> str | None:
    """What does not exist of a command, or None."""
    command, arguments = words[0], [word for word in words[1:] if not word.startswith("-")]
    if command == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
        missing = [word for word in arguments if "=" not in word and word not in targets]
        return f"make target {missing}" if missing else None
    if command == "efm" or command.endswith("/efm"):
        asked = subprocess.run(
            ["efm", *arguments[:1], "--help"], env=environment(), capture_output=True, text=True, timeout=60
        )
        options = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
        missing = [option for option in options if option not in asked.stdout]
        return f"{shlex.join(words)}: {asked.stderr or missing}" if asked.returncode or missing else None
    if words[:3] == ["ros2", "launch", "efm_bringup"]:
        return None if (ROOT / "launch" / words[3]).exists() else f"launch file {words[3]}"
    if words[:2] == ["ros2", "run"]:
        setup = ROOT / "src" / words[2] / "setup.py"
        return None if setup.exists() and f"{words[3]} =" in setup.read_text() else f"executable {words[2:4]}"
    if "/" in command:
        return None if (ROOT / command).exists() else f"file {command}"
    builtin = subprocess.run(
        ["bash", "-c", f"type {shlex.quote(command)}"], env=environment(), capture_output=True
    )
    return None if command in ELSEWHERE or builtin.returncode == 0 else f"command {command}"


README = blocks((ROOT / "README.md").read_text()) if (ROOT / "README.md").exists() else []


def test_the_readme_shows_commands():
    assert README, "expected bash blocks in README.md, found none"


@pytest.mark.parametrize(
    "block", [block for block in README if not block.reason], ids=lambda block: block.script[:40]
)
def test_a_block_runs(block):
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.script],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
    )
    assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize(
    "block", [block for block in README if block.reason], ids=lambda block: block.script[:40]
)
def test_what_a_block_names_exists(block):
    assert [problem for words in commands(block.script) if (problem := unknown(words))] == []


def test_blocks_are_found_and_told_apart():
    text = "```bash\nmake help\n```\n\n<!-- runs: no (takes minutes) -->\n```bash\nmake demo\n```\n"
    text += "```python\npass\n```\n"
    assert blocks(text) == [Block("make help\n", None), Block("make demo\n", "takes minutes")]


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("make test  # all of it\n", None),
        ("WORLD=table make nonsense", "make target ['nonsense']"),
        ("cd src && no-such-command --now", "command no-such-command"),
        ("ros2 launch efm_bringup nowhere.launch.py", "launch file nowhere.launch.py"),
        ("source /opt/ros/jazzy/setup.bash", None),
    ],
)
def test_what_does_not_exist_is_named(script, problem):
    found = [unknown(words) for words in commands(script)]
    assert [each for each in found if each] == ([problem] if problem else [])
