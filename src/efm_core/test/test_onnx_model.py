"""Models of bundles, run by the real runtime on small graphs whose answers can be worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from example_robots import table_robot
from onnx import TensorProto, helper

from efm_core.bundle import Bundle, BundleManifest, write_bundle
from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest, BundleInvalid, BundleUnusable, ObservationInvalid
from efm_core.observation import Observation
from efm_core.onnx_model import PROVIDERS, OnnxModel

TABLE = table_robot()  # Images 2 x 6 x 8, state of 2, actions 1 x 2 x 21, steps-to-go 50.
WORDS = {"kind": "hashed_words", "buckets": 1024, "length": 3}
INPUTS = {
    "observation.images.top": (TensorProto.UINT8, ["batch", 2, 6, 8, 3]),
    "observation.state": (TensorProto.FLOAT, ["batch", 2]),
    "instruction": (TensorProto.INT64, ["batch", 3]),
}
OUTPUTS = {
    "action_logits": (TensorProto.FLOAT, ["batch", 1, 2, 21]),
    "steps_to_go_logits": (TensorProto.FLOAT, ["batch", 2, 50]),
}


def graph(
    inputs: dict[str, Any] = INPUTS,
    outputs: dict[str, Any] = OUTPUTS,
    scale: float = 1.0,
    forgets_rows: bool = False,
) -> bytes:
    """Returns a model: every output is filled with scale * the sum of all inputs of the row."""
    nodes, terms, constants = [], [], []
    for index, (name, (_, shape)) in enumerate(inputs.items()):
        nodes.append(helper.make_node("Cast", [name], [f"float{index}"], to=TensorProto.FLOAT))
        axes = helper.make_tensor(f"axes{index}", TensorProto.INT64, [len(shape) - 1], range(1, len(shape)))
        constants.append(axes)
        nodes.append(
            helper.make_node("ReduceSum", [f"float{index}", f"axes{index}"], [f"sum{index}"], keepdims=0)
        )
        terms.append(f"sum{index}")
    nodes.append(helper.make_node("Sum", terms, ["total"]))
    constants.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]))
    kept = "total"
    if forgets_rows:  # Gives one row, however many came in.
        constants += [helper.make_tensor(f"cut{at}", TensorProto.INT64, [1], [at]) for at in (0, 1)]
        nodes.append(helper.make_node("Slice", ["total", "cut0", "cut1"], ["first"]))
        kept = "first"
    nodes.append(helper.make_node("Mul", [kept, "scale"], ["scaled"]))
    for name, (kind, shape) in outputs.items():
        sizes = [size if isinstance(size, int) else 1 for size in shape[1:]]
        ones = np.ones([1, *sizes], np.float32)
        constants.append(onnx.numpy_helper.from_array(ones, f"ones_{name}"))
        shape_of = [-1] + [1] * len(sizes)
        constants.append(helper.make_tensor(f"to_{name}", TensorProto.INT64, [len(shape_of)], shape_of))
        nodes.append(helper.make_node("Reshape", ["scaled", f"to_{name}"], [f"row_{name}"]))
        nodes.append(helper.make_node("Mul", [f"row_{name}", f"ones_{name}"], [f"full_{name}"]))
        nodes.append(helper.make_node("Cast", [f"full_{name}"], [name], to=kind))
    made = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def bundle(folder: Path, model: bytes | None = None, robot: Embodiment = TABLE, **changes: Any) -> Bundle:
    def spec(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: {"shape": shape, "dtype": "float32"} for name, (_, shape) in tensors.items()}

    fields: dict[str, Any] = {
        "kind": "both",
        "embodiment": robot.to_dict(),
        "inputs": spec(INPUTS),
        "outputs": spec(OUTPUTS),
        "opset": 18,
        "instruction": WORDS,
        "heads": 2,
    }
    manifest = BundleManifest(**{**fields, **changes})
    return write_bundle(folder, manifest, {"model.onnx": graph() if model is None else model})


def observation(seed: int, **changes: Any) -> Observation:
    rng = np.random.default_rng(seed)
    fields: dict[str, Any] = {
        "stamp_ns": seed,
        "images": {"top": rng.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)},
        "state": rng.normal(size=2).astype(np.float32),
    }
    return Observation(**{**fields, **changes})


def total(seen: Observation, encoded: list[int]) -> float:
    return float(seen.images["top"].sum() + seen.state.sum() + sum(encoded))


PUSH = [735, 0, 0]  # See test_instruction.


def test_several_robots_are_run_in_one_batch_and_each_gets_its_own_answer(tmp_path):
    model = OnnxModel(bundle(tmp_path))
    seen = [observation(seed) for seed in range(3)]
    output = model.run(seen, ["push", "", "push"])
    assert output.action_logits.shape == (3, 1, 2, 21) and output.action_logits.dtype == np.float32
    assert output.steps_to_go_logits.shape == (3, 2, 50)
    expected = [total(seen[0], PUSH), total(seen[1], []), total(seen[2], PUSH)]
    np.testing.assert_allclose(output.action_logits[:, 0, 0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(output.steps_to_go_logits[:, 1, 49], expected, rtol=1e-5)


def test_batches_of_any_size_follow_one_another(tmp_path):
    model = OnnxModel(bundle(tmp_path))
    for batch in [1, 3, 2, 1, *range(1, 40), 3]:
        seen = [observation(100 * batch + row) for row in range(batch)]
        output = model.run(seen, ["push"] * batch)
        expected = [total(item, PUSH) for item in seen]
        np.testing.assert_allclose(output.action_logits[:, 0, 1, 20], expected, rtol=1e-5)


def test_an_output_stays_as_it_was_when_the_model_runs_again(tmp_path):
    model = OnnxModel(bundle(tmp_path))
    first = model.run([observation(1)], ["push"])
    before = first.action_logits.copy()
    model.run([observation(2)], ["push"])
    np.testing.assert_array_equal(first.action_logits, before)


def test_inputs_are_not_kept_from_one_run_to_the_next(tmp_path):
    model = OnnxModel(bundle(tmp_path))
    one = model.run([observation(1)], ["push"]).action_logits
    model.run([observation(2)], ["pull"])
    np.testing.assert_array_equal(model.run([observation(1)], ["push"]).action_logits, one)


def test_the_provider_is_reported_and_the_runtime_leaves_the_cores_to_others(tmp_path):
    model = OnnxModel(bundle(tmp_path), "cpu", threads=2)
    assert (model.provider, model.passed_over) == ("CPUExecutionProvider", ())
    options = model._session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_warm_model_runs_the_batches_that_it_was_warmed_up_for(tmp_path):
    model = OnnxModel(bundle(tmp_path))
    model.warm_up(2)
    assert model.run([observation(0), observation(1)], ["push", "push"]).action_logits.shape[0] == 2


def test_an_instruction_is_encoded_once(tmp_path, monkeypatch):
    model = OnnxModel(bundle(tmp_path))
    model.run([observation(0)], ["push"])
    monkeypatch.setattr("efm_core.onnx_model.encode_instruction", None)
    model.run([observation(1), observation(2)], ["push", "push"])


@pytest.mark.parametrize(("kind", "output"), [("policy", "action_logits"), ("reward", "steps_to_go_logits")])
def test_a_bundle_of_one_kind_gives_only_its_own_output(tmp_path, kind, output):
    only = {output: OUTPUTS[output]}
    outputs = {name: {"shape": shape, "dtype": "float32"} for name, (_, shape) in only.items()}
    model = OnnxModel(bundle(tmp_path, graph(outputs=only), kind=kind, outputs=outputs))
    given = model.run([observation(0)], ["push"])
    assert (given.action_logits is None) == (kind == "reward")
    assert (given.steps_to_go_logits is None) == (kind == "policy")


def test_a_model_of_states_alone_needs_neither_images_nor_instructions(tmp_path):
    inputs = {"observation.state": INPUTS["observation.state"]}
    specs = {"observation.state": {"shape": ["batch", 2], "dtype": "float32"}}
    for instruction in ({}, {"kind": "none"}):
        model = OnnxModel(bundle(tmp_path, graph(inputs), inputs=specs, instruction=instruction))
        seen = observation(3, images={})
        output = model.run([seen], ["whatever this may be, it is of no interest"])
        np.testing.assert_allclose(output.action_logits[0, 0, 0, 0], seen.state.sum(), rtol=1e-5)


def change(name: str, kind: int, shape: list[Any], tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, name: (kind, shape)}


MISFITS = [
    (
        graph(change("observation.state", TensorProto.FLOAT, ["batch", 3], INPUTS)),
        r"input 'observation.state': expected float32 \[B, 2\], found float32 \['batch', 3\]",
    ),
    (
        graph(change("observation.state", TensorProto.DOUBLE, ["batch", 2], INPUTS)),
        r"input 'observation.state': expected float32 \[B, 2\], found tensor\(double\)",
    ),
    (
        graph(change("observation.state", TensorProto.FLOAT, [1, 2], INPUTS)),
        r"input 'observation.state': expected a free first axis for the batch, found \[1, 2\]",
    ),
    (
        graph(change("observation.states", TensorProto.FLOAT, ["batch", 2], INPUTS)),
        "wants the input 'observation.states', did you mean 'observation.state'",
    ),
    (
        graph({name: INPUTS[name] for name in ("observation.state", "instruction")}),
        "lacks the input 'observation.images.top' of its manifest",
    ),
    (
        graph(outputs={"action_logits": OUTPUTS["action_logits"]}),
        "lacks the output 'steps_to_go_logits' of its manifest",
    ),
    (
        graph(outputs=change("action_logits", TensorProto.FLOAT, ["batch", 2, 21], OUTPUTS)),
        r"output 'action_logits': expected float32 \[B, 1, 2, 21\], found float32 \['batch', 2, 21\]",
    ),
    (
        graph(outputs=change("action_logits", TensorProto.DOUBLE, ["batch", 1, 2, 21], OUTPUTS)),
        r"output 'action_logits': expected float32",
    ),
    (
        graph(outputs=change("steps_to_go_logits", TensorProto.FLOAT, ["batch", 1, 50], OUTPUTS)),
        r"output 'steps_to_go_logits': expected float32 \[B, 2, 50\]",
    ),
    (b"no model at all", "does not load"),
    (b"", "does not load"),
]


@pytest.mark.parametrize(("model", "message"), MISFITS, ids=[item[1][:50] for item in MISFITS])
def test_a_graph_that_does_not_fit_the_robot_is_refused_when_it_is_loaded(tmp_path, model, message):
    with pytest.raises(BundleUnusable, match=message):
        OnnxModel(bundle(tmp_path, model))


def test_all_misfits_are_named_at_once(tmp_path):
    wrong = change("observation.state", TensorProto.FLOAT, ["batch", 3], INPUTS)
    del wrong["instruction"]
    with pytest.raises(BundleUnusable, match=r"lacks the input 'instruction'.*; input 'observation.state'"):
        OnnxModel(bundle(tmp_path, graph(wrong)))


def test_a_further_output_that_nobody_reads_does_no_harm(tmp_path):
    more = {**OUTPUTS, "attention": (TensorProto.FLOAT, ["batch", 4])}
    assert (
        OnnxModel(bundle(tmp_path, graph(outputs=more))).run([observation(0)], [""]).action_logits is not None
    )


def test_outputs_that_are_not_finite_are_refused_and_the_robot_is_named(tmp_path):
    model = OnnxModel(bundle(tmp_path, graph(scale=1e38)))
    dark = observation(0, images={"top": np.zeros((2, 6, 8, 3), np.uint8)}, state=np.zeros(2, np.float32))
    with pytest.raises(BundleUnusable, match=r"'action_logits': expected finite.* observations \[1\] of 2"):
        model.run([dark, observation(1)], ["", ""])
    with pytest.raises(BundleUnusable, match="expected finite numbers"):
        model.warm_up(1)
    assert model.run([dark], [""]).action_logits.max() == 0  # A robot that sees something else goes on.


def test_a_graph_that_forgets_robots_is_refused(tmp_path):
    model = OnnxModel(bundle(tmp_path, graph(forgets_rows=True)))
    model.warm_up(1)
    with pytest.raises(BundleUnusable, match=r"with B 2, found float32 \[1, 1, 2, 21\]"):
        model.warm_up(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {}}, "observation 1 of the batch: expected 'observation.images.top', found none"),
        ({"state": np.full(2, np.nan, np.float32)}, r"'observation.state' is not finite: \[nan, nan\]"),
        ({"state": None}, "observation 1 of the batch: expected 'observation.state', found none"),
        ({"state": np.zeros(3, np.float32)}, r"of float32 \[2\], found float32 \[3\]"),
        ({"state": np.zeros(2)}, r"of float32 \[2\], found float64 \[2\]"),
        (
            {"images": {"top": np.zeros((1, 6, 8, 3), np.uint8)}},
            r"uint8 \[2, 6, 8, 3\], found uint8 \[1, 6, 8, 3\]",
        ),
        ({"images": {"top": np.zeros((2, 6, 8, 3), np.float32)}}, "found float32"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused_and_numbered(tmp_path, changes, message):
    with pytest.raises(ObservationInvalid, match=message):
        OnnxModel(bundle(tmp_path)).run([observation(0), observation(1, **changes)], ["", ""])


def test_an_instruction_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="expected at most 3 tokens, found 4"):
        OnnxModel(bundle(tmp_path)).run([observation(0)], ["push the red block"])


def test_a_specification_of_instructions_with_faults_is_refused(tmp_path):
    with pytest.raises(BundleInvalid, match="did you mean 'hashed_words'"):
        OnnxModel(bundle(tmp_path, instruction={"kind": "hash_words"}))


def test_calls_that_make_no_sense_are_refused(tmp_path):
    model = OnnxModel(bundle(tmp_path))
    with pytest.raises(ValueError, match="at least one observation"):
        model.run([], [])
    with pytest.raises(ValueError, match="one instruction for each of 1 observations, found 2"):
        model.run([observation(0)], ["", ""])
    with pytest.raises(ValueError, match="at least one observation"):
        model.warm_up(0)
    with pytest.raises(ValueError, match="threads: expected at least 1"):
        OnnxModel(bundle(tmp_path), threads=0)


@pytest.mark.parametrize("provider", ["tensorrt", "cuda"])
def test_a_provider_that_this_machine_does_not_have_is_refused_and_not_replaced(tmp_path, provider):
    import onnxruntime

    if PROVIDERS[provider] in onnxruntime.get_available_providers():
        pytest.skip("this machine has it")
    with pytest.raises(BundleUnusable, match="found .*CPUExecutionProvider on this machine"):
        OnnxModel(bundle(tmp_path), provider)


def test_a_gpu_that_is_installed_and_does_not_come_up_is_passed_over_and_named(tmp_path, monkeypatch):
    """As onnxruntime-gpu behaves without a driver: it falls back to the CPU without an exception."""
    import onnxruntime

    real, asked = onnxruntime.InferenceSession, []

    def without_driver(path, options, providers):
        asked.append(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_driver)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    model = OnnxModel(bundle(tmp_path))
    assert model.provider == "CPUExecutionProvider"
    assert model.passed_over == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    with pytest.raises(BundleUnusable, match="expected to run on CUDAExecutionProvider, found CPU.*driver"):
        OnnxModel(bundle(tmp_path), "cuda")
    assert asked == [list(PROVIDERS.values()), ["CUDAExecutionProvider", "CPUExecutionProvider"]]


def test_a_machine_without_onnxruntime_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BundleUnusable, match="pip install onnxruntime"):
        OnnxModel(bundle(tmp_path))


def test_a_bundle_without_a_model_is_refused(tmp_path):
    known = bundle(tmp_path)
    bare = write_bundle(
        tmp_path, BundleManifest(**{**vars(known.manifest), "files": {}}), {"model.safetensors": b"weights"}
    )
    with pytest.raises(BundleInvalid, match=r"expected a file 'model\.onnx'"):
        OnnxModel(bare)
