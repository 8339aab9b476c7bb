"""A keyboard as a gamepad: keys of a terminal become `sensor_msgs/Joy` on `joy`.

    ros2 run efm_policy_node teleop_keyboard --ros-args -r __ns:=/robot_1

Every key is shown on the screen. A terminal tells presses and repetitions but not releases: a deflection
lasts a moment after the last of them, so a key that is held keeps the stick deflected. Left out: deflections
in between.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Sequence

import rclpy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Joy

from efm_policy_node.steering import Pad

PERIOD_S = 0.05
DEFLECTED_S = 0.3
PRESSED_S = 0.12
AXES, BUTTONS = 6, 8

# Key -> (axis, deflection).
STICKS = {
    "\x1b[D": (0, -1.0), "\x1b[C": (0, 1.0), "\x1b[B": (1, -1.0), "\x1b[A": (1, 1.0),
    "a": (2, -1.0), "d": (2, 1.0), "s": (3, -1.0), "w": (3, 1.0),
    "q": (4, -1.0), "e": (4, 1.0), "z": (5, -1.0), "x": (5, 1.0),
}  # fmt: skip
# Key -> (button, what it does with config/teleop.yaml).
PRESSES = {
    "1": (0, "success"), "2": (1, "failure"), "3": (2, "discard"), "4": (3, "scene is ready"),
    "g": (5, "gripper"), " ": (6, "EMERGENCY STOP, and release"), "t": (7, "take over, and give back"),
}  # fmt: skip
HELP = """keys (the window with this text has to have the focus)
  arrows         axes 0 and 1          a d   axis 2      s w   axis 3
  q e            axis 4                z x   axis 5      g     gripper (button 5)
  1 success   2 failure   3 discard   4 scene is ready   t take over, give back
  SPACE          emergency stop, and its release         Ctrl-C   quit
"""


class Keys:
    """What the keys say at a moment. Times on the steady clock."""

    def __init__(self) -> None:
        self._axes: dict[int, tuple[float, float]] = {}  # axis -> (deflection, until)
        self._buttons: dict[int, float] = {}  # button -> until

    def press(self, key: str, now_s: float) -> str:
        """Takes a key; returns what it means, "" for nothing."""
        if key in STICKS:
            axis, deflection = STICKS[key]
            self._axes[axis] = (deflection, now_s + DEFLECTED_S)
            return f"axis {axis}"
        if key in PRESSES:
            button, what = PRESSES[key]
            self._buttons[button] = now_s + PRESSED_S
            return what
        return ""

    def pad(self, now_s: float) -> Pad:
        """Returns the gamepad that the keys stand for."""
        axes, buttons = [0.0] * AXES, [0] * BUTTONS
        for axis, (deflection, until_s) in self._axes.items():
            axes[axis] = deflection if now_s < until_s else 0.0
        for button, until_s in self._buttons.items():
            buttons[button] = int(now_s < until_s)
        return Pad(axes, buttons)


def split_keys(text: str) -> list[str]:
    """Returns the keys in what a terminal sent; an arrow is three characters."""
    keys = []
    while text:
        length = 3 if text.startswith("\x1b[") else 1
        keys.append(text[:length])
        text = text[length:]
    return keys


def run(read: Callable[[float], str], publish: Callable[[Pad], None], show: Callable[[str], None]) -> None:
    """Turns keys into gamepad messages until Ctrl-C or the end of the input.

    Args:
        read: Waits so long [s] and returns what was typed; raises EOFError at the end.
        publish: Takes the gamepad, 20 times a second.
        show: Takes the meaning of each key.
    """
    keys, due_s = Keys(), time.monotonic()
    while True:
        try:
            typed = read(max(0.0, due_s - time.monotonic()))
        except EOFError:
            return
        for key in split_keys(typed):
            if key == "\x03":
                return
            show(keys.press(key, time.monotonic()) or "no meaning")
        if time.monotonic() >= due_s:
            publish(keys.pad(time.monotonic()))
            due_s = time.monotonic() + PERIOD_S


def _read(timeout_s: float) -> str:
    ready, _, _ = select.select([sys.stdin], [], [], timeout_s)
    if not ready:
        return ""
    data = os.read(sys.stdin.fileno(), 64)
    if not data:
        raise EOFError
    return data.decode(errors="ignore")


def main(args: Sequence[str] | None = None) -> int:
    """Runs until Ctrl-C; returns the exit code."""
    if not sys.stdin.isatty():
        print("teleop_keyboard: expected a terminal to read keys from, found none", file=sys.stderr)
        return 1
    before = termios.tcgetattr(sys.stdin)
    ended = threading.Event()
    # By a flag: an exception may be swallowed where it comes, and rclpy would end the context in a publish.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    node = rclpy.create_node("teleop_keyboard")
    publisher = node.create_publisher(Joy, "joy", 5)

    def publish(pad: Pad) -> None:
        message = Joy(axes=list(pad.axes), buttons=list(pad.buttons))
        message.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(message)
        rclpy.spin_once(node, timeout_sec=0.0)

    def read(timeout_s: float) -> str:
        if ended.is_set():
            raise EOFError
        return _read(timeout_s)

    def show(meaning: str) -> None:
        if not publisher.get_subscription_count():
            meaning += f" (nobody listens on {publisher.topic_name}: is the teleop node running?)"
        print(f"\r\x1b[K  {meaning}", end="", flush=True)

    print(HELP + f"  publishing on {publisher.topic_name}\n", flush=True)
    try:
        tty.setcbreak(sys.stdin)
        run(read, publish, show)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        print()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
