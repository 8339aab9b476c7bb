"""Observations: the newest images and state of one robot put together, live and from an episode alike.

Inputs come in any order and at any rate. At a control tick `ready` gives one observation, or None, and then
`why_not_ready` names the input that is missing or too old.

The rule that makes an observation can be repeated from stamps alone: of every camera the newest image; the
stamp of the observation is that of the newest of these images; the state is the newest of that stamp or
before. A new state without a new image makes no new observation. Stamps are those of the sensors, not of the
arrival, in nanoseconds on the robot's clock. Decoding, ROS and threads are the caller's business.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efm_core.embodiment import Camera, Embodiment
from efm_core.errors import ObservationInvalid, nearest
from efm_core.image import ImageArray, check_image, prepare_image

SECOND_NS = 1_000_000_000
# A stamp that is older than the one before by more than this is no straggler: the clock was set back.
TIME_LINE_JUMP_NS = SECOND_NS
# So many inputs in a row that are older than the newest are no stragglers either.
STRAGGLERS = 5
# States kept to find the one of an image's moment: a quarter of a second at 1 kHz.
STATES_KEPT = 256


@dataclass(frozen=True, eq=False)
class Observation:
    """What the model sees at one control tick.

    Attributes:
        stamp_ns: of the newest image, or of the state where there are no cameras.
        images: camera -> uint8 [T, H, W, 3], RGB at model size, the newest last. Not to be written into.
        state: float32 [S] in the units of the embodiment; None where it has no state.
    """

    stamp_ns: int
    images: dict[str, ImageArray]
    state: npt.NDArray[np.float32] | None


class _CameraInput:
    """The newest image of one camera, and what it showed at the control ticks before."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.stamp_ns: int | None = None
        self.image: ImageArray | None = None
        self.history: deque[ImageArray] = deque(maxlen=camera.frames)

    def drop(self) -> None:
        self.stamp_ns, self.image = None, None

    def stack(self) -> ImageArray:
        """Takes the newest image into the history and returns the last T images [T, H, W, 3]."""
        assert self.image is not None
        # Prepared here, not on arrival: of a fast camera's images only those at control ticks cost anything.
        self.image = prepare_image(self.image, self.camera.height, self.camera.width)
        self.history.append(self.image)
        if self.camera.frames == 1:
            return self.image[np.newaxis]
        missing = self.camera.frames - len(self.history)
        return np.stack([self.history[0]] * missing + list(self.history))


class ObservationAssembler:
    """Puts observations of one robot together.

    Call order: `start` at the beginning of an episode, then `add_image` and `add_state` as inputs arrive, and
    `ready` once per control tick (and again on the next arrival where it gave None), since every observation
    that is handed out becomes a part of the frame history. Not for use by several threads at once. Images are
    kept by reference: an array must not be written into after it was added.

    Attributes:
        time_line: how often the clock was seen to go back; each time, history and older inputs are dropped.
    """

    def __init__(self, embodiment: Embodiment) -> None:
        self.time_line = 0
        self._embodiment = embodiment
        self._cameras = {camera.name: _CameraInput(camera) for camera in embodiment.cameras}
        self._states: deque[tuple[int, npt.NDArray[np.float32]]] = deque(maxlen=STATES_KEPT)
        self._arrived_ns: dict[str, int] = {}  # Input -> its newest stamp, also when it was not kept.
        self._older: dict[str, int] = {}  # Input -> how many in a row were older than its newest.
        self._not_before_ns: int | None = None
        self._last_ns: int | None = None

    def start(self, not_before_ns: int) -> None:
        """Begins an episode: clears the frame history and drops inputs older than `not_before_ns`."""
        self._not_before_ns = not_before_ns
        self._last_ns = None
        for held in self._cameras.values():
            held.history.clear()
            if held.stamp_ns is not None and held.stamp_ns < not_before_ns:
                held.drop()
        while self._states and self._states[0][0] < not_before_ns:
            self._states.popleft()

    def add_image(self, camera: str, stamp_ns: int, image: ImageArray) -> bool:
        """Takes an image; the newest wins.

        Args:
            camera: name of the camera in the embodiment.
            stamp_ns: when the image was taken.
            image: uint8 [H, W, 3] in RGB, of any size; kept by reference.

        Returns:
            Whether it is new: False for one that is not newer than what is here (a world in lockstep shows
            its observation again when no command has come), or from before the start.

        Raises:
            ObservationInvalid: unknown camera, wrong shape or dtype, negative stamp.
        """
        held = self._cameras.get(camera)
        if held is None:
            near = nearest(camera, self._cameras)
            raise ObservationInvalid(
                f"image of camera '{camera}'{near}: the cameras are {list(self._cameras)}"
            )
        check_image(image, f"image of camera '{camera}'")
        if not self._is_new(f"image of camera '{camera}'", stamp_ns):
            return False
        held.stamp_ns, held.image = stamp_ns, image
        return True

    def add_state(self, stamp_ns: int, values: npt.ArrayLike) -> bool:
        """Takes a state vector [S] in the order and units of the embodiment; returns whether it is new.

        Raises:
            ObservationInvalid: the embodiment has no state, wrong length, not finite, negative stamp.
        """
        size = self._embodiment.state_size
        try:
            with np.errstate(over="ignore"):
                state = np.array(values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ObservationInvalid(f"state: expected {size} numbers, found {error}") from error
        if state.shape != (size,) or size == 0:
            raise ObservationInvalid(f"state: expected {size} numbers, found the shape {list(state.shape)}")
        if not np.isfinite(state).all():
            entries = self._embodiment.state.entries if self._embodiment.state is not None else ()
            bad = [entry.name for entry, value in zip(entries, state, strict=True) if not np.isfinite(value)]
            raise ObservationInvalid(f"state: expected finite numbers, found {bad} not finite")
        if not self._is_new("state", stamp_ns):
            return False
        self._states.append((stamp_ns, state))
        return True

    def ready(self, now_ns: int, synchronous: bool = False) -> Observation | None:
        """Hands out the newest observation, each only once.

        Args:
            now_ns: the robot's clock.
            synchronous: for lockstep: all inputs must have the same stamp, and ages do not matter, since the
                world waits. Otherwise every input must be younger than its `max_age_s`.

        Returns:
            The observation, or None; then `why_not_ready` says why.
        """
        if self.why_not_ready(now_ns, synchronous):
            return None
        stamp_ns = self._newest_ns()
        assert stamp_ns is not None
        images = {name: held.stack() for name, held in self._cameras.items()}
        state = self._state_at(stamp_ns) if self._states else None
        self._last_ns = stamp_ns
        return Observation(stamp_ns, images, None if state is None else state[1])

    def why_not_ready(self, now_ns: int, synchronous: bool = False) -> str:
        """Returns why `ready` gives None at this moment, naming the inputs, or "" where it gives one."""
        reasons = [
            f"no image of camera '{name}' on '{held.camera.subscribed_topic}'"
            for name, held in self._cameras.items()
            if held.stamp_ns is None
        ]
        state = self._embodiment.state
        if state is not None and not self._states:
            reasons.append(f"no state on '{state.topic}'")
        if reasons:
            start_ns = self._not_before_ns
            since = "" if start_ns is None else f" since the start at {_seconds(start_ns)}"
            return "; ".join(reasons) + since
        stamp_ns = self._newest_ns()
        assert stamp_ns is not None
        if self._last_ns is not None and stamp_ns <= self._last_ns:
            return f"nothing new since the observation of {_seconds(self._last_ns)}"
        return self._why_apart(stamp_ns) if synchronous else self._why_too_old(now_ns)

    def _why_apart(self, stamp_ns: int) -> str:
        apart = [
            f"camera '{name}' is of {_seconds(held.stamp_ns)}"
            for name, held in self._cameras.items()
            if held.stamp_ns is not None and held.stamp_ns != stamp_ns
        ]
        if self._states and self._state_at(stamp_ns)[0] != stamp_ns:
            apart.append(f"the state is of {_seconds(self._states[-1][0])}")
        return f"waiting for all inputs of {_seconds(stamp_ns)}: {'; '.join(apart)}" if apart else ""

    def _why_too_old(self, now_ns: int) -> str:
        inputs = [
            (f"the image of camera '{name}'", held.stamp_ns, held.camera.max_age_s)
            for name, held in self._cameras.items()
        ]
        state = self._embodiment.state
        if state is not None:
            inputs.append(("the state", self._states[-1][0], state.max_age_s))
        reasons = []
        for what, stamp_ns, limit in inputs:
            assert stamp_ns is not None
            age = (now_ns - stamp_ns) / SECOND_NS
            if stamp_ns == 0 and age > limit:
                reasons.append(f"{what} has no stamp: its driver must fill in header.stamp")
            elif age > limit:
                reasons.append(f"{what} is {age:.3f} s old, more than {limit:g} s")
            elif -age > limit:
                reasons.append(
                    f"{what} is stamped {-age:.3f} s ahead of the clock: is use_sim_time the same?"
                )
        return "; ".join(reasons)

    def _newest_ns(self) -> int | None:
        """Returns the stamp of the observation that would be handed out."""
        stamps = [held.stamp_ns for held in self._cameras.values() if held.stamp_ns is not None]
        if stamps:
            return max(stamps)
        return self._states[-1][0] if self._states else None

    def _state_at(self, stamp_ns: int) -> tuple[int, npt.NDArray[np.float32]]:
        """Returns the newest state of `stamp_ns` or before; the oldest where there is none."""
        for entry in reversed(self._states):
            if entry[0] <= stamp_ns:
                return entry
        return self._states[0]

    def _is_new(self, what: str, stamp_ns: int) -> bool:
        """Decides whether an input is taken; notices a clock that was set back."""
        if stamp_ns < 0:
            raise ObservationInvalid(f"{what}: expected a stamp >= 0, found {stamp_ns} ns")
        last_ns = self._arrived_ns.get(what, -1)
        older = self._older.get(what, 0) + 1 if stamp_ns < last_ns else 0
        self._older[what] = older
        if stamp_ns < last_ns - TIME_LINE_JUMP_NS or older >= STRAGGLERS:
            self._begin_time_line(stamp_ns, last_ns)
        elif stamp_ns <= last_ns:
            return False
        self._arrived_ns[what] = stamp_ns
        return self._not_before_ns is None or stamp_ns >= self._not_before_ns

    def _begin_time_line(self, stamp_ns: int, last_ns: int) -> None:
        """Forgets what belongs to the time before the clock was set back from `last_ns` to `stamp_ns`."""
        # Other inputs may be in the new time line already, and a little ahead of this one.
        latest_ns = min(stamp_ns + TIME_LINE_JUMP_NS, last_ns - 1)
        self.time_line += 1
        self._not_before_ns, self._last_ns = None, None
        self._older.clear()
        self._arrived_ns = {what: ns for what, ns in self._arrived_ns.items() if ns <= latest_ns}
        for held in self._cameras.values():
            held.history.clear()
            if held.stamp_ns is not None and held.stamp_ns > latest_ns:
                held.drop()
        if self._states and self._states[-1][0] > latest_ns:
            self._states.clear()


def _seconds(stamp_ns: int | None) -> str:
    return "never" if stamp_ns is None else f"{stamp_ns / SECOND_NS:.3f} s"
