"""`efm bundle`: a person sees what a bundle is, and a script sees by the exit code whether it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_bundle import FILES, embodiment, manifest

from efm_core.bundle import write_bundle
from efm_core.bundle_command import main


def test_show_names_what_one_wants_to_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path, manifest(validation={"steps_to_go": 0.5}), FILES)
    assert main(["show", str(bundle.path)]) == 0
    shown = capsys.readouterr().out
    for words in (bundle.id, "both", embodiment().digest, "at most 2.5 steps to go", "steps_to_go = 0.5"):
        assert words in shown
    assert "learning_rate" not in shown
    assert main(["show", "--all", str(bundle.path)]) == 0
    assert "training.learning_rate" in capsys.readouterr().out


def test_check_finds_the_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_bundle(tmp_path, manifest(), FILES)
    bad = write_bundle(tmp_path, manifest(version=1), FILES)
    assert main(["check", str(good.path), str(bad.path)]) == 0
    (bad.path / "model.onnx").write_bytes(b"changed")
    assert main(["check", str(good.path), str(bad.path)]) == 1
    shown = capsys.readouterr().out
    assert "BundleTampered" in shown and f"{good.path}: both, 2 files" in shown


def test_check_refuses_a_bundle_of_another_robot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    bundle = write_bundle(tmp_path, manifest(), FILES)
    plain = embodiment().to_dict()
    (tmp_path / "robot.yaml").write_text(yaml.safe_dump(plain))
    assert main(["check", str(bundle.path), "--embodiment", str(tmp_path / "robot.yaml")]) == 0
    plain["control_rate_hz"] = 5.0
    (tmp_path / "robot.yaml").write_text(yaml.safe_dump(plain))
    assert main(["check", str(bundle.path), "--embodiment", str(tmp_path / "robot.yaml")]) == 1
    assert "control_rate_hz 10.0 against 5.0" in capsys.readouterr().out


def test_diff_lists_only_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_bundle(tmp_path, manifest(), FILES)
    second = write_bundle(tmp_path, manifest(training={"learning_rate": 0.25, "betas": [0.9, 0.95]}), FILES)
    assert main(["diff", str(first.path), str(second.path)]) == 1
    shown = capsys.readouterr().out
    assert "training.learning_rate" in shown and "0.25" in shown and "betas" not in shown
    assert main(["diff", str(first.path), str(first.path)]) == 0


def test_a_wrong_path_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tmp_path / "none")]) == 1
    assert "BundleUnknown" in capsys.readouterr().out


def test_the_folder_of_a_run_is_answered_with_its_bundles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "bundles", manifest(), FILES)
    assert main(["show", str(tmp_path)]) == 1
    assert f"name one of its bundles: {bundle.path}" in capsys.readouterr().out.replace("\n", "")
