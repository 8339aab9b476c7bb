"""Rendering finds a back end by itself, in a process that has no display and no settings."""

import os
import subprocess
import sys

import pytest

RENDER = "from efm_sim.table import TableWorld; print(TableWorld().reset(0).images['top'].std() > 10)"
SETTINGS = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")


@pytest.mark.parametrize("first", ["", "import mujoco; "])
def test_pictures_are_made_without_settings_even_when_mujoco_was_imported_first(first):
    # Without the choice MuJoCo takes GLFW and the first picture aborts the process.
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", first + RENDER], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"
    assert done.stderr == ""  # nothing is left open at exit
