"""Each package.xml is valid, says the same version and licence, and names exactly what its code imports."""

import ast
import re
import sys
from pathlib import Path

import pytest
from catkin_pkg.package import parse_package

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {path.parent.name: path.parent for path in sorted(ROOT.glob("src/*/package.xml"))}
PYTHON_PACKAGES = [name for name, folder in PACKAGES.items() if (folder / "setup.py").exists()]

# Imports that rosdep knows under another name.
ROSDEP_KEYS = {"numpy": "python3-numpy", "cv2": "python3-opencv", "yaml": "python3-yaml"}
# Imports that come from PyPI only, with the requirement that brings them. No package.xml can name them.
PIP_ONLY = {
    "accelerate": "accelerate",
    "av": "av",
    "gymnasium": "gymnasium",
    "matplotlib": "matplotlib",
    "mcap": "mcap",
    "mcap_ros2": "mcap-ros2-support",
    "metaworld": "metaworld",
    "mujoco": "mujoco",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "peft": "peft",
    "pyarrow": "pyarrow",
    "rich": "rich",
    "rosbags": "rosbags",
    "safetensors": "safetensors",
    "tensorboard": "tensorboard",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "zstandard": "zstandard",
}
# Worlds whose packages cannot be installed beside the others; their modules say what to install.
OPTIONAL = {"gym_aloha"}
# What efm_bringup needs without importing it: the nodes that its stacks and launch files start.
STARTED = {
    "efm_episode_node",
    "efm_learner",
    "efm_policy_node",
    "efm_reward_node",
    "efm_sim",
    "launch",
    "launch_ros",
    "rviz2",
}


def imports(name: str) -> set[str]:
    """Top-level names that the code of a package imports, without the standard library and itself."""
    found = set()
    for path in (PACKAGES[name] / name).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {name} - OPTIONAL


def declared(name: str) -> set[str]:
    package = parse_package(str(PACKAGES[name]))
    return {dependency.name for dependency in package.exec_depends}


@pytest.mark.parametrize("name", PACKAGES)
def test_package_xml_is_valid(name):
    warnings: list[str] = []
    package = parse_package(str(PACKAGES[name]), warnings=warnings)
    assert package.name == name
    assert package.package_format == 3
    assert warnings == []


def test_version_and_licence_are_the_same_everywhere():
    packages = [parse_package(str(folder)) for folder in PACKAGES.values()]
    assert len({package.version for package in packages}) == 1
    assert {tuple(package.licenses) for package in packages} == {("Apache-2.0",)}
    assert "Apache License" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("name", PYTHON_PACKAGES)
def test_setup_py_repeats_nothing_of_package_xml(name):
    text = (PACKAGES[name] / "setup.py").read_text()
    package = parse_package(str(PACKAGES[name]))
    for fact in (package.version, package.licenses[0], package.description, package.maintainers[0].email):
        assert fact not in text


@pytest.mark.parametrize("name", PYTHON_PACKAGES)
def test_package_xml_names_what_the_code_imports(name):
    needed = {ROSDEP_KEYS.get(each, each) for each in imports(name) if each not in PIP_ONLY}
    assert needed - declared(name) == set(), "imported and not in package.xml"
    unused = declared(name) - needed - (STARTED if name == "efm_bringup" else set())
    assert unused == set(), "in package.xml and not imported"


def test_every_import_from_pypi_is_required():
    required = {
        re.match(r"[A-Za-z0-9_.-]+", line).group()
        for path in (ROOT / "requirements").glob("*.txt")
        for line in path.read_text().splitlines()
        if line and not line.startswith("#")
    }
    assert {PIP_ONLY[each] for name in PYTHON_PACKAGES for each in imports(name) & set(PIP_ONLY)} <= required


@pytest.mark.parametrize("name", PYTHON_PACKAGES)
def test_an_entry_point_leads_to_a_function(name):
    for module, function in re.findall(r"= *([\w.]+):(\w+)\"", (PACKAGES[name] / "setup.py").read_text()):
        tree = ast.parse((PACKAGES[name] / f"{module.replace('.', '/')}.py").read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_cmake_lists_every_interface():
    folder = PACKAGES["efm_msgs"]
    listed = re.findall(
        r"^  ((?:msg|srv|action)/\w+\.\w+)$", (folder / "CMakeLists.txt").read_text(), re.MULTILINE
    )
    there = [
        str(path.relative_to(folder))
        for kind in ("msg", "srv", "action")
        for path in sorted(folder.glob(f"{kind}/*"))
    ]
    assert listed == there
