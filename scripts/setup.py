"""Makes this checkout ready to run: `python3 scripts/setup.py`. Every make target calls it first.

On a bare machine ROS 2 Jazzy comes as wheels into `.venv`, and efm_msgs is built into it with plain CMake.
Where `ROS_DISTRO=jazzy` is sourced, no ROS wheels are installed: `.venv` sees the system's packages, and
colcon builds the workspace into `install/`. Either way the Python packages of `src/` are installed editable.

The work is cut into stages. Each stage leaves its fingerprint in `.venv/efm-setup.json` when it is done, so
a second run costs a tenth of a second, a changed interface rebuilds only the messages, and an interrupted run
goes on with the stage it was in. Only the standard library is used, and no package of the stack is imported.
What the machine must have is in setup_machine.py.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from setup_machine import (
    FREE_GB,
    FREE_GB_CUDA,
    GRAPHICS,
    ROOT,
    Machine,
    SetupError,
    check,
    clean_environment,
    dotted,
    install_debian_packages,
    missing_debian_packages,
    say,
)

NETWORK_TROUBLE = re.compile(
    r"name resolution|NameResolutionError|NewConnectionError|Network is unreachable|ConnectTimeout"
    r"|ReadTimeout|Read timed out|ProtocolError|Connection (refused|reset|aborted)|ProxyError|IncompleteRead"
)
# Pip says the second where a constraint of the machine speaks of the same package.
NOT_ON_INDEX = re.compile(r"No matching distribution|ResolutionImpossible")
DISK_TROUBLE = re.compile(r"No space left on device|Errno 28|Disk quota exceeded")


class NotOnIndexError(SetupError):
    """Pip's indexes do not have what was asked for."""


@dataclass(frozen=True)
class Stage:
    """One part of set-up."""

    name: str
    fingerprint: str
    """Changes whenever the stage has to be done again."""
    work: Callable[[], None]
    """Does the stage; raises SetupError."""


class Workshop:
    """The stages, for one checkout and one machine."""

    def __init__(self, root: Path, machine: Machine, lock: int | None = None) -> None:
        """Set up `root`; nothing is touched yet. Commands inherit the descriptor `lock`."""
        self.root = root
        self.inherited = () if lock is None else (lock,)
        self.machine = machine
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.stamp = self.venv / "efm-setup.json"
        self.log = self.venv / "efm-setup.log"
        self.packages = sorted(path.parent for path in root.glob("src/*/setup.py"))

    def stages(self) -> list[Stage]:
        """List the stages in their order; each depends on all before it."""
        interfaces = [path for path in sorted(self.root.glob("src/efm_msgs/**/*")) if path.is_file()]
        metadata = [
            package / name for package in self.packages for name in ("package.xml", "setup.py", "setup.cfg")
        ]
        place = f"{self.root} {self.machine.ros_distro} {dotted(self.machine.python)}"
        plan = [
            ("an empty virtual environment", place, self.make_venv),
            ("packages from PyPI", content(self.requirement_files()), self.install_requirements),
        ]
        packages = ("the packages of src", content(metadata), self.install_packages)
        if self.machine.ros_distro:
            shared = [
                str(path)
                for folder in ("launch", "config")
                for path in sorted(self.root.glob(f"{folder}/**/*"))
            ]
            workspace = content(interfaces) + " ".join(shared)
            plan += [packages, ("the colcon workspace", workspace, self.build_workspace)]
        else:
            plan += [("message types", content(interfaces), self.build_messages), packages]
        stages, so_far = [], ""
        for name, depends, work in plan:
            so_far = hashlib.sha256((so_far + depends).encode()).hexdigest()
            stages.append(Stage(name, so_far, work))
        return stages

    def requirement_files(self) -> list[Path]:
        """List the requirement files that this machine needs."""
        names = ["torch", "run", "dev", "beside-ros" if self.machine.ros_distro else "ros"]
        return [self.root / "requirements" / f"{name}.txt" for name in names]

    def done(self) -> dict[str, str]:
        """Read the fingerprints of the stages that are done."""
        try:
            return json.loads(self.stamp.read_text()) if self.python.exists() else {}
        except (FileNotFoundError, ValueError):
            return {}

    def to_do(self) -> list[Stage]:
        """List the stages that are not done, in order."""
        done = self.done()
        return [stage for stage in self.stages() if done.get(stage.name) != stage.fingerprint]

    def begin(self, stage: Stage) -> None:
        """Forget that a stage and those after it were done, since it is about to change what they left."""
        if self.venv.exists():
            self.record(self.done_before(stage))
            self.sweep()

    def finish(self, stage: Stage) -> None:
        """Record that a stage is done; later stages have to be done again."""
        self.record({**self.done_before(stage), stage.name: stage.fingerprint})

    def done_before(self, stage: Stage) -> dict[str, str]:
        """Read the fingerprints of the done stages that come before one."""
        names = [each.name for each in self.stages()]
        return {name: mark for name, mark in self.done().items() if name in names[: names.index(stage.name)]}

    def record(self, done: dict[str, str]) -> None:
        """Write down which stages are done, in one step."""
        part = self.stamp.with_suffix(".part")
        part.write_text(json.dumps(done, indent=2) + "\n")
        part.replace(self.stamp)

    def sweep(self) -> None:
        """Remove what a pip or a build that was killed has left half done; pip would stumble over it."""
        for folder in self.venv.glob("lib/python*/site-packages/*"):
            nameless = folder.suffix == ".dist-info" and not (folder / "METADATA").exists()
            nameless |= (
                folder.suffix == ".egg-info" and folder.is_dir() and not (folder / "PKG-INFO").exists()
            )
            if nameless or folder.name.startswith("~"):
                shutil.rmtree(folder, ignore_errors=True)

    def make_venv(self) -> None:
        """Make `.venv`, over whatever an interrupted or older set-up has left there."""
        python = getattr(sys, "_base_executable", sys.executable)
        options = ["--system-site-packages"] if self.machine.ros_distro else []
        if self.venv.exists():
            say(f"replacing {self.venv}: it was made for another Python or place, or it was never finished")
            shutil.rmtree(self.venv)
        self.venv.mkdir()
        if self.call([python, "-m", "venv", *options, str(self.venv)], clean_environment()) != 0:
            raise SetupError(
                f"`{python} -m venv` failed.\n{self.tail()}\n"
                "Next: on Debian and Ubuntu `apt-get install python3-venv`, then start again."
            )
        self.pip("install", "--upgrade", "pip>=24,<26")

    def install_requirements(self) -> None:
        """Install everything that comes from PyPI in one call, so that one resolver sees all of it.

        Python compiles what is imported when it first is; to compile all of it here would take a minute.
        """
        torch = self.torch_without_cuda()
        files = [option for path in self.requirement_files() for option in ("-r", str(path))]
        self.pip("install", "--no-compile", *files, *torch)
        self.check_graphics()

    def torch_without_cuda(self) -> list[str]:
        """Ask for torch's CPU build where there is no GPU and pip's indexes have one."""
        if self.machine.has_gpu:
            return []
        pins = (self.root / "requirements" / "torch.txt").read_text().split()
        cpu = next(word for word in pins if word.startswith("torch==")) + "+cpu"
        with contextlib.suppress(NotOnIndexError):
            self.pip("install", "--dry-run", "--no-deps", cpu)
            return [cpu]
        advice = "name PyTorch's index of CPU builds in PIP_EXTRA_INDEX_URL"
        if self.machine.free_gb < FREE_GB_CUDA:
            raise SetupError(
                f"pip finds no {cpu}; the general build brings CUDA and needs {FREE_GB_CUDA} GB, "
                f"{self.machine.free_gb:.1f} GB are free.\nNext: {advice}."
            )
        say(
            f"pip finds no {cpu}, so the general build comes, with several GB of CUDA for nothing.\n"
            f"  To avoid that, stop here and {advice}."
        )
        return []

    def check_graphics(self) -> None:
        """Make MuJoCo open a drawing context, since libraries can be there and still not work together."""
        probe = "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); context.free()"
        for backend in ("egl", "osmesa"):
            environment = {**self.environment(), "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
            if self.call([str(self.python), "-c", probe], environment) == 0:
                return
        raise SetupError(
            f"MuJoCo can draw neither through EGL nor through OSMesa; the end of {self.log} says why.\n"
            f"Next: `apt-get install {' '.join(GRAPHICS)}`, or libosmesa6, then start again."
        )

    def build_messages(self) -> None:
        """Build efm_msgs with plain CMake into `.venv`, after which nothing has to be sourced.

        The C++ half, most of the work, is left out: only tools such as `ros2 bag` load it. colcon builds it.
        """
        self.point_wheels_at_this_python()
        build = self.venv / "efm_msgs_build"
        manifest = build / "install_manifest.txt"
        before = set(manifest.read_text().splitlines()) if manifest.exists() else set()
        generated = {path.stem for path in build.glob("rosidl_adapter/efm_msgs/*/*.idl")}
        if not generated <= {path.stem for path in self.root.glob("src/efm_msgs/*/*")}:
            shutil.rmtree(build)  # CMake would install what it once made from an interface that is gone
        environment = {
            **self.environment(),
            "AMENT_PREFIX_PATH": str(self.venv),
            "CMAKE_PREFIX_PATH": str(self.venv),
        }
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF", f"-DCMAKE_INSTALL_PREFIX={self.venv}"]
        options += [f"-DPython3_EXECUTABLE={self.python}", "-DEFM_CPP=OFF"]
        source = str(self.root / "src" / "efm_msgs")
        for command in (
            ["cmake", "-G", "Ninja", "-S", source, "-B", str(build), *options],
            ["cmake", "--build", str(build)],
            ["cmake", "--install", str(build)],
        ):
            if self.call(command, environment) != 0:
                raise SetupError(
                    f"efm_msgs was not built: `{' '.join(command[:3])} …` failed.\n{self.tail()}\n"
                    f"Next: the whole log is {self.log}."
                )
        for gone in before - set(manifest.read_text().splitlines()):
            Path(gone).unlink(missing_ok=True)

    def point_wheels_at_this_python(self) -> None:
        """Replace the include folders of the machine that built the ROS wheels by those of this one."""
        ask = "import numpy, sysconfig; print(sysconfig.get_path('include')); print(numpy.get_include())"
        found = subprocess.run(
            [str(self.python), "-c", ask], capture_output=True, text=True, env=self.environment()
        )
        include, numpy_include = found.stdout.split("\n")[:2]
        for path in (self.venv / "share").glob("**/*.cmake"):
            text = path.read_text()
            fixed = re.sub(r"/opt/python/[^/;\"]+/lib/[^;\")]*/numpy/_core/include", numpy_include, text)
            fixed = re.sub(r"/opt/python/[^/;\"]+/include/python3[0-9.]*t?", include, fixed)
            if fixed != text:
                path.write_text(fixed)

    def build_workspace(self) -> None:
        """Build everything into `install/` with colcon, run by the virtual environment's Python."""
        command = [str(self.python), "-m", "colcon", "build", "--symlink-install"]
        command += ["--cmake-args", f"-DPython3_EXECUTABLE={self.python}", "-DBUILD_TESTING=OFF"]
        if self.call(command, self.environment()) != 0:
            raise SetupError(
                f"`colcon build` failed.\n{self.tail()}\nNext: colcon's own logs are in log/latest_build."
            )

    def install_packages(self) -> None:
        """Install the Python packages of src editable, so that a changed source needs no set-up."""
        editable = [option for package in self.packages for option in ("-e", str(package))]
        how = ["--use-pep517", "--no-deps", "--no-build-isolation"]
        how += ["--config-settings", "editable_mode=compat"]
        if editable:
            self.pip("install", *how, *editable)

    def pip(self, *arguments: str) -> None:
        """Run pip in `.venv`, once more after trouble with the network: what came first is in its cache."""
        command = [str(self.python), "-m", "pip", *arguments, "--no-input", "--progress-bar", "off"]
        for attempt in (1, 2):
            if self.call(command, self.environment()) == 0:
                return
            tail = self.tail()
            if not NETWORK_TROUBLE.search(tail):
                failed = (
                    f"`pip {' '.join(arguments[:2])} …` failed.\n{tail}\nNext: the whole log is {self.log}"
                )
                if NOT_ON_INDEX.search(tail):
                    raise NotOnIndexError(f"{failed}; `pip config list` tells which indexes pip asks.")
                raise SetupError(f"{failed}.")
            if attempt == 1:
                say("the network failed; once more")
        raise SetupError(
            f"pip does not reach its package index.\n{tail}\n"
            "Next: check the network and `pip config list`, then start again; what is done stays."
        )

    def call(self, command: list[str], environment: dict[str, str]) -> int:
        """Run a command with its output in the log, and return its exit status."""
        with self.log.open("a") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            return subprocess.call(
                command,
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=self.inherited,
            )

    def tail(self) -> str:
        """Return the end of what the command that failed wrote; raises where that was for want of disk."""
        last = self.log.read_text(errors="replace").rsplit("\n$ ", 1)[-1]
        raise_if_disk_is_full(end := "\n".join(f"  | {line}" for line in last.splitlines()[-25:]))
        return end

    def environment(self) -> dict[str, str]:
        """Return the environment for commands inside `.venv`."""
        environment = clean_environment()
        environment["PATH"] = f"{self.venv / 'bin'}{os.pathsep}{environment.get('PATH', os.defpath)}"
        environment["VIRTUAL_ENV"] = str(self.venv)
        environment["PIP_USER"] = "0"  # a user's `user = true` would install beside the virtual environment
        environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        environment.setdefault("PIP_DEFAULT_TIMEOUT", "60")
        return environment


def raise_if_disk_is_full(said: str) -> None:
    """Tell a full disk by what a failed command, or an OSError, said."""
    if DISK_TROUBLE.search(said):
        raise SetupError(
            f"the disk is full.\n{said}\nNext: make {FREE_GB} GB of room and start again; what is done stays."
        )


def content(paths: list[Path]) -> str:
    """Hash names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.parent.name}/{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def set_up(root: Path) -> None:
    """Do every stage that is not done; returns at once when there is none."""
    # Held until this process has ended, and a pip or a build that outlives it.
    lock = os.open(root / "scripts", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another set-up of this checkout")
        fcntl.flock(lock, fcntl.LOCK_EX)
    machine = Machine.look()
    workshop = Workshop(root, machine, lock)
    if not workshop.to_do():
        return
    check(machine)
    install_debian_packages(missing_debian_packages(), machine.can_apt)
    still = missing_debian_packages()
    if still:
        raise SetupError(f"apt-get has installed {', '.join(still)}, and yet: {'; '.join(still.values())}.")
    for stage in workshop.to_do():
        say(f"{stage.name} …")
        began = time.monotonic()
        workshop.begin(stage)
        stage.work()
        workshop.finish(stage)
        say(f"{stage.name}: done in {time.monotonic() - began:.0f} s")


def main() -> int:
    """Set up, or say in plain words why not."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    try:
        try:
            set_up(ROOT)
        except OSError as error:  # Also the log and the stamps need the disk.
            raise_if_disk_is_full(str(error))
            raise
    except SetupError as error:
        print(f"setup: cannot go on: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
