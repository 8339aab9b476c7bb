"""Who may import whom. The table is the architecture; the probes show that nothing slips in at run time.

Imports go one way: efm_core knows nobody, nodes meet only in efm_msgs, torch stays with the learner.
"""

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

NODES = ["efm_policy_node", "efm_reward_node", "efm_episode_node", "efm_sim", "efm_learner"]

# What each package may import of EFM's own packages, beside itself. Nodes meet only in efm_msgs.
MAY_IMPORT = {
    "efm_core": set(),
    "efm_ros": {"efm_core", "efm_msgs"},
    **dict.fromkeys(NODES, {"efm_core", "efm_msgs", "efm_ros"}),
    "efm_bringup": {"efm_core", "efm_msgs", "efm_ros", *NODES},
}

# Packages that are free of ROS but for these modules.
ONLY_THESE_KNOW_ROS = {
    "efm_core": [],
    "efm_learner": ["learner_main", "learner_node", "learner_parameters"],
    "efm_sim": ["main", "node", "robot_topics", "slot", "world_loop"],
}
# Packages of ROS code, and what in them is a plain object all the same and has to stay one.
FREE_OF_ROS = {
    "efm_ros": [],
    "efm_policy_node": [
        "action_plan",
        "answer",
        "cadence",
        "command_outlet",
        "input_watch",
        "loop_ports",
        "onnx_policy",
        "person",
        "robot_loop",
        "steering",
    ],
    "efm_reward_node": ["reward_model", "robot_stream"],
    "efm_episode_node": ["episode_watch", "ports", "recorder", "run_types", "runner"],
    "efm_bringup": ["config", "efm", "processes", "recipes", "report", "stacks"],
}
ROS = {"rclpy", "efm_ros", "ament_index_python", "builtin_interfaces", "launch", "launch_ros"}
MAY_KNOW_TORCH = {"efm_learner", "efm_bringup"}
# Modules that cannot be imported beside the others, with the package that they miss.
OPTIONAL = {"efm_sim.aloha_world": "gym_aloha"}


def modules(package: str) -> dict[str, Path]:
    """Every module of a package, by its name without the package's."""
    folder = ROOT / "src" / package / package
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every import, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module.split(".")[0]


def knows_ros(name: str) -> bool:
    return name in ROS or name.endswith(("_msgs", "_srvs"))


def ros_free(package: str) -> list[str]:
    """The modules of a package that may not know ROS."""
    if package in FREE_OF_ROS:
        return FREE_OF_ROS[package]
    return [module for module in modules(package) if module not in ONLY_THESE_KNOW_ROS[package]]


def violations(package: str, module: str, source: str) -> list[str]:
    """What a module imports and may not, with the line."""
    found = []
    is_free = module in ros_free(package)
    for line, name in imported(source):
        if name.startswith("efm_") and name not in MAY_IMPORT[package] | {package}:
            found.append(f"line {line}: {package} may import {sorted(MAY_IMPORT[package])}, not {name}")
        if knows_ros(name) and is_free:
            found.append(f"line {line}: {package}.{module} is free of ROS and may not import {name}")
        if name == "torch" and package not in MAY_KNOW_TORCH:
            found.append(f"line {line}: only {sorted(MAY_KNOW_TORCH)} may import torch")
    return found


def test_the_tables_name_every_package_and_only_modules_that_exist():
    packages = {path.parent.name for path in ROOT.glob("src/*/setup.py")}
    assert packages == set(MAY_IMPORT) == set(ONLY_THESE_KNOW_ROS) | set(FREE_OF_ROS)
    for package, named in (ONLY_THESE_KNOW_ROS | FREE_OF_ROS).items():
        assert set(named) <= set(modules(package)), package


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_the_table_allows(package):
    found = [
        f"{path.relative_to(ROOT)} {problem}"
        for module, path in modules(package).items()
        for problem in violations(package, module, path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("package", "module", "source"),
    [
        ("efm_core", "reward", "import rclpy"),
        ("efm_core", "bundle", "def load():\n    from torch import nn"),
        ("efm_policy_node", "node", "from efm_reward_node.node import RewardNode"),
        ("efm_policy_node", "onnx_policy", "from sensor_msgs.msg import Image"),
        ("efm_learner", "practice", "import efm_ros.parameters"),
        ("efm_learner", "practice", "from efm_sim.table import TableWorld"),
    ],
)
def test_the_check_sees_a_wrong_import(package, module, source):
    assert violations(package, module, source)


@pytest.mark.parametrize("package", [package for package in MAY_IMPORT if package != "efm_ros"])
def test_ros_free_modules_never_load_ros(package):
    loaded = load_in_a_new_process(package, ros_free(package))
    assert package in loaded
    assert not {name for name in loaded if knows_ros(name)}


@pytest.mark.parametrize("package", [package for package in MAY_IMPORT if package not in MAY_KNOW_TORCH])
def test_packages_beside_the_learner_never_load_torch(package):
    assert "torch" not in load_in_a_new_process(package, list(modules(package)))


def load_in_a_new_process(package: str, modules: list[str]) -> set[str]:
    """Import modules in a Python of their own; the top-level names that are loaded afterwards."""
    names = [f"{package}.{module}".rstrip(".") for module in modules]
    names = [name for name in names if name not in OPTIONAL or importlib.util.find_spec(OPTIONAL[name])]
    code = "import importlib, json, sys\n"
    code += "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
    code += "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-c", code, json.dumps(names)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    return set(json.loads(finished.stdout.splitlines()[-1]))
