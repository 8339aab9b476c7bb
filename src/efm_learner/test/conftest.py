"""Lets the tests of this package import the helpers that lie beside them, and keeps torch to one thread."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """A policy, a reward and a verifier for the point mass, untrained."""
    import practised

    return practised.bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def exporter():
    """Traces the policy once for all tests."""
    from efm_learner.export import OnnxExporter

    return OnnxExporter("policy")


@pytest.fixture
def start(tmp_path, bundles, exporter):
    """Opens the run in tmp_path/run; an earlier one is closed first, as a new process would find it."""
    from practised import TWO_EPISODES

    from efm_learner.practice_run import PracticeRun

    opened: list[PracticeRun] = []

    def start(settings=TWO_EPISODES, folder="run", **changes):
        for run in opened:
            run.close()
        run = PracticeRun(tmp_path / folder, **{**bundles, **changes}, settings=settings, exporter=exporter)
        opened.append(run)
        return run

    yield start
    for run in opened:
        run.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB, where this process may mount one."""
    path = tmp_path / "run"
    path.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)
