"""Bundles: what is written is read back, and nothing that was changed is accepted."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efm_core.bundle import BundleManifest, bundle_id, load_bundle, parse_manifest, write_bundle
from efm_core.embodiment import Embodiment
from efm_core.errors import BundleInvalid, BundleTampered, BundleUnknown, EmbodimentMismatch
from efm_core.files import lock_folder

EMBODIMENT: dict[str, Any] = {
    "name": "table",
    "control_rate_hz": 10.0,
    "max_steps": 200,
    "cameras": [
        {"name": "top", "topic": "camera/top/image_raw", "transport": "raw", "width": 96, "height": 96}
    ],
    "action": {
        "interface": "float64_multi_array",
        "topic": "commands",
        "dimensions": [
            {"name": "dx", "low": -0.03, "high": 0.03, "bins": 21, "unit": "m", "max_rate": "inf"},
            {"name": "dy", "low": -0.03, "high": 0.03, "bins": 21, "unit": "m", "max_rate": 1.0},
        ],
    },
    "steps_to_go": {"bins": 50, "width": 4},
    "reset": {"method": "service"},
}


def embodiment(**changes: Any) -> Embodiment:
    return Embodiment.from_dict({**EMBODIMENT, **changes})


def manifest(**changes: Any) -> BundleManifest:
    known: dict[str, Any] = {
        "kind": "both",
        "embodiment": embodiment().to_dict(),
        "inputs": {"observation.images.top": {"shape": ["batch", 1, 96, 96, 3], "dtype": "uint8"}},
        "outputs": {
            "action_logits": {"shape": ["batch", 1, 2, 21], "dtype": "float32"},
            "steps_to_go_logits": {"shape": ["batch", 1, 50], "dtype": "float32"},
        },
        "opset": 18,
        "training": {"learning_rate": np.float32(0.5), "betas": (0.9, 0.95)},
        "success_threshold": 2.5,
    }
    return BundleManifest(**{**known, **changes})


FILES = {"model.onnx": b"graph" * 1000, "model.safetensors": b"weights"}


def test_a_bundle_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(b"weights")
    written = write_bundle(
        tmp_path, manifest(), {"model.onnx": FILES["model.onnx"], "model.safetensors": source}
    )
    read = load_bundle(written.path)
    assert read == written
    assert read.path == tmp_path / read.id
    assert read.manifest.training == {"learning_rate": 0.5, "betas": [0.9, 0.95]}
    assert read.file("model.onnx").read_bytes() == FILES["model.onnx"]
    assert {item.name for item in tmp_path.iterdir()} == {read.id, "weights"}


def test_the_same_content_gives_the_same_bundle_and_other_content_another(tmp_path: Path) -> None:
    first = write_bundle(tmp_path, manifest(), FILES)
    assert write_bundle(tmp_path, manifest(), FILES) == first
    assert write_bundle(tmp_path, manifest(version=1), FILES).id != first.id
    assert write_bundle(tmp_path, manifest(), {**FILES, "model.onnx": b"other"}).id != first.id


def test_the_id_does_not_depend_on_the_layout_of_the_manifest() -> None:
    assert (
        bundle_id(b'{"a": 1, "b": [2]}')
        == bundle_id(b'{"b":[2],\n"a":1}')
        != bundle_id(b'{"a": 1, "b": [3]}')
    )


def test_a_bundle_is_opened_through_a_link(tmp_path: Path) -> None:
    written = write_bundle(tmp_path, manifest(), FILES)
    (tmp_path / "best").symlink_to(written.id)
    assert load_bundle(tmp_path / "best").id == written.id


def _change_byte(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(b"G" + path.read_bytes()[1:])


def _change_size(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"short")


def _change_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"success_threshold": 2.5', b'"success_threshold": 9.5'))


def _link(folder: Path) -> None:
    path = folder / "model.onnx"
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize("change", [_change_byte, _change_size, _change_manifest, _link])
def test_a_changed_bundle_is_refused_as_tampered(tmp_path: Path, change: Any) -> None:
    written = write_bundle(tmp_path, manifest(), FILES)
    change(written.path)
    with pytest.raises(BundleTampered, match="expected"):
        load_bundle(written.path)


def test_a_renamed_bundle_is_refused_and_told_to_be_linked(tmp_path: Path) -> None:
    written = write_bundle(tmp_path, manifest(), FILES)
    with pytest.raises(BundleTampered, match="link to a bundle"):
        load_bundle(shutil.move(written.path, tmp_path / "mine"))


def test_missing_and_additional_files_are_refused(tmp_path: Path) -> None:
    written = write_bundle(tmp_path, manifest(), FILES)
    (written.path / "note.txt").write_text("hello")
    with pytest.raises(BundleInvalid, match=r"note\.txt is not in the manifest"):
        load_bundle(written.path, verify=False)
    (written.path / "note.txt").unlink()
    (written.path / "model.onnx").unlink()
    with pytest.raises(BundleInvalid, match=r"model\.onnx, which is missing"):
        load_bundle(written.path)


def test_a_folder_without_manifest_and_no_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"manifest\.json"):
        load_bundle(tmp_path)
    with pytest.raises(BundleUnknown, match="nothing"):
        load_bundle(tmp_path / "none")


@pytest.mark.parametrize(
    "name", ["model.pkl", "model.pt", "model.bin", "../model.onnx", "manifest.json", ".onnx"]
)
def test_formats_that_can_run_code_and_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleInvalid, match="files"):
        write_bundle(tmp_path / "bundles", manifest(), {name: b"x"})
    assert list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "polcy"}, "did you mean 'policy'"),
        ({"opset": True}, "opset: expected int"),
        ({"heads": 0}, "heads: expected 1 to 1000, found 0"),
        ({"version": 2**32}, "version: expected 0 to 4294967295"),
        ({"success_hold": 2**16}, "success_hold"),
        ({"success_threshold": 1e300}, "success_threshold"),
        ({"git_revision": "\ud800"}, r"manifest\.git_revision"),
        ({"combine": "median"}, "combine"),
        ({"success_threshold": -1.0}, "success_threshold"),
        ({"parent_id": "../x"}, "parent_id"),
        ({"data_ids": [1]}, "data_ids"),
        ({"outputs": {"action_logits": {"shape": [1], "dtype": "float32"}}}, "steps_to_go_logits"),
        ({"inputs": {}}, "inputs"),
        ({"inputs": {"x": {"shape": 3, "dtype": "uint8"}}}, r"inputs\.x"),
        ({"embodiment": {**EMBODIMENT, "control_rate": 1}}, "control_rate"),
        ({"validation": {"loss": float("nan")}}, r"manifest\.validation\.loss"),
        ({"training": {"path": Path("/x")}}, r"manifest\.training\.path"),
    ],
)
def test_a_manifest_that_breaks_its_schema_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BundleInvalid, match=words):
        write_bundle(tmp_path, manifest(**changes), FILES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "expected JSON"),
        (b"\xff", "expected JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"format": 1, "format": 1}', "twice"),
        (b'{"format": NaN}', "NaN"),
        (b'{"format": 2}', "expected format 1, found 2"),
        (b'{"format": 1, "kinds": "policy"}', "did you mean 'kind'"),
        (b"[" * 100_000, "expected JSON"),
        (b'{"git_revision": "\\ud800"}', "expected JSON"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_why(text: bytes, words: str) -> None:
    with pytest.raises(BundleInvalid, match=words):
        parse_manifest(text, where="manifest.json")


def test_a_bundle_for_another_embodiment_is_refused_with_the_differences(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, manifest(), FILES)
    bundle.check_embodiment(embodiment(max_steps=100, name="other"))
    changed = json.loads(json.dumps(EMBODIMENT))
    changed["cameras"][0]["width"] = 64
    changed["action"]["dimensions"][1]["bins"] = 5
    with pytest.raises(EmbodimentMismatch, match=r"bins.*21 against 5.*width.*96 against 64"):
        bundle.check_embodiment(Embodiment.from_dict(changed))


def test_a_full_table_of_files_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, manifest(), FILES)
    with pytest.raises(BundleInvalid, match="write_bundle fills"):
        write_bundle(tmp_path, bundle.manifest, FILES)
    again = write_bundle(tmp_path, dataclasses.replace(bundle.manifest, files={}), FILES)
    assert again.id == bundle.id


def test_what_a_dead_writer_left_is_removed_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    for name in ("dead", "living"):
        (tmp_path / f".bundle-{name}.partial").mkdir()
    lock = lock_folder(tmp_path / ".bundle-living.partial")
    bundle = write_bundle(tmp_path, manifest(), FILES)
    os.close(lock)
    assert {path.name for path in tmp_path.iterdir()} == {bundle.id, ".bundle-living.partial"}
