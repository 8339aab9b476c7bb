"""`efm bundle convert`: lower precision, measured on recorded frames, refused where it changes too much."""

import errno
import os
from dataclasses import replace

import dots
import onnx
import pytest

from efm_core.bundle import load_bundle, write_bundle
from efm_core.bundle_command import main
from efm_core.conversion import convert_bundle
from efm_core.episode import list_episodes, read_episode
from efm_core.errors import BadRequest, BundleInvalid, BundleUnusable, EpisodeInvalid, SpoolFull
from efm_core.onnx_model import OnnxModel
from efm_learner.export import load_network
from efm_learner.labelling import Judge
from efm_learner.random_bundle import write_random_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """An untrained bundle that acts and judges from images, words and state."""
    return write_random_bundle(
        dots.embodiment(), tmp_path_factory.mktemp("bundle"), "both", backbone="small", heads=2
    )


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("episodes")
    for episode in dots.episodes(3):
        dots.record(folder, episode)
    return folder


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_converted_bundle_is_smaller_says_how_it_agrees_and_serves_both_nodes(
    precision, bundle, episodes, tmp_path
):
    made = convert_bundle(bundle, precision, episodes, tmp_path, frames=20, least_agreement=0.5)
    found = made.manifest.parity
    assert found["precision"] == precision and found["against"] == bundle.id == made.manifest.parent_id
    assert 0.9 <= found["action_agreement"] <= 1 and 0.9 <= found["success_agreement"] <= 1
    assert found["samples"] >= 20
    assert found["steps_to_go_difference"]["mean"] < 0.2
    assert made.file("model.onnx").stat().st_size < 0.7 * bundle.file("model.onnx").stat().st_size
    again = load_bundle(made.path)
    OnnxModel(again).warm_up(3)
    assert Judge(again).threshold == bundle.manifest.success_threshold


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_weights_beside_the_model_are_converted_and_stay_there(precision, bundle, episodes, tmp_path):
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    model = onnx.load(files["model.onnx"])
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    split = {name: tmp_path / name for name in ("model.onnx", "model.onnx.data")}
    parent = write_bundle(tmp_path / "parents", replace(bundle.manifest, files={}), {**files, **split})
    made = convert_bundle(parent, precision, episodes, tmp_path / "made", frames=20, least_agreement=0.5)
    assert made.manifest.files.keys() == split.keys()
    assert made.file("model.onnx.data").stat().st_size < 0.7 * split["model.onnx.data"].stat().st_size
    inside = convert_bundle(bundle, precision, episodes, tmp_path / "inside", frames=20, least_agreement=0.5)
    for name in ("action_agreement", "steps_to_go_difference"):
        assert made.manifest.parity[name] == inside.manifest.parity[name]
    assert not list((tmp_path / "made").glob(".*"))


def test_what_changes_too_much_is_refused_and_leaves_nothing_behind(bundle, episodes, tmp_path, monkeypatch):
    monkeypatch.setattr("efm_core.conversion._compared", lambda *_: {"action_agreement": 0.6})
    with pytest.raises(BundleUnusable, match="action_agreement is 0.600 .* expected at least 0.9"):
        convert_bundle(bundle, "int8", episodes, tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_is_not_measured_on_nothing_or_on_another_robot(bundle, tmp_path):
    with pytest.raises(EpisodeInvalid, match="found none; give the folder"):
        convert_bundle(bundle, "int8", tmp_path, tmp_path)
    dots.record(tmp_path, dots.episode(0))
    other = write_random_bundle(dots.embodiment(frames=1), tmp_path / "other", "policy")
    with pytest.raises(EpisodeInvalid, match="use a bundle made for this robot"):
        convert_bundle(other, "int8", tmp_path, tmp_path)
    with pytest.raises(BadRequest, match="fp16, int8"):
        convert_bundle(bundle, "int4", tmp_path, tmp_path)


def test_more_frames_than_there_are_mean_all_of_them(bundle, episodes, tmp_path):
    made = convert_bundle(bundle, "int8", episodes, tmp_path, frames=10**20, least_agreement=0.5)
    assert made.manifest.parity["samples"] == sum(len(read_episode(path)) for path in list_episodes(episodes))


def test_a_converted_bundle_cannot_be_trained_and_names_its_parent(bundle, episodes, tmp_path):
    made = convert_bundle(bundle, "int8", episodes, tmp_path, least_agreement=0.5)
    with pytest.raises(BundleInvalid, match=f"take its parent {bundle.id}"):
        load_network(made)


def test_the_command_tells_where_the_bundle_is_and_what_it_measured(bundle, episodes, tmp_path, capsys):
    arguments = [
        "convert",
        str(bundle.path),
        "--to",
        "int8",
        "--out",
        str(tmp_path),
        "--least-agreement",
        "0.5",
    ]
    assert main([*arguments, "--episodes", str(episodes)]) == 0
    told = capsys.readouterr().out
    assert "action_agreement = " in told and str(tmp_path) in told
    assert main([*arguments, "--episodes", str(tmp_path / "nothing")]) == 1
    assert f"EpisodeInvalid: {tmp_path / 'nothing'}" in capsys.readouterr().out


def test_a_full_disk_for_temporary_files_is_no_fault_of_the_bundle(bundle, episodes, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    left = tmp_path / "efm-conversion-killed.partial"
    left.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("onnxruntime.quantization.shape_inference.quant_pre_process", full)
    with pytest.raises(SpoolFull, match=r"TMPDIR.*cannot be written.*No space left"):
        convert_bundle(bundle, "int8", episodes, tmp_path / "made")
    assert not list(tmp_path.iterdir()), "nor is anything left of a conversion that was killed"
