"""Set-up refuses in plain words what it cannot work with, does only what changed, and goes on after a cut."""

import errno
import fcntl
import importlib.util
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_setup():
    sys.path.insert(0, str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("efm_setup", ROOT / "scripts" / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["efm_setup"] = module
    spec.loader.exec_module(module)
    return module


setup = load_setup()
setup_machine = sys.modules["setup_machine"]
BARE = setup.Machine(
    python=(3, 11), ros_distro="", sees_rclpy=False, free_gb=50.0, can_apt=False, has_gpu=False
)
ROBOT = replace(BARE, python=(3, 12), ros_distro="jazzy", sees_rclpy=True)


@pytest.fixture
def checkout(tmp_path):
    """A small checkout: requirements, one interface, one package, and a Python that does as it is told."""
    files = {
        "requirements/torch.txt": "# Why.\ntorch==2.13.0\n",
        "requirements/run.txt": "numpy\n",
        "requirements/dev.txt": "pytest\n",
        "requirements/ros.txt": "ros-jazzy-rclpy\n",
        "requirements/beside-ros.txt": "numpy<2\n",
        "src/efm_msgs/msg/Step.msg": "uint8 step\n",
        "src/efm_core/setup.py": "",
        "src/efm_core/setup.cfg": "",
        "src/efm_core/package.xml": "",
        "launch/robot.launch.py": "",
        "scripts/setup.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def give_python(root: Path, script: str) -> None:
    """Put a shell script where the virtual environment's Python would be."""
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {root}/calls\n{script}\n')
    python.chmod(0o755)


def names(stages) -> list[str]:
    return [stage.name for stage in stages]


@pytest.mark.parametrize(
    "machine", [BARE, ROBOT, replace(BARE, python=(3, 10)), replace(BARE, python=(3, 13))]
)
def test_a_machine_that_will_do_is_accepted(machine):
    setup.check(machine)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (replace(BARE, python=(3, 9)), ["expected Python 3.10 to 3.13", "found 3.9", "PYTHON=python3.12"]),
        (replace(BARE, python=(3, 14)), ["found 3.14"]),
        (replace(BARE, ros_distro="humble"), ["expected ROS 2 jazzy", "ROS_DISTRO=humble", "new shell"]),
        (replace(ROBOT, sees_rclpy=False), ["rclpy is not found", "PYTHON=/usr/bin/python3"]),
        (replace(BARE, free_gb=1.25), ["expected 5 GB", "found 1.2 GB", "TMPDIR"]),
    ],
)
def test_a_machine_that_will_not_do_is_refused_in_plain_words(machine, words):
    with pytest.raises(setup.SetupError) as refused:
        setup.check(machine)
    for each in words:
        assert each in str(refused.value)
    assert "Next: " in str(refused.value)


def test_missing_debian_packages_are_named_to_a_user_who_may_not_install_them():
    def run(*_, **__):
        raise AssertionError("nothing may be run")

    with pytest.raises(
        setup.SetupError, match=r"g\+\+: no compiler(.|\n)*sudo apt-get install .* g\+\+ libegl1"
    ):
        setup.install_debian_packages({"g++": "no compiler", "libegl1": "no EGL"}, may_install=False, run=run)


def test_root_installs_missing_debian_packages_and_says_so(capsys):
    ran = []

    def run(command, **_):
        ran.append(command)
        return SimpleNamespace(returncode=0)

    setup.install_debian_packages({"libegl1": "MuJoCo draws with it"}, may_install=True, run=run)
    assert ran[0] == ["apt-get", "update"]
    assert ran[1][:2] == ["apt-get", "install"] and ran[1][-1] == "libegl1"
    assert "libegl1: MuJoCo draws with it" in capsys.readouterr().out


def test_an_apt_get_that_fails_stops_set_up():
    with pytest.raises(setup.SetupError, match="`apt-get update` failed"):
        setup.install_debian_packages(
            {"g++": "-"}, True, run=lambda *_, **__: SimpleNamespace(returncode=100)
        )


def test_a_machine_without_compiler_or_drawing_libraries_is_noticed(monkeypatch):
    monkeypatch.setattr(setup_machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(setup_machine.ctypes.util, "find_library", lambda name: None)
    missing = setup.missing_debian_packages()
    assert "g++" in missing and set(setup.GRAPHICS) <= set(missing)


def test_software_drawing_through_osmesa_is_enough(monkeypatch):
    monkeypatch.setattr(
        setup_machine.ctypes.util, "find_library", lambda name: "lib" if name == "OSMesa" else None
    )
    assert not set(setup.GRAPHICS) & set(setup.missing_debian_packages())


def test_a_fresh_checkout_has_everything_to_do(checkout):
    bare, robot = setup.Workshop(checkout, BARE), setup.Workshop(checkout, ROBOT)
    assert "message types" in names(bare.to_do())
    assert "the colcon workspace" in names(robot.to_do())
    assert checkout / "requirements/ros.txt" in bare.requirement_files()
    assert checkout / "requirements/ros.txt" not in robot.requirement_files()


def finished(root: Path, machine=BARE):
    """A workshop in which every stage is done."""
    give_python(root, "exit 0")
    workshop = setup.Workshop(root, machine)
    for stage in workshop.stages():
        workshop.finish(stage)
    return workshop


@pytest.mark.parametrize("machine", [BARE, ROBOT])
def test_a_second_run_has_nothing_to_do(checkout, machine):
    assert finished(checkout, machine).to_do() == []


@pytest.mark.parametrize(
    ("changed", "to_do"),
    [
        ("src/efm_msgs/msg/Step.msg", ["message types", "the packages of src"]),
        ("src/efm_core/package.xml", ["the packages of src"]),
        ("requirements/run.txt", ["packages from PyPI", "message types", "the packages of src"]),
        ("launch/robot.launch.py", []),
    ],
)
def test_a_change_brings_back_only_what_depends_on_it(checkout, changed, to_do):
    workshop = finished(checkout)
    (checkout / changed).write_text("changed")
    assert names(workshop.to_do()) == to_do


def test_another_python_version_starts_from_the_virtual_environment(checkout):
    finished(checkout)
    other = setup.Workshop(checkout, replace(BARE, python=(3, 12)))
    assert names(other.to_do()) == names(other.stages())


def test_an_interrupted_set_up_goes_on_with_the_stage_it_was_in(checkout):
    give_python(checkout, "exit 0")
    workshop = setup.Workshop(checkout, BARE)
    workshop.finish(workshop.stages()[0])
    assert names(workshop.to_do()) == names(workshop.stages()[1:])


@pytest.mark.parametrize("damage", ["{", ""])
def test_a_damaged_stamp_means_that_nothing_is_done(checkout, damage):
    workshop = finished(checkout)
    workshop.stamp.write_text(damage)
    assert names(workshop.to_do()) == names(workshop.stages())


def test_a_stage_that_was_begun_is_due_even_when_its_change_is_taken_back(checkout):
    """A build that was killed had removed the messages, and the stamp of the build before still held."""
    workshop = finished(checkout)
    messages = next(stage for stage in workshop.stages() if stage.name == "message types")
    workshop.begin(messages)
    assert names(workshop.to_do()) == ["message types", "the packages of src"]


@pytest.mark.parametrize("stage", ["make_venv", "install_packages"])
def test_a_command_that_outlives_set_up_keeps_the_next_one_waiting(checkout, monkeypatch, stage):
    """A set-up was killed, its venv or pip went on, and the next set-up began beside it."""
    lock = os.open(checkout / "scripts", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    give_python(checkout, f"sleep 600 & echo $! > {checkout}/sleeper; exit 1")
    python = (checkout / ".venv/bin/python").rename(checkout / "python3")
    if stage == "make_venv":
        monkeypatch.setattr(sys, "_base_executable", str(python))
    else:
        (checkout / ".venv/bin/python").symlink_to(python)
    with pytest.raises(setup.SetupError):
        getattr(setup.Workshop(checkout, BARE, lock), stage)()
    os.close(lock)
    other = os.open(checkout / "scripts", os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(int((checkout / "sleeper").read_text()), signal.SIGKILL)
    fcntl.flock(other, fcntl.LOCK_EX)
    os.close(other)


def test_what_a_killed_pip_left_half_done_is_removed(checkout):
    """Pip refuses to work beside a package without metadata."""
    workshop = finished(checkout)
    packages = checkout / ".venv/lib/python3.11/site-packages"
    for name in ("whole-1.0.dist-info/METADATA", "half-1.0.dist-info/RECORD", "~orch/__init__.py"):
        (packages / name).parent.mkdir(parents=True)
        (packages / name).touch()
    workshop.begin(workshop.stages()[1])
    assert [path.name for path in packages.iterdir()] == ["whole-1.0.dist-info"]


def test_a_stage_done_again_makes_later_ones_due(checkout):
    workshop = finished(checkout)
    workshop.finish(workshop.stages()[1])
    assert list(json.loads(workshop.stamp.read_text())) == names(workshop.stages()[:2])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Failed to establish: [Errno -3] Temporary failure in name resolution",
            "does not reach its package index",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("error: metadata-generation-failed", "`pip install .* failed"),
    ],
)
def test_a_failure_of_pip_is_told_by_its_cause(checkout, said, words):
    give_python(checkout, f"echo '{said}'; exit 1")
    with pytest.raises(setup.SetupError, match=words) as refused:
        setup.Workshop(checkout, BARE).pip("install", "numpy")
    assert said in str(refused.value) and "Next: " in str(refused.value)


def test_a_disk_that_is_full_while_messages_are_built_is_told(checkout, monkeypatch):
    give_python(checkout, "printf '/include\\n/numpy\\n'")
    workshop = setup.Workshop(checkout, BARE)
    workshop.log.write_text("\n$ cmake --build\nfatal error: error writing: No space left on device\n")
    monkeypatch.setattr(workshop, "call", lambda *_: 1)
    with pytest.raises(setup.SetupError, match="the disk is full"):
        workshop.build_messages()


def test_a_disk_that_does_not_even_take_the_log_is_told(monkeypatch, capsys):
    def set_up(_root):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(setup, "set_up", set_up)
    monkeypatch.setattr(sys, "argv", ["setup.py"])
    assert setup.main() == 1
    assert "the disk is full" in capsys.readouterr().err


def test_pip_is_called_once_more_when_the_network_fails(checkout):
    give_python(
        checkout, f"test -e {checkout}/again && exit 0; touch {checkout}/again; echo 'Read timed out'; exit 1"
    )
    setup.Workshop(checkout, BARE).pip("install", "numpy")
    assert len((checkout / "calls").read_text().splitlines()) == 2


def test_a_machine_without_gpu_gets_the_cpu_build_of_torch_where_there_is_one(checkout):
    give_python(checkout, "exit 0")
    assert setup.Workshop(checkout, BARE).torch_without_cuda() == ["torch==2.13.0+cpu"]
    assert setup.Workshop(checkout, replace(BARE, has_gpu=True)).torch_without_cuda() == []


@pytest.mark.parametrize(
    "said",
    ["ERROR: No matching distribution found for torch==2.13.0+cpu", "ERROR: ResolutionImpossible: see"],
)
def test_a_cuda_build_is_not_pulled_onto_a_small_disk(checkout, capsys, said):
    give_python(checkout, f"echo '{said}'; exit 1")
    with pytest.raises(setup.SetupError, match="PIP_EXTRA_INDEX_URL"):
        setup.Workshop(checkout, replace(BARE, free_gb=8.0)).torch_without_cuda()
    assert setup.Workshop(checkout, BARE).torch_without_cuda() == []
    assert "several GB of CUDA" in capsys.readouterr().out


def test_traces_of_another_environment_of_ros_wheels_are_dropped_together(monkeypatch):
    monkeypatch.setenv("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "1")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    assert not {"_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH"} & set(setup.clean_environment())


def test_a_library_path_of_the_user_is_kept(monkeypatch):
    monkeypatch.delenv("_ROS_WHEELS_BOOTSTRAP_COMPLETE", raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/own")
    assert setup.clean_environment()["LD_LIBRARY_PATH"] == "/own"


def test_include_folders_of_the_wheels_builder_are_replaced(checkout):
    give_python(checkout, "printf '/include/here\\n/numpy/here\\n'")
    exported = checkout / ".venv/share/std_msgs/cmake/export.cmake"
    exported.parent.mkdir(parents=True)
    old = "/opt/python/cp312-cp312/"
    exported.write_text(
        f'"{old}include/python3.12;{old}lib/python3.12/site-packages/numpy/_core/include;keep"'
    )
    setup.Workshop(checkout, BARE).point_wheels_at_this_python()
    assert exported.read_text() == '"/include/here;/numpy/here;keep"'
