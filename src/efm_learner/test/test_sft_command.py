"""`efm sft` from bags to bundles that the nodes can run."""

import json

import dots
import numpy as np
import pytest
import yaml

from efm_core.bundle import load_bundle
from efm_core.episode import list_episodes, read_episode
from efm_core.errors import BadRequest
from efm_core.observation import Observation
from efm_core.onnx_model import OnnxModel
from efm_learner.run_folder import owned
from efm_learner.sft_command import config_from, main

NEEDED = ["--episodes", "e", "--embodiment", "table", "--out", "o"]


def test_demonstrations_become_a_policy_bundle_and_a_calibrated_reward_bundle(tmp_path, capsys):
    for episode in dots.episodes(16, 8):
        dots.record(tmp_path / "episodes", episode)
    embodiment = tmp_path / "dots.yaml"
    embodiment.write_text(yaml.safe_dump(dots.embodiment().to_dict()))
    code = main(
        ["--episodes", str(tmp_path / "episodes"), "--embodiment", str(embodiment),
         "--out", str(tmp_path / "run"), "--backbone", "state", "--steps", "60",
         "--batch-size", "64", "--learning-rate", "0.005",
         "--rest-steps", str(dots.REST), "--validation-share", "0.25", "--heads", "2", "--combine", "max"]
    )  # fmt: skip
    assert code == 0
    told = capsys.readouterr().out
    assert "success when d <=" in told and "4 successful and 2 unsuccessful" in told
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    policy, reward = (
        load_bundle(tmp_path / "run" / "bundles" / result[kind]) for kind in ("policy", "reward")
    )
    assert policy.manifest.kind == "policy" and policy.manifest.parity["source"] == "episode frames"
    assert policy.manifest.success_threshold is None
    assert reward.manifest.success_threshold == result["calibration"]["detector"]["threshold"]
    assert reward.manifest.combine == "max" and reward.manifest.heads == 2
    assert len(reward.manifest.data_ids) == 18
    assert "expected_false_success" in reward.manifest.validation["calibration"]["detector"]

    episode = read_episode(list_episodes(tmp_path / "episodes")[0])
    observation = Observation(
        int(episode.stamps[0]), {"top": episode.images["top"][[0, 0]]}, episode.state[0]
    )
    outputs = OnnxModel(policy).run([observation], [episode.instruction])
    assert np.isfinite(outputs.action_logits).all() and outputs.steps_to_go_logits is None


def test_options_and_dotted_settings_reach_the_configuration(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("heads: 3\nbackbone: {name: small, slots: 8}\nmixture: {mismatched: 0.1}\n")
    config = config_from(
        [*NEEDED, "--config", str(file), "--censored", "0", "--set", "labelling.censored_margin=4",
         "--set", "backbone.width=32", "--tell-instruction", "0.5"]
    )  # fmt: skip
    assert config.heads == 3 and config.mixture.mismatched == 0.1 and config.mixture.censored == 0
    assert config.labelling.censored_margin == 4 and config.backbone == {
        "name": "small",
        "slots": 8,
        "width": 32,
    }
    assert config.mixture.instruction and config.instruction_weight == 0.5


def test_a_setting_of_the_backbone_leaves_the_default_one_in_place():
    """It was refused, because the name was lost."""
    assert config_from([*NEEDED, "--set", "backbone.width=32"]).backbone == {"name": "small", "width": 32}


def test_a_misspelt_setting_names_the_nearest_one():
    with pytest.raises(BadRequest, match="did you mean 'censored'"):
        config_from([*NEEDED, "--set", "mixture.censord=1"])
    with pytest.raises(BadRequest, match="expected KEY=VALUE"):
        config_from([*NEEDED, "--set", "heads"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("heads=many", "sft: heads: expected a whole number, found 'many'"),
        ("steps=1.5", "sft: steps: expected a whole number, found 1.5"),
        ("heads=[", "--set: expected a value in YAML after heads="),
        ("mixture=3", "sft: mixture: expected settings, found 3"),
        ("calibration.holds=3", "calibration: holds: expected a list, found 3"),
        ("mixture.instruction=maybe", "mixture: instruction: expected true or false"),
        ("backbone=small", "sft: backbone: expected a mapping"),
        ("backbone={}", "out of range: backbone={}"),
        ("labelling.rest_steps=-3", "expected rest_steps and censored_margin of 0 or more"),
        ("seed=-1", "out of range: seed=-1, expected from 0"),
        ("steps=99999999999999999999", "sft: steps: expected a whole number below 2^63"),
        ("steps=2000000000", "steps=2000000000, expected a whole number from 1 to 1000000000"),
        ("warmup_steps=-1", "warmup_steps=-1, expected from 0"),
        ("heads=1001", "heads=1001, expected a whole number from 1 to 1000"),
        ("threads=0", "threads=0, expected a whole number from 1 to 256"),
        ("mixture.batch_size=2000000", "expected batch_size from 4 to 1048576"),
        ("calibration.holds=[1, 70000]", "holds: expected numbers from 1 to 65535"),
        ("calibration.early_tolerance=-1", "early_tolerance: expected 0 or more"),
        (f"learning_rate={'9' * 400}", "sft: learning_rate: expected a number, found 999"),
        ("learning_rate=.inf", "learning_rate=inf, expected a number above 0"),
        ("learning_rate=fast", "sft: learning_rate: expected a number, found 'fast'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told(setting, message):
    with pytest.raises(BadRequest) as told:
        config_from([*NEEDED, "--set", setting])
    assert message in str(told.value)


def test_a_number_with_an_exponent_is_a_number():
    assert config_from([*NEEDED, "--set", "learning_rate=1e-3"]).learning_rate == 0.001


@pytest.fixture
def spoilt(tmp_path):
    """Runs the command on episodes, and returns its code and what it told."""
    embodiment = tmp_path / "dots.yaml"
    embodiment.write_text(yaml.safe_dump(dots.embodiment().to_dict()))

    def run(capsys, episodes, *options, out="run"):
        folder = tmp_path / "episodes"
        for episode in episodes:
            dots.record(folder, episode)
        arguments = ["--episodes", str(folder), "--embodiment", str(embodiment), "--out", str(tmp_path / out)]
        short = ["--steps", "2", "--batch-size", "8", "--backbone", "state"]
        code = main([*arguments, *short, *options])
        streams = capsys.readouterr()
        return code, streams.err + streams.out

    return run


def test_an_episode_with_a_state_that_is_not_finite_is_left_out_and_told(spoilt, capsys, caplog):
    broken = dots.episode(0)
    broken.state[2] = np.nan
    with caplog.at_level("INFO"):
        code, _ = spoilt(capsys, [broken, *dots.episodes(4)[1:]])
    assert code == 0 and "1 left out: unreadable" in caplog.text
    assert "expected finite states, found [nan] in row 2" in caplog.text


def test_a_finished_training_that_is_run_again_gives_the_very_same_bundles(spoilt, capsys, tmp_path):
    spoilt(capsys, dots.episodes(4))
    before = (tmp_path / "run" / "result.json").read_text()
    assert spoilt(capsys, [])[0] == 0
    assert (tmp_path / "run" / "result.json").read_text() == before


def test_data_that_cannot_teach_are_told(spoilt, capsys):
    failures = [dots.episode(number, success=False) for number in range(5)]
    code, told = spoilt(capsys, failures)
    assert code == 1 and "needs successful demonstrations" in told and "0 of them successful" in told


def test_a_rest_as_long_as_the_demonstrations_is_refused(spoilt, capsys):
    code, told = spoilt(capsys, dots.episodes(4), "--rest-steps", "500")
    assert code == 1 and "labelling.rest_steps must be shorter than the demonstrations" in told


def test_histories_that_the_backbone_does_not_see_cannot_be_rewound(spoilt, capsys):
    code, told = spoilt(capsys, dots.episodes(4), "--rewound", "0.3")
    assert code == 1 and "mixture.rewound needs a backbone with a camera" in told


def test_a_folder_that_cannot_be_written_is_told_in_one_line(spoilt, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, told = spoilt(capsys, dots.episodes(4), out="file/run")
    assert code == 1 and "Not a directory; choose another --out or --cache" in told


def test_two_trainings_do_not_share_a_folder(spoilt, capsys, tmp_path):
    with owned(tmp_path / "run"):
        code, told = spoilt(capsys, dots.episodes(4))
    assert code == 1 and f"{tmp_path / 'run'}: expected it free, found it owned by process" in told
    assert spoilt(capsys, [])[0] == 0


def test_an_error_is_told_in_one_line(tmp_path, capsys):
    arguments = ["--episodes", str(tmp_path), "--embodiment", "table", "--out", str(tmp_path / "run")]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("efm sft: ")
