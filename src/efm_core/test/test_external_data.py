"""Weights beside an ONNX file: read as those inside, hashed as every file, and taken from nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import test_onnx_model as plain
from onnx import TensorProto, helper

from efm_core.bundle import Bundle, load_bundle, write_bundle
from efm_core.bundle_command import main
from efm_core.conversion import convert_bundle
from efm_core.errors import BundleInvalid, BundleTampered, BundleUnusable
from efm_core.external_data import DATA_FILE, MODEL_FILE
from efm_core.onnx_model import OnnxModel

ELSEWHERE = (
    "../outside.data",
    "/etc/hostname",
    f"./{DATA_FILE}",
    f"sub/../{DATA_FILE}",
    "unlisted.data",
    MODEL_FILE,
    "manifest.json",
)


def split(folder: Path) -> dict[str, bytes | Path]:
    """Writes a model whose weights lie beside it."""
    folder.mkdir(parents=True)
    model = onnx.load_from_string(plain.graph())
    onnx.save_model(
        model, folder / MODEL_FILE, save_as_external_data=True, location=DATA_FILE, size_threshold=0
    )
    return {name: folder / name for name in (MODEL_FILE, DATA_FILE)}


def bundle(folder: Path, files: Mapping[str, bytes | Path]) -> Bundle:
    """A bundle for the robot of the plain one, with other files."""
    manifest = plain.bundle(folder / "plain").manifest
    return write_bundle(folder, dataclasses.replace(manifest, files={}), files)


def beside(folder: Path) -> Bundle:
    return bundle(folder, split(folder / "parts"))


def with_location(place: Callable[[onnx.GraphProto, TensorProto], None], location: str) -> bytes:
    """A model that takes one more tensor, which it does not need, from a file."""
    model = onnx.load_from_string(plain.graph())
    tensor = TensorProto(name="more", data_type=TensorProto.FLOAT, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value=location)
    place(model.graph, tensor)
    return bytes(model.SerializeToString())


def as_weight(graph: onnx.GraphProto, tensor: TensorProto) -> None:
    graph.initializer.append(tensor)


def as_constant(graph: onnx.GraphProto, tensor: TensorProto) -> None:
    graph.node.append(helper.make_node("Constant", [], ["more"], value=tensor))


def as_part_of_a_sparse_weight(graph: onnx.GraphProto, tensor: TensorProto) -> None:
    graph.sparse_initializer.add(values=tensor, dims=[1])


def in_a_graph_within_the_graph(graph: onnx.GraphProto, tensor: TensorProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [tensor])
    graph.node.append(helper.make_node("If", ["scale"], ["more"], then_branch=inner, else_branch=inner))


def test_a_model_with_its_weights_beside_it_says_the_same(tmp_path: Path) -> None:
    seen = [plain.observation(1), plain.observation(2)]
    one = OnnxModel(plain.bundle(tmp_path / "one")).run(seen, ["push", "push"])
    made = beside(tmp_path / "two")
    assert made.manifest.files.keys() == {MODEL_FILE, DATA_FILE}
    two = OnnxModel(load_bundle(made.path)).run(seen, ["push", "push"])
    np.testing.assert_array_equal(one.action_logits, two.action_logits)
    np.testing.assert_array_equal(one.steps_to_go_logits, two.steps_to_go_logits)


@pytest.mark.parametrize("location", ELSEWHERE)
def test_weights_from_elsewhere_are_refused_by_all_that_open_a_model(
    tmp_path: Path, location: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outside.data").write_bytes(bytes(4))
    files = split(tmp_path / "parts")
    made = bundle(tmp_path, {**files, MODEL_FILE: with_location(as_weight, location)})
    words = f"takes weights from '{location}'; expected .*{DATA_FILE}"
    with pytest.raises(BundleInvalid, match=words):
        OnnxModel(made)
    with pytest.raises(BundleInvalid, match=words):
        convert_bundle(made, "int8", tmp_path, tmp_path / "converted")
    assert main(["check", str(made.path)]) == 1
    assert "takes weights from" in capsys.readouterr().out


@pytest.mark.parametrize(
    "place", [as_weight, as_constant, as_part_of_a_sparse_weight, in_a_graph_within_the_graph]
)
def test_a_tensor_from_elsewhere_is_found_wherever_it_hides(
    tmp_path: Path, place: Callable[[onnx.GraphProto, TensorProto], None]
) -> None:
    made = bundle(tmp_path, {MODEL_FILE: with_location(place, "../outside.data")})
    with pytest.raises(BundleInvalid, match=r"from '\.\./outside\.data'; expected .*\(none\)"):
        OnnxModel(made)


def test_missing_changed_and_short_weights_are_each_told(tmp_path: Path) -> None:
    made = beside(tmp_path)
    data = made.file(DATA_FILE)
    content = data.read_bytes()
    data.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(BundleTampered, match=rf"{DATA_FILE}: expected SHA-256"):
        load_bundle(made.path)
    data.write_bytes(content[:-1])
    with pytest.raises(BundleTampered, match=rf"{DATA_FILE}: expected {len(content)} bytes"):
        load_bundle(made.path, verify=False)
    data.unlink()
    with pytest.raises(BundleInvalid, match=rf"expected {DATA_FILE}, which is missing; fetch it again"):
        load_bundle(made.path)
    short = bundle(tmp_path, {MODEL_FILE: made.file(MODEL_FILE), DATA_FILE: content[:8]})
    with pytest.raises(BundleUnusable, match="does not load"):
        OnnxModel(short)


def test_a_graph_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleUnusable, match="expected an ONNX file"):
        OnnxModel(bundle(tmp_path, {MODEL_FILE: b"\xffno graph, but a location"}))


def test_the_commands_count_it_and_compare_it_like_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = beside(tmp_path)
    doubled = 2 * np.fromfile(first.file(DATA_FILE), np.float32)
    second = bundle(tmp_path, {MODEL_FILE: first.file(MODEL_FILE), DATA_FILE: doubled.tobytes()})
    assert main(["check", str(first.path)]) == 0 and main(["show", str(first.path)]) == 0
    shown = capsys.readouterr().out
    assert "both, 2 files" in shown and DATA_FILE in shown
    assert main(["diff", str(first.path), str(second.path)]) == 1
    told = capsys.readouterr().out
    assert f"files.{DATA_FILE}.sha256" in told and f"files.{MODEL_FILE}.sha256" not in told
