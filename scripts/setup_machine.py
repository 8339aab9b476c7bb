"""What set-up needs of the machine, and how it says what is missing: Python, ROS 2, disk, Debian packages.

The stages of set-up are in setup.py. Only the standard library is used.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
FREE_GB = 5  # what a fresh .venv (2.5 GB) and pip's downloads take, with some room
FREE_GB_CUDA = 15  # the same where only a CUDA build of torch can be had
GRAPHICS = ["libegl1", "libgl1-mesa-dri", "libgl1", "libgles2", "libopengl0"]


class SetupError(Exception):
    """The machine or a stage is not as needed; the text says what was expected, found, and what to do."""


@dataclass(frozen=True)
class Machine:
    """What set-up has to know about the machine; the tests make their own."""

    python: tuple[int, int]
    """Version of the Python that runs set-up and that `.venv` is made of."""
    ros_distro: str
    """Name of the sourced ROS 2 distribution; empty on a bare machine."""
    sees_rclpy: bool
    """Whether that Python can import rclpy without a virtual environment."""
    free_gb: float
    """Free space where `.venv` is made, in GB."""
    can_apt: bool
    """Whether set-up may install Debian packages itself (root, and there is apt-get)."""
    has_gpu: bool
    """Whether an NVIDIA driver is loaded."""

    @classmethod
    def look(cls) -> Machine:
        """Describe the machine that this runs on."""
        return cls(
            python=sys.version_info[:2],
            ros_distro=os.environ.get("ROS_DISTRO", ""),
            sees_rclpy=importlib.util.find_spec("rclpy") is not None,
            free_gb=min(shutil.disk_usage(place).free for place in (ROOT, tempfile.gettempdir())) / 1e9,
            can_apt=os.geteuid() == 0 and shutil.which("apt-get") is not None,
            has_gpu=Path("/proc/driver/nvidia/version").exists(),
        )


def missing_debian_packages() -> dict[str, str]:
    """Name the Debian packages that are needed and not installed, in whatever form, with the reason."""
    missing = {}
    if importlib.util.find_spec("ensurepip") is None:
        missing["python3-venv"] = "this Python cannot make virtual environments"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing["python3-dev"] = (
            f"there is no Python.h in {sysconfig.get_path('include')}; efm_msgs is compiled against it"
        )
    compilers = os.environ.get("CXX"), "c++", "g++", "clang++"
    if not any(compiler and shutil.which(compiler) for compiler in compilers):
        missing["g++"] = "there is no C++ compiler on PATH; efm_msgs is compiled"
    found = {name for name in ("EGL", "GL", "OpenGL", "OSMesa") if ctypes.util.find_library(name)}
    if "OSMesa" not in found and not ("EGL" in found and found & {"GL", "OpenGL"}):
        missing.update(
            dict.fromkeys(GRAPHICS, "MuJoCo draws without a screen through EGL (libosmesa6 would do as well)")
        )
    return missing


def check(machine: Machine) -> None:
    """Refuse a machine that the stack cannot run on; a missing Debian package is not a reason yet."""
    if not OLDEST_PYTHON <= machine.python <= NEWEST_PYTHON:
        raise SetupError(
            f"expected Python {dotted(OLDEST_PYTHON)} to {dotted(NEWEST_PYTHON)}, "
            f"found {dotted(machine.python)} ({sys.executable}).\n"
            "Next: choose another one, for example `make test PYTHON=python3.12`."
        )
    if machine.ros_distro not in ("", "jazzy"):
        raise SetupError(
            f"expected ROS 2 jazzy or none at all, found ROS_DISTRO={machine.ros_distro} in this shell.\n"
            "Next: `source /opt/ros/jazzy/setup.bash` in a new shell; or use a shell in which no ROS is "
            "sourced: Jazzy then comes from PyPI."
        )
    if machine.ros_distro and not machine.sees_rclpy:
        raise SetupError(
            f"ROS 2 {machine.ros_distro} is sourced, but its rclpy is not found by {sys.executable} "
            f"(Python {dotted(machine.python)}).\nNext: use the Python that it was built for, "
            "`make test PYTHON=/usr/bin/python3`; if there is no rclpy, `apt-get install ros-jazzy-ros-base`."
        )
    if machine.free_gb < FREE_GB:
        raise SetupError(
            f"expected {FREE_GB} GB of free disk space for .venv and pip's downloads, "
            f"found {machine.free_gb:.1f} GB (the lesser of {ROOT} and {tempfile.gettempdir()}).\n"
            "Next: make room, or set TMPDIR to a larger disk."
        )


def dotted(version: tuple[int, int]) -> str:
    """Write a version as people do."""
    return ".".join(str(part) for part in version)


def install_debian_packages(
    missing: dict[str, str], may_install: bool, run: Callable = subprocess.run
) -> None:
    """Install Debian packages where that is allowed, or say what to install.

    Args:
        missing: names of packages, each with the reason why it is needed.
        may_install: whether set-up may call apt-get itself.
        run: runs a command; called like `subprocess.run`.
    """
    if not missing:
        return
    reasons = "\n".join(f"  {package}: {reason}" for package, reason in missing.items())
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not may_install:
        raise SetupError(
            f"these Debian or Ubuntu packages are missing:\n{reasons}\nNext: `sudo {' '.join(command)}`."
        )
    say(f"installing Debian packages, because set-up runs as root:\n{reasons}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update"], command):
        if run(step, stdin=subprocess.DEVNULL, env=environment).returncode != 0:
            raise SetupError(
                f"`{' '.join(step)}` failed; what it said is above.\nNext: run it by hand, then start again."
            )


def clean_environment() -> dict[str, str]:
    """Return this process's environment without the traces of another environment of ROS wheels.

    Such wheels restart Python once with LD_LIBRARY_PATH set; an inherited guard variable would stop ours.
    """
    environment = dict(os.environ)
    if environment.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None):
        environment.pop("LD_LIBRARY_PATH", None)
    return environment


def say(text: str) -> None:
    """Tell the user what goes on."""
    print(f"setup: {text}", flush=True)
