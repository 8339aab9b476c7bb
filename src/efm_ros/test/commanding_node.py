"""A node for the lifecycle tests: commands 1.0 at 50 Hz until something happens, then holds with 0.0."""

import dataclasses
import sys
import threading

import numpy as np

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest, BundleUnknown
from efm_ros.commands import CommandChannel
from efm_ros.lifecycle import OK, EfmLifecycleNode, NodeParameters, run_node
from efm_ros.parameters import param

ROBOT = Embodiment.from_dict(
    {
        "name": "one_wheel",
        "control_rate_hz": 50.0,
        "max_steps": 10,
        "action": {
            "interface": "float64_multi_array",
            "topic": "command",
            "dimensions": [
                {
                    "name": "speed",
                    "low": -1.0,
                    "high": 1.0,
                    "bins": 3,
                    "unit": "m/s",
                    "max_rate": float("inf"),
                }
            ],
        },
        "state": {
            "topic": "state",
            "interface": "float64_multi_array",
            "entries": [{"name": "place", "unit": "m", "low": -1.0, "high": 1.0}],
        },
        "steps_to_go": {"bins": 5, "width": 1},
        "reset": {"method": "none"},
    }
)


@dataclasses.dataclass(frozen=True)
class CommandingParameters(NodeParameters):
    fault: str = param(
        "none",
        description="What goes wrong.",
        choices=(
            "none",
            "acquire",
            "acquire_bug",
            "acquire_parameter",
            "start",
            "callback",
            "thread",
            "stop",
        ),
    )
    after: int = param(50, description="Commands heard before it goes wrong.", low=0)


class CommandingNode(EfmLifecycleNode):
    Parameters = CommandingParameters
    channel = None
    timer = None

    def _fail_if(self, fault, error):
        if self.parameters.fault == fault:
            raise error

    def acquire(self):
        self.channel = CommandChannel(self, ROBOT)
        self._fail_if("acquire", BundleUnknown("expected a bundle's folder, found nothing"))
        self._fail_if("acquire_parameter", BadRequest("parameter 'bundle': expected a folder, found a cat"))
        self._fail_if("acquire_bug", ZeroDivisionError("a bug in acquire"))

    def start(self):
        self._fail_if("start", BundleUnknown("no start today"))
        self.sent = 0
        self.timer = self.create_timer(0.02, self._command)

    def _command(self):
        if not self.count_subscribers("command"):
            return  # Nobody would hear how it ends.
        self.channel.send(np.ones(1), 1)
        self.sent += 1
        if self.sent == self.parameters.after:
            self._fail_if("callback", ZeroDivisionError("a bug in a callback"))
            if self.parameters.fault == "thread":
                threading.Thread(target=self.fail, args=(ZeroDivisionError("a bug in a thread"),)).start()

    def stop(self):
        if self.timer is not None:
            self.destroy_timer(self.timer)
            self.timer = None
            self.channel.hold()
            self.channel.flush(timeout_s=10.0)  # The listener may be slow to confirm.
        self._fail_if("stop", ZeroDivisionError("a bug in stop"))

    def release(self):
        if self.channel is not None:
            self.channel.destroy()
            self.channel = None
            print("released", flush=True)

    def update_diagnostics(self):
        self.diagnose("wheel", OK, "turns", robot="robot_1", speed=0.5)


if __name__ == "__main__":
    sys.exit(run_node(lambda: CommandingNode("commander"), threads=int(sys.argv[1])))
