"""A robot and reward bundles for tests whose answers can be worked out by hand.

The bundle's model sees d = brightness of the newest image + number of words in the instruction - 2 + offset,
so that an image of brightness 7 under "push it" is seven steps from its goal. One of brightness 255 makes
it give NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from efm_core.bundle import Bundle, BundleManifest, write_bundle
from efm_core.embodiment import Embodiment
from efm_core.episode import Actor, EndReason, EpisodeWriter, Mode, Outcome, Summary
from efm_core.observation import Observation
from efm_core.schemas import make_header, message_class, serialize

HEIGHT, WIDTH, FRAMES, BINS = 6, 8, 2, 50
PERIOD_NS = 100_000_000
START_NS = 1_000_000_000
TASK = "push it"


def robot(**changes: Any) -> Embodiment:
    """One camera with two frames, one action dimension, 10 Hz; input of any age will do."""
    known = {
        "name": "table",
        "control_rate_hz": 10.0,
        "max_steps": 200,
        "cameras": [
            {
                "name": "top",
                "topic": "camera/top/image_raw",
                "transport": "raw",
                "width": WIDTH,
                "height": HEIGHT,
                "frames": FRAMES,
                "max_age_s": 1e10,
            }
        ],
        "action": {
            "interface": "float64_multi_array",
            "topic": "commands",
            "dimensions": [
                {"name": "dx", "low": -1.0, "high": 1.0, "bins": 3, "unit": "m", "max_rate": float("inf")}
            ],
        },
        "steps_to_go": {"bins": BINS, "width": 1},
        "reset": {"method": "none"},
    }
    return Embodiment.from_dict({**known, **changes})


def picture(brightness: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """An image uint8 [H, W, 3] of one brightness."""
    return np.full((height, width, 3), brightness, np.uint8)


def stamp(step: int) -> int:
    """Stamp of a control step [ns]."""
    return START_NS + step * PERIOD_NS


def observation(brightness: int, step: int = 0) -> Observation:
    """An observation whose history is black."""
    images = np.stack([*[picture(0)] * (FRAMES - 1), picture(brightness)])
    return Observation(stamp(step), {"top": images}, None)


def record(
    parent: Path,
    brightnesses: Sequence[int],
    instruction: str = TASK,
    episode_id: str = "20261122T140102Z-1a2b3c4d",
    embodiment: Embodiment | None = None,
) -> Path:
    """Writes an episode that shows images of these brightnesses; gives its folder."""
    writer = EpisodeWriter(parent, episode_id, embodiment or robot())
    for step, brightness in enumerate(brightnesses):
        writer.write_image("top", stamp(step), picture(brightness))
        if step == len(brightnesses) - 1:
            break
        values = {
            "episode_id": episode_id,
            "bundle_id": "0123456789abcdef",
            "step": step,
            "chunk_index": 0,
            "actor": int(Actor.POLICY),
            "gate": 0,
            "tokens": np.array([1], np.uint16),
            "log_prob": -1.0,
            "temperature": 1.0,
            "action": np.array([0.0]),
            "command": np.array([0.0]),
            "latency": 0.01,
        }
        message = message_class("efm_msgs/msg/PolicyStep")(header=make_header(stamp(step)), **values)
        writer.write("policy_step", "efm_msgs/msg/PolicyStep", stamp(step), serialize(message))
    steps = len(brightnesses) - 1
    return writer.close(
        Summary(
            episode_id=episode_id,
            start_ns=stamp(0),
            stamp_ns=stamp(steps),
            instruction=instruction,
            mode=Mode.PRACTICE,
            outcome=Outcome.FAILURE,
            end_reason=EndReason.MAX_STEPS,
            actor=Actor.POLICY,
            steps=steps,
        )
    )


def write_reward_bundle(
    parent: Path,
    offset: float = 0.0,
    kind: str = "reward",
    threshold: float | None = 2.0,
    hold: int = 2,
    embodiment: Embodiment | None = None,
) -> Bundle:
    """Writes a bundle; other offsets give other ids."""
    outputs: dict[str, Any] = {
        "steps_to_go_logits": {"shape": ["batch", 1, BINS], "dtype": "float32"},
        "action_logits": {"shape": ["batch", 1, 1, 3], "dtype": "float32"},
    }
    manifest = BundleManifest(
        kind=kind,
        embodiment=(embodiment or robot()).to_dict(),
        instruction={"kind": "hashed_words", "buckets": 64, "length": 4},
        inputs={
            "observation.images.top": {"shape": ["batch", FRAMES, HEIGHT, WIDTH, 3], "dtype": "uint8"},
            "instruction": {"shape": ["batch", 4], "dtype": "int64"},
        },
        outputs=outputs,
        opset=18,
        success_threshold=threshold,
        success_hold=hold,
    )
    return write_bundle(parent, manifest, {"model.onnx": _graph(offset)})


def _graph(offset: float) -> bytes:
    def constant(name: str, values: Any) -> Any:
        array = np.asarray(values)
        kind = TensorProto.INT64 if array.dtype.kind == "i" else TensorProto.FLOAT
        return helper.make_tensor(name, kind, array.shape, array.ravel().tolist())

    nodes = [
        helper.make_node("Cast", ["observation.images.top"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["brightness"], keepdims=0),  # [B, T]
        helper.make_node("Slice", ["brightness", "last", "end", "one"], ["newest"]),  # [B, 1]
        helper.make_node("Cast", ["instruction"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Sign", ["numbers"], ["signs"]),
        helper.make_node("ReduceSum", ["signs", "one"], ["words"], keepdims=1),  # [B, 1]
        helper.make_node("Sum", ["newest", "words", "offset"], ["d"]),
        helper.make_node("Sub", ["d", "centers"], ["distance"]),  # [B, K]
        helper.make_node("Mul", ["distance", "distance"], ["square"]),
        helper.make_node("Mul", ["square", "sharpness"], ["logits"]),
        helper.make_node("Sub", ["glare", "newest"], ["shade"]),
        helper.make_node("Log", ["shade"], ["broken"]),  # NaN for an image of brightness 255.
        helper.make_node("Mul", ["broken", "zero"], ["nothing"]),
        helper.make_node("Add", ["logits", "nothing"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "one"], ["steps_to_go_logits"]),  # [B, 1, K]
        helper.make_node("Slice", ["steps_to_go_logits", "start", "three", "two"], ["some"]),  # [B, 1, 3]
        helper.make_node("Unsqueeze", ["some", "one"], ["action_logits"]),
    ]
    constants = [
        constant("axes", [2, 3, 4]),
        constant("last", [-1]),
        constant("end", [FRAMES]),
        constant("start", [0]),
        constant("one", [1]),
        constant("two", [2]),
        constant("three", [3]),
        constant("offset", [[offset - 2.0]]),
        constant("centers", [np.arange(BINS, dtype=np.float32)]),
        constant("sharpness", [-20.0]),
        constant("glare", [254.5]),
        constant("zero", [0.0]),
    ]
    inputs = [
        helper.make_tensor_value_info(
            "observation.images.top", TensorProto.UINT8, ["batch", FRAMES, HEIGHT, WIDTH, 3]
        ),
        helper.make_tensor_value_info("instruction", TensorProto.INT64, ["batch", 4]),
    ]
    outputs = [
        helper.make_tensor_value_info("steps_to_go_logits", TensorProto.FLOAT, ["batch", 1, BINS]),
        helper.make_tensor_value_info("action_logits", TensorProto.FLOAT, ["batch", 1, 1, 3]),
    ]
    graph = helper.make_graph(nodes, "brightness", inputs, outputs, constants)
    opset = [helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
