"""Export: names, dynamic batch, parity, fast second export, and refusals."""

import shutil
import time

import dots
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from efm_core.bundle import load_bundle
from efm_core.errors import BadRequest, BundleInvalid, BundleUnusable, SpoolFull
from efm_core.observation import Observation
from efm_core.onnx_model import OnnxModel
from efm_learner.export import (
    OnnxExporter,
    check_parity,
    export_bundle,
    load_network,
    recalibrated,
    save_weights,
)
from efm_learner.network import build_network, random_batch
from efm_learner.random_bundle import write_random_bundle


@pytest.fixture(scope="module")
def exporter():
    return OnnxExporter("both")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network(dots.embodiment(), {"name": "small"}, heads=2).eval()


def test_initialisers_carry_the_names_of_the_state_dict(network, exporter, tmp_path):
    graph = onnx.load(exporter.export(network, tmp_path)["model.onnx"]).graph
    names = {item.name for item in graph.initializer}
    assert names.issuperset(network.state_dict())


def test_a_second_export_replaces_all_weights_within_a_tenth_of_a_second(network, exporter, tmp_path):
    exporter.prepare(network)
    other = build_network(dots.embodiment(), {"name": "small"}, heads=2).eval()
    started = time.process_time()
    bundle = export_bundle(other, dots.embodiment(), tmp_path, "both", exporter=exporter)
    assert time.process_time() - started < 0.1 * 3  # The margin is for a machine under load.
    assert max(bundle.manifest.parity["greatest_difference"].values()) <= 1e-4
    changed = load_network(bundle).state_dict()
    assert all(torch.equal(value, changed[name]) for name, value in other.state_dict().items())


def test_one_graph_serves_batches_of_any_size(network, exporter, tmp_path):
    session = onnxruntime.InferenceSession(exporter.export(network, tmp_path)["model.onnx"])
    for size in (1, 7):
        batch = random_batch(network, size)
        outputs = session.run(None, {item.name: batch[item.name].numpy() for item in session.get_inputs()})
        assert [len(output) for output in outputs] == [size, size]


def test_a_policy_bundle_holds_no_steps_to_go_head(tmp_path):
    bundle = write_random_bundle(dots.embodiment(), tmp_path, "policy")
    assert list(bundle.manifest.outputs) == ["action_logits"]
    graph = onnx.load(bundle.file("model.onnx")).graph
    assert not [item.name for item in graph.initializer if item.name.startswith("steps_head")]


def test_weights_that_are_too_large_for_one_file_lie_beside_it(network, exporter, tmp_path, monkeypatch):
    inside = export_bundle(network, dots.embodiment(), tmp_path, "both", exporter=exporter)
    monkeypatch.setattr("efm_learner.export.ONE_FILE_BYTES", 1000)
    beside = export_bundle(network, dots.embodiment(), tmp_path, "both", exporter=exporter)
    sizes = {name: entry["size"] for name, entry in beside.manifest.files.items()}
    weights = sum(value.nbytes for value in network.state_dict().values())
    assert weights <= sizes["model.onnx.data"] and sizes["model.onnx"] < weights / 2
    assert beside.manifest.parity == inside.manifest.parity
    assert max(beside.manifest.parity["greatest_difference"].values()) <= 1e-4
    for left, right in zip(answers(inside), answers(beside), strict=True):
        np.testing.assert_array_equal(left, right)
    again = load_network(beside).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in network.state_dict().items())
    copied = recalibrated(beside, tmp_path / "copies", success_threshold=1.0)
    assert copied.file("model.onnx.data").read_bytes() == beside.file("model.onnx.data").read_bytes()
    monkeypatch.undo()
    assert export_bundle(network, dots.embodiment(), tmp_path, "both", exporter=exporter) == inside
    assert {item.name for item in tmp_path.iterdir()} == {inside.id, beside.id, "copies"}


def answers(bundle):
    images = {"top": np.stack([dots.picture(3), dots.picture(5)])}
    observation = Observation(stamp_ns=1, images=images, state=np.array([5.0], np.float32))
    output = OnnxModel(load_bundle(bundle.path)).run([observation] * 3, ["go to the left side"] * 3)
    return output.action_logits, output.steps_to_go_logits


def test_a_graph_that_differs_from_torch_is_refused(network, exporter, tmp_path):
    path = exporter.export(network, tmp_path)["model.onnx"]
    model = onnx.load(path)
    weight = next(item for item in model.graph.initializer if item.name == "action_head.bias")
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) + 0.001).tobytes()
    onnx.save(model, path)
    with pytest.raises(BundleUnusable, match="differs from torch"):
        check_parity(network, path, random_batch(network, 4), exporter.outputs)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = build_network(dots.embodiment(), {"name": "state"})
    with torch.no_grad():
        network.action_head.bias[0] = float("nan")
    with pytest.raises(BundleUnusable, match=r"action_head\.bias.*not finite"):
        export_bundle(network, dots.embodiment(), tmp_path, "policy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("free", [400_000, 3_000_000])  # Too little for the graph, and for the weights.
def test_a_disk_without_room_for_a_bundle_is_told_and_nothing_is_left(free, network, exporter, small_disk):
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - free))
    with pytest.raises(SpoolFull, match="free some space"):
        export_bundle(network, dots.embodiment(), small_disk, "both", exporter=exporter)
    assert [item.name for item in small_disk.iterdir()] == ["filler"]


def test_another_embodiment_is_refused(network, tmp_path):
    with pytest.raises(BadRequest, match="was made for"):
        export_bundle(network, dots.embodiment(frames=1), tmp_path, "policy")


def test_weights_of_another_architecture_are_refused(tmp_path):
    bundle = write_random_bundle(dots.embodiment(), tmp_path / "a", "both")
    small = build_network(dots.embodiment(), {"name": "small"})
    save_weights(small, bundle.path / "model.safetensors")
    with pytest.raises(BundleInvalid, match="does not fit"):
        load_network(bundle)


def test_a_random_bundle_runs_in_the_runtime_of_the_nodes(tmp_path):
    embodiment = dots.embodiment()
    bundle = write_random_bundle(embodiment, tmp_path, "both", seed=3, backbone="small", heads=2)
    assert [item.shape for item in answers(bundle)] == [(3, 1, 2, 5), (3, 2, 12)]


def test_a_recalibrated_bundle_keeps_the_model_and_gets_another_id(tmp_path):
    bundle = write_random_bundle(dots.embodiment(), tmp_path, "reward")
    other = recalibrated(bundle, tmp_path, success_threshold=1.25)
    assert other.id != bundle.id and load_bundle(other.path).manifest.success_threshold == 1.25
    assert other.file("model.onnx").read_bytes() == bundle.file("model.onnx").read_bytes()
