"""What the documents show is true: commands run or exist, files work, links lead somewhere, errors are real.

In README.md, CONTRIBUTING.md and docs/*.md a comment before a fenced block says what becomes of it:

    <!-- runs: no (reason) -->   each command, make target, option, stack argument and launch file must exist
    <!-- file: path -->          the block is that file; tests below write and use it

All other bash blocks run from the root, as readers type them.
"""

import functools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- runs: no \((?P<reason>[^)]+)\) -->\n+)?^(?P<fence>`{3,})bash\n(?P<script>.*?)^(?P=fence)$",
    re.M | re.S,
)
FILE = re.compile(
    r"^<!-- file: (?P<path>\S+) -->\n+(?P<fence>`{3,})\w*\n(?P<text>.*?)^(?P=fence)$", re.M | re.S
)
LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)|(?:src|href)=\"(?!\w+:)([^\"]+)\"")
# Commands of a full ROS 2 or of the system, which a bare machine may lack.
ELSEWHERE = {"ros2", "rosdep", "sudo", "apt", "apt-get", "docker", "rviz2", "xdg-open"}


@dataclass(frozen=True)
class Block:
    script: str
    reason: str | None
    """Why it is not run; None when it is."""


def blocks(text: str) -> list[Block]:
    return [Block(match["script"], match["reason"]) for match in BLOCK.finditer(text)]


def files(text: str) -> dict[str, str]:
    return {match["path"]: match["text"] for match in FILE.finditer(text)}


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


@functools.cache
def ask(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        words,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
    )


def unknown(words: list[str]) -> str | None:
    """What does not exist of a command, or None."""
    command, arguments = words[0], [word for word in words[1:] if not word.startswith("-")]
    if command == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
        missing = [word for word in arguments if "=" not in word and word not in targets]
        return f"make target {missing}" if missing else None
    if command == "efm" or command.endswith("/efm"):
        return unknown_to_efm(words[1:])
    if words[:3] == ["ros2", "launch", "efm_bringup"]:
        stack, _, ending = words[3].partition(".")
        if ending != "launch.py" or not (ROOT / "launch" / words[3]).exists():
            return f"launch file {words[3]}"
        return unknown_to_efm(["up", stack, *(word for word in words[4:] if not word.startswith("rviz:="))])
    if words[:2] == ["ros2", "run"]:
        setup = ROOT / "src" / words[2] / "setup.py"
        return None if setup.exists() and f"{words[3]} =" in setup.read_text() else f"executable {words[2:4]}"
    if command.startswith((".", "/")) or command.startswith("scripts/"):
        return None if (ROOT / command).exists() else f"file {command}"
    builtin = ask("bash", "-c", f"type {shlex.quote(command)}")
    return None if command in ELSEWHERE or builtin.returncode == 0 else f"command {command}"


def unknown_to_efm(words: list[str]) -> str | None:
    if words[:1] == ["up"] and "--show-args" not in words:
        printed = ask("efm", *words, "--print")  # Reads all arguments and starts nothing.
        return f"efm {shlex.join(words)}: {printed.stderr.strip()}" if printed.returncode else None
    asked = (
        ask("efm", *words[:1], "--help") if words and not words[0].startswith("-") else ask("efm", "--help")
    )
    choices = re.findall(r"[\w-]+", " ".join(re.findall(r"[{ ]([\w-]+(?:[,|][\w-]+)+)", asked.stdout)))
    if asked.returncode == 0 and words[1:2] and words[1] in choices:
        asked = ask("efm", *words[:2], "--help")
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    missing = [option for option in options if not re.search(rf"{option}\b", asked.stdout + " --help")]
    return f"efm {shlex.join(words)}: {asked.stderr or missing}" if asked.returncode or missing else None


TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in DOCUMENTS if path.exists()}
BLOCKS = [
    pytest.param(block, id=f"{name}-{index}")
    for name, text in TEXTS.items()
    for index, block in enumerate(blocks(text), start=1)
]
FILES = {path: body for text in TEXTS.values() for path, body in files(text).items()}


def test_the_readme_shows_commands():
    assert blocks(TEXTS["README.md"]), "expected bash blocks in README.md, found none"


@pytest.mark.parametrize("block", [p for p in BLOCKS if not p.values[0].reason])
def test_a_block_runs(block):
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.script],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
    )
    assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize("block", [p for p in BLOCKS if p.values[0].reason])
def test_what_a_block_names_exists(block):
    assert [problem for words in commands(block.script) if (problem := unknown(words))] == []


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings."""
    titles = [re.sub(r"[^\w\- ]", "", title) for title in re.findall(r"^#+ (.+)$", text, re.M)]
    return {title.strip().lower().replace(" ", "-") for title in titles}


def leads_nowhere(document: Path, link: str) -> bool:
    place, _, anchor = link.partition("#")
    target = document.parent / place if place else document
    return not target.exists() or bool(anchor) and anchor not in anchors(target.read_text())


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    links = [match[1] or match[2] for match in LINK.finditer(TEXTS[name])]
    assert [link for link in links if leads_nowhere(ROOT / name, link)] == []


@pytest.mark.parametrize("path", [path for path in FILES if path.endswith(".yaml")])
def test_an_embodiment_in_a_document_is_valid(path, tmp_path):
    from efm_core.embodiment import load_embodiment

    file = tmp_path / Path(path).name
    file.write_text(FILES[path])
    assert load_embodiment(file).name == file.stem


def test_the_world_in_the_document_installs_and_passes_the_contract_of_worlds(tmp_path):
    from efm_core.embodiment import load_embodiment
    from efm_sim.lockstep import check_embodiment

    for path in ("rail/pyproject.toml", "rail/rail_world.py", "rail/rail.yaml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(FILES[path])
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    place = tmp_path / "installed"
    subprocess.run([sys.executable, *install, "--target", place, tmp_path / "rail"], check=True)
    contract = "src/efm_sim/test/test_world_contract.py"
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", contract, "-k", "rail"],
        cwd=ROOT,
        env={**os.environ, "EFM_WORLDS": "rail", "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout
    scope: dict = {}
    exec(FILES["rail/rail_world.py"], scope)
    check_embodiment(scope["SPEC"], load_embodiment(tmp_path / "rail" / "rail.yaml"))


def test_the_errors_in_the_troubleshooting_page_are_in_the_code():
    sources = [*(ROOT / "src").glob("*/efm_*/**/*.py"), *(ROOT / "scripts").glob("setup*.py")]
    code = "\n".join(path.read_text() for path in sources)
    quoted = re.findall(r"^### `(.+?)`", TEXTS["docs/troubleshooting.md"], re.M)
    assert quoted
    assert [error for error in quoted if not all(part.strip() in code for part in error.split("…"))] == []


def test_blocks_are_found_and_told_apart():
    text = "```bash\nmake help\n```\n\n<!-- runs: no (takes minutes) -->\n```bash\nmake demo\n```\n"
    text += "```python\npass\n```\n\n<!-- file: a/b.yaml -->\n```yaml\nname: b\n```\n"
    assert blocks(text) == [Block("make help\n", None), Block("make demo\n", "takes minutes")]
    assert files(text) == {"a/b.yaml": "name: b\n"}


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("make test  # all of it\n", None),
        ("WORLD=table make nonsense", "make target ['nonsense']"),
        ("cd src && no-such-command --now", "command no-such-command"),
        ("ros2 launch efm_bringup nowhere.launch.py", "launch file nowhere.launch.py"),
        ("source /opt/ros/jazzy/setup.bash", None),
        ("efm bundle check runs/sft/bundles/* --embodiment table", None),
        ("efm up collect world:=table robots:=2", None),
    ],
)
def test_what_does_not_exist_is_named(script, problem):
    found = [unknown(words) for words in commands(script)]
    assert [each for each in found if each] == ([problem] if problem else [])


@pytest.mark.parametrize(
    "script", ["efm bundle check X --nonsense", "efm up collect robotz:=2", "efm nonsense"]
)
def test_what_efm_does_not_know_is_found(script):
    assert unknown(commands(script)[0])
