"""Chooses a rendering back end that needs no display; importing this is enough.

A set MUJOCO_GL is respected. Otherwise, on Linux, EGL is taken where its library is found, then OSMesa.
Software rendering is told to use one thread: a picture of a few thousand pixels gains nothing from more.
"""

from __future__ import annotations

import ctypes.util
import importlib
import os
import sys

INSTALL_HINT = (
    "rendering without a display needs EGL or OSMesa; on Debian and Ubuntu: "
    "apt-get install libegl1 libgl1-mesa-dri libgl1 libgles2 libopengl0 (or libosmesa6). "
    "MUJOCO_GL=egl|osmesa|glfw chooses by hand."
)


def choose_gl() -> str:
    """Sets MUJOCO_GL, PYOPENGL_PLATFORM and LP_NUM_THREADS where unset; returns the chosen back end.

    Raises:
        ImportError: No back end was set and none is installed; the message says what to install.
    """
    os.environ.setdefault("LP_NUM_THREADS", "1")
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    if not chosen and sys.platform == "linux":
        if ctypes.util.find_library("EGL"):
            chosen = "egl"
        elif ctypes.util.find_library("OSMesa"):
            chosen = "osmesa"
        else:
            raise ImportError(INSTALL_HINT)
        os.environ["MUJOCO_GL"] = chosen
        os.environ.setdefault("PYOPENGL_PLATFORM", chosen)
        # MuJoCo reads the variable once, when it is imported; if that was earlier, it must read it again, or
        # its first picture ends the process.
        if "mujoco.gl_context" in sys.modules:
            importlib.reload(sys.modules["mujoco.gl_context"])
    elif chosen in ("egl", "osmesa"):
        os.environ.setdefault("PYOPENGL_PLATFORM", chosen)
    return chosen


choose_gl()
