"""Small real things for the tests of this package: an embodiment, bundles, a robot that only remembers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from efm_core.bundle import Bundle, write_bundle
from efm_core.embodiment import Embodiment
from efm_core.manifest import BundleManifest

OPSET = 17


def embodiment_of(**changes) -> Embodiment:
    """A small arm: one camera of two frames, two joints, position targets in a Float64MultiArray."""
    data = {
        "name": "mini",
        "control_rate_hz": 20.0,
        "max_steps": 100,
        "dry_run": False,
        "cameras": [
            {"name": "top", "topic": "camera/top/image_raw", "transport": "raw", "width": 8, "height": 6}
        ],
        "state": {
            "topic": "joint_states",
            "interface": "joint_states",
            "entries": [
                {"name": "one", "unit": "rad", "low": -1.0, "high": 1.0},
                {"name": "two", "unit": "rad", "low": -1.0, "high": 1.0},
            ],
        },
        "action": {
            "interface": "float64_multi_array",
            "topic": "commands",
            "hold_still": "measured",
            "dimensions": [
                {"name": "one", "low": -1.0, "high": 1.0, "bins": 21, "unit": "rad", "max_rate": 2.0},
                {
                    "name": "two",
                    "low": -1.0,
                    "high": 1.0,
                    "bins": 11,
                    "unit": "rad",
                    "max_rate": float("inf"),
                },
            ],
        },
        "steps_to_go": {"bins": 10, "width": 2},
        "reset": {"method": "none"},
    }
    action = changes.pop("action", {})
    data["action"] = {**data["action"], **action}
    data.update(changes)
    return Embodiment.from_dict(data, where="test embodiment")


def bundle_of(
    embodiment: Embodiment,
    folder: Path,
    tokens: tuple[int, ...] | None = None,
    kind: str = "policy",
    version: int = 0,
    seed: int = 0,
    nan_above: float | None = None,
) -> Bundle:
    """A bundle whose logits are linear in state and brightness; with `tokens`, one action is near certain.

    With `nan_above` the logits are NaN whenever the first state is greater than that.
    """
    chunk, size = embodiment.action.chunk, embodiment.action_size
    bins = [dimension.bins for dimension in embodiment.action.dimensions]
    widest = max(bins)
    rng = np.random.default_rng(seed)
    features, inputs, nodes, spec = 0, [], [], {}
    parts = []
    for camera in embodiment.cameras:
        name = f"observation.images.{camera.name}"
        shape = [camera.frames, camera.height, camera.width, 3]
        inputs.append(helper.make_tensor_value_info(name, TensorProto.UINT8, ["B", *shape]))
        spec[name] = {"shape": ["B", *shape], "dtype": "uint8"}
        nodes += [
            helper.make_node("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", [f"{name}.float"], [f"{name}.flat"], axis=1),
            helper.make_node("ReduceMean", [f"{name}.flat"], [f"{name}.mean"], axes=[1], keepdims=1),
            helper.make_node("Div", [f"{name}.mean", "white"], [f"{name}.part"]),
        ]
        parts.append(f"{name}.part")
        features += 1
    if embodiment.state is not None:
        name = "observation.state"
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", embodiment.state_size]))
        spec[name] = {"shape": ["B", embodiment.state_size], "dtype": "float32"}
        parts.append(name)
        features += embodiment.state_size
    weights = rng.normal(size=(features, chunk * size * widest)).astype(np.float32)
    bias = np.zeros((chunk, size, widest), np.float32)
    if tokens is not None:
        weights *= 0.0
        for dimension, token in enumerate(tokens):
            bias[:, dimension, token] = 60.0
    for dimension, count in enumerate(bins):
        bias[:, dimension, count:] = -1e9
    nodes += [
        helper.make_node("Concat", parts, ["features"], axis=1),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["clean"]),
    ]
    constants = {
        "white": np.array(255.0, np.float32),
        "weights": weights,
        "bias": bias.reshape(-1),
        "shape": np.array([-1, chunk, size, widest], np.int64),
        "limit": np.array(np.inf if nan_above is None else nan_above, np.float32),
        "first": np.array([0], np.int64),
    }
    # sqrt(-1) where the first feature of the state is above the limit, else sqrt(1) - 1 = 0.
    watched = "observation.state" if embodiment.state is not None else "features"
    nodes += [
        helper.make_node("Gather", [watched, "first"], ["watched"], axis=1),
        helper.make_node("Greater", ["watched", "limit"], ["bad"]),
        helper.make_node("Where", ["bad", "minus", "one"], ["sign"]),
        helper.make_node("Sqrt", ["sign"], ["root"]),
        helper.make_node("Sub", ["root", "one"], ["poison"]),
        helper.make_node("Unsqueeze", ["poison", "axes"], ["spread"]),
        helper.make_node("Add", ["clean", "spread"], ["action_logits"]),
    ]
    constants |= {
        "minus": np.array(-1.0, np.float32),
        "one": np.array(1.0, np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    outputs = [helper.make_tensor_value_info("action_logits", TensorProto.FLOAT, ["B", chunk, size, widest])]
    out_spec = {"action_logits": {"shape": ["B", chunk, size, widest], "dtype": "float32"}}
    if kind in ("reward", "both"):
        shape = [1, embodiment.steps_to_go.bins]
        constants |= {
            "judge": rng.normal(size=(features, shape[1])).astype(np.float32),
            "judge_shape": np.array([-1, *shape], np.int64),
        }
        nodes += [
            helper.make_node("MatMul", ["features", "judge"], ["judged"]),
            helper.make_node("Reshape", ["judged", "judge_shape"], ["steps_to_go_logits"]),
        ]
        outputs.append(helper.make_tensor_value_info("steps_to_go_logits", TensorProto.FLOAT, ["B", *shape]))
        out_spec["steps_to_go_logits"] = {"shape": ["B", *shape], "dtype": "float32"}
    graph = helper.make_graph(
        nodes, "tiny", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    manifest = BundleManifest(
        kind=kind,
        embodiment=embodiment.to_dict(),
        inputs=spec,
        outputs=out_spec,
        opset=OPSET,
        version=version,
        training={"seed": seed, "tokens": list(tokens or ())},
    )
    return write_bundle(folder, manifest, {"model.onnx": model.SerializeToString()})
