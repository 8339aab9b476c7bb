"""A recorder, and the robot that feeds it with messages as they come over the wire."""

import numpy as np

from efm_core.embodiment import load_embodiment
from efm_core.schemas import deserialize, make_header, message_class, serialize
from efm_core.summary import Actor, EndReason, Mode, Outcome, Summary
from efm_episode_node.recorder import EpisodeRecorder, RecorderSettings, Stream

PERIOD_NS = 100_000_000
START_NS = 50 * PERIOD_NS
IMAGE_TYPE, STATE_TYPE = "sensor_msgs/msg/Image", "sensor_msgs/msg/JointState"
CAMERA = Stream("camera/top/image_raw/compressed", "sensor_msgs/msg/CompressedImage", "top", True, 0.2)
STATE = Stream("joint_states", STATE_TYPE, "", True, 0.2)
STEP = Stream("policy_step", "efm_msgs/msg/PolicyStep")


def image(stamp_ns, size=96):
    picture = np.full((size, size, 3), stamp_ns // PERIOD_NS % 200, np.uint8)
    return serialize(
        message_class(IMAGE_TYPE)(
            header=make_header(stamp_ns, "top_optical"),
            height=size,
            width=size,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * size,
            data=picture.reshape(-1),
        )
    )


def state(stamp_ns):
    empty = np.zeros(0)
    return serialize(
        message_class(STATE_TYPE)(
            header=make_header(stamp_ns),
            name=["effector_x", "effector_y"],
            position=np.array([0.1, 0.2]),
            velocity=empty,
            effort=empty,
        )
    )


def step(stamp_ns, number):
    values = np.array([0.01, -0.01])
    return serialize(
        message_class("efm_msgs/msg/PolicyStep")(
            header=make_header(stamp_ns),
            episode_id="",
            bundle_id="",
            step=number,
            chunk_index=0,
            actor=int(Actor.EXPERT),
            gate=0,
            tokens=np.zeros(0, np.uint16),
            log_prob=float("nan"),
            temperature=float("nan"),
            action=values,
            command=values,
            latency=float("nan"),
        )
    )


def decode(data):
    message = deserialize(data, IMAGE_TYPE)
    return message.data.reshape(message.height, message.width, 3), message.header.frame_id


class Bench:
    """A recorder, and the robot that feeds it."""

    def __init__(self, folder, decode=decode, **settings):
        self.folder, self.faults = folder, []
        embodiment = load_embodiment("table")
        self.recorder = EpisodeRecorder(
            lambda mode: folder,
            embodiment,
            RecorderSettings(**{"settle_s": 10.0, **settings}),
            decode,
            self.faults.append,
        )
        for stream in (CAMERA, STATE):
            self.recorder.add_input(stream)

    def observe(self, stamp_ns, size=96):
        self.recorder.put(STATE, stamp_ns, state(stamp_ns))
        self.recorder.put(CAMERA, stamp_ns, image(stamp_ns, size))

    def act(self, stamp_ns):
        self.recorder.put(STEP, stamp_ns, step(stamp_ns, 0), is_step=True)

    def episode(self, steps=5, start_ns=START_NS, lost=(), size=96):
        for index in range(steps + 1):
            stamp_ns = start_ns + index * PERIOD_NS
            if index not in lost:
                self.observe(stamp_ns, size)
            if index < steps:
                self.act(stamp_ns)

    def summary(self, episode_id="e1", steps=5, **changes):
        values = {
            "episode_id": episode_id,
            "start_ns": START_NS,
            "stamp_ns": START_NS + steps * PERIOD_NS,
            "mode": Mode.COLLECT,
            "outcome": Outcome.SUCCESS,
            "end_reason": EndReason.ACTOR_DONE,
            "actor": Actor.EXPERT,
            "steps": steps,
            "instruction": "push",
        }
        return Summary(**{**values, **changes})
