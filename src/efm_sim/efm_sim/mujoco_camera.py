"""Cheap pictures from MuJoCo: small, without shadows, reflections or anti-aliasing, without a display.

The scene's own quality settings (`offsamples`, shadow maps) are the caller's: they belong to the model.
"""

from __future__ import annotations

import atexit
import functools
import weakref

import numpy as np

from efm_sim import headless_gl

import mujoco  # isort: skip, after the back end is chosen

_open: weakref.WeakSet[MujocoCamera] = weakref.WeakSet()


class MujocoCamera:
    """Renders one camera of one model; the context belongs to the thread of the first `render`.

    Args:
        model: The model.
        height: Pixels.
        width: Pixels.
        camera: A named camera of the model, or a free one.
        option: What is drawn.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        height: int,
        width: int,
        camera: str | mujoco.MjvCamera,
        option: mujoco.MjvOption,
    ) -> None:
        self._model = model
        self._size = (height, width)
        self._camera = camera
        self._option = option
        self._renderer: mujoco.Renderer | None = None

    def render(self, data: mujoco.MjData) -> np.ndarray:
        """Returns a new picture, uint8 [H, W, 3] RGB."""
        if self._renderer is None:
            try:
                self._renderer = mujoco.Renderer(self._model, *self._size)
            except (ImportError, RuntimeError) as error:
                raise RuntimeError(f"no rendering context: {error}; {headless_gl.INSTALL_HINT}") from error
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            _open.add(self)
            _close_all_at_exit()
        self._renderer.update_scene(data, self._camera, self._option)
        return self._renderer.render(out=np.empty((*self._size, 3), np.uint8))

    def close(self) -> None:
        """Frees the context; a later `render` makes a new one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


@functools.cache
def _close_all_at_exit() -> None:
    # Registered after the first renderer exists, so that it runs before MuJoCo ends the display connection:
    # a context that outlives it makes Python's exit noisy.
    atexit.register(_close_all)


def _close_all() -> None:
    for camera in list(_open):
        camera.close()
