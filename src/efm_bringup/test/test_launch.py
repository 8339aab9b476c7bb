"""`ros2 launch` and `efm up` start the same nodes with the same parameters, remappings and arguments.

Runs against the real launch_ros: every executable of the stacks is replaced by one that writes down how it
was started, so that what is compared is what the operating system saw.
"""

import asyncio
import importlib.util
import shlex
import sys
import time
from pathlib import Path

import pytest
import yaml

from efm_bringup import up_command
from efm_bringup.stacks import STACKS, nodes_of
from efm_core.embodiment import load_embodiment
from efm_core.errors import EXIT_REFUSED

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 60.0

if importlib.util.find_spec("launch_ros") is None:
    pytest.skip("launch_ros is not installed here (it comes with a full ROS 2)", allow_module_level=True)

from launch import LaunchDescription, LaunchService  # noqa: E402
from launch.actions import IncludeLaunchDescription  # noqa: E402
from launch.launch_description_sources import (  # noqa: E402
    PythonLaunchDescriptionSource,
    get_launch_description_from_python_launch_file,
)

# Writes its arguments down and stays until it is stopped.
RECORDER = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done > {folder}/$$.part
mv {folder}/$$.part {folder}/$$.words
exec sleep 600
"""
BUNDLE = "BUNDLE"  # In the values below: the folder of a bundle that is there.
CASES = [
    ("simulation", {"world": "table", "world_options": '{"blocks": 2}', "seed": "7"}),
    (
        "cell",
        {"embodiment": "table", "robots": "2", "reward": BUNDLE, "dry_run": "true", "lockstep": "false"},
    ),
    ("learner", {"policy": BUNDLE, "reward": BUNDLE, "learning": '{"iterations": 3, "c": 0.1}'}),
    ("collect", {"world": "pointmass", "robots": "left,right", "log_level": "warn"}),
    ("collect", {"robots": "/", "autostart": "false"}),
    ("practice", {"robots": "2", "policy": BUNDLE, "reward": BUNDLE, "verifier": BUNDLE}),
    ("evaluate", {"simulated": "false", "embodiment": "table", "policy": BUNDLE, "reward": BUNDLE}),
    ("view", {"embodiment": "table", "robots": "2"}),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    from efm_learner.random_bundle import write_random_bundle

    return str(write_random_bundle(load_embodiment("pointmass"), tmp_path_factory.mktemp("bundle")).path)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A prefix with recorders for all executables; gives the folder where they write."""
    folder = tmp_path / "words"
    folder.mkdir()
    prefix = tmp_path / "prefix"
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    index.mkdir(parents=True)
    nodes = [node for stack, given in CASES for node in nodes_of(stack, given)]
    for package, executable in {(node.package, node.executable) for node in nodes}:
        (index / package).touch()
        script = prefix / "lib" / package / executable
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(RECORDER.format(folder=shlex.quote(str(folder))))
        script.chmod(0o755)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(prefix))
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    return folder


def started_by_launch(stack: str, given: dict[str, str], folder: Path, count: int) -> list[list[str]]:
    """The command lines of a launch file's processes, without the programs' own names."""
    service = LaunchService(noninteractive=True)
    file = PythonLaunchDescriptionSource(str(ROOT / "launch" / f"{stack}.launch.py"))
    arguments = [*given.items(), *([("rviz", "false")] if stack == "view" else [])]
    service.include_launch_description(
        LaunchDescription([IncludeLaunchDescription(file, launch_arguments=arguments)])
    )

    async def run() -> None:
        running = asyncio.ensure_future(service.run_async())
        deadline = time.monotonic() + DEADLINE_S
        while len(list(folder.glob("*.words"))) < count and not running.done():
            assert time.monotonic() < deadline, f"{stack}: waited {DEADLINE_S:g} s for {count} processes"
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)  # A process too many would come now.
        await service.shutdown()
        assert await running == 0

    asyncio.run(run())
    return [path.read_text().splitlines() for path in folder.glob("*.words")]


def meaning(words: list[str]) -> dict[str, object]:
    """What a ROS command line means to a node: names, parameters, remappings, log level."""
    found: dict[str, object] = {"parameters": {}, "remaps": set(), "level": None}
    rules: list[tuple[str, dict[str, object]]] = []
    left = iter(words)
    for word in left:
        if word == "--ros-args":
            continue
        value = next(left)
        if word == "-r" and value.startswith(("__node:=", "__ns:=")):
            name, _, text = value.partition(":=")
            found[name] = text
        elif word == "-r":
            found["remaps"].add(value)
        elif word == "-p":
            name, _, text = value.partition(":=")
            rules.append(("/**", {name: yaml.safe_load(text)}))
        elif word == "--params-file":
            content = yaml.safe_load(Path(value).read_text())
            rules += [(owner, part["ros__parameters"]) for owner, part in content.items()]
        elif word == "--log-level":
            found["level"] = value
        else:
            raise AssertionError(f"unexpected word {word!r} in {words}")
    own = f"{found['__ns'].rstrip('/')}/{found['__node']}"
    # As in rcl: what names the node wins over what names all nodes.
    for owner in ("/**", own):
        for name, values in rules:
            if name == owner:
                found["parameters"].update(values)
    assert {owner for owner, _ in rules} <= {"/**", own}
    return found


@pytest.mark.parametrize(("stack", "given"), CASES, ids=lambda value: str(value)[:60])
def test_launch_and_efm_up_start_the_same(stack, given, recorded, bundle, capsys):
    given = {name: bundle if value == BUNDLE else value for name, value in given.items()}
    assert up_command.main([stack, "--print", *(f"{name}:={value}" for name, value in given.items())]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert all(line[:2] == [sys.executable, "-m"] for line in lines)
    by_up = [meaning(line[3:]) for line in lines]
    by_launch = [meaning(words) for words in started_by_launch(stack, given, recorded, len(lines))]

    def name(node):
        return node["__ns"], node["__node"]

    assert sorted(by_launch, key=name) == sorted(by_up, key=name)


@pytest.mark.parametrize("stack", STACKS)
def test_the_launch_file_declares_the_stack_s_arguments(stack):
    description = get_launch_description_from_python_launch_file(str(ROOT / "launch" / f"{stack}.launch.py"))
    declared = {argument.name: argument for argument in description.get_launch_arguments()}
    assert list(declared)[: len(STACKS[stack].arguments)] == [a.name for a in STACKS[stack].arguments]
    for argument in STACKS[stack].arguments:
        assert declared[argument.name].description.startswith(argument.description)
        assert declared[argument.name].default_value[0].text == argument.default
        assert tuple(declared[argument.name].choices or ()) == argument.choices
    assert set(declared) - {a.name for a in STACKS[stack].arguments} == (
        {"rviz"} if stack == "view" else set()
    )


def test_a_node_that_refuses_its_parameters_ends_the_launch(recorded, tmp_path, capfd):
    """With `respawn` alone it would say the same every second."""
    simulator = tmp_path / "prefix" / "lib" / "efm_sim" / "sim_node"
    simulator.write_text(f"#!/bin/sh\necho no such task; exit {EXIT_REFUSED}\n")
    service = LaunchService(noninteractive=True)
    file = PythonLaunchDescriptionSource(str(ROOT / "launch" / "collect.launch.py"))
    service.include_launch_description(IncludeLaunchDescription(file))
    asyncio.run(asyncio.wait_for(service.run_async(), DEADLINE_S))
    said = "".join(capfd.readouterr())
    assert said.count("no such task") == 1
    assert "refused its parameters" in said


@pytest.mark.parametrize(
    ("stack", "given", "words"),
    [
        ("evaluate", {"policy": "p"}, "needs reward:=FOLDER"),
        ("evaluate", {"reward": "nowhere"}, "expected a bundle's folder, found nothing"),
        ("collect", {"world": "tabel"}, "unknown world 'tabel' (did you mean 'table'?)"),
        ("view", {"rviz": "true"}, "there is no rviz2/rviz2: install ros-jazzy-rviz2, or leave it out"),
    ],
)
def test_what_cannot_be_ends_the_launch_before_the_first_node(stack, given, words, recorded, capfd):
    service = LaunchService(noninteractive=True)
    file = PythonLaunchDescriptionSource(str(ROOT / "launch" / f"{stack}.launch.py"))
    service.include_launch_description(IncludeLaunchDescription(file, launch_arguments=given.items()))
    assert asyncio.run(service.run_async()) == 1
    assert words in "".join(capfd.readouterr())
    assert list(recorded.iterdir()) == []
