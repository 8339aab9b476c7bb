"""The training loop: it learns, resumes exactly, stops on SIGTERM, and shares batches between processes."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import dots
import numpy as np
import pytest
import torch

from efm_core.errors import BadRequest, SpoolFull
from efm_learner.batches import Mixture
from efm_learner.checkpoint import checkpoints
from efm_learner.metrics import MetricsWriter, read_metrics
from efm_learner.samples import Labelling, make_table
from efm_learner.sft_config import SftConfig
from efm_learner.training import train
from efm_learner.validation import predicted_steps

LABELLING = Labelling(rest_steps=dots.REST)
CONFIG = SftConfig(
    backbone={"name": "state", "hidden": (32,)},
    steps=12,
    warmup_steps=2,
    mixture=Mixture(batch_size=16),
    labelling=LABELLING,
    validate_every=4,
    checkpoint_every=4,
)


def tables(successful=12, unsuccessful=4):
    episodes = dots.episodes(successful, unsuccessful)
    cut = [e for e in episodes if int(e.id[-3:]) % 5 == 4]
    rest = [e for e in episodes if int(e.id[-3:]) % 5 != 4]
    return [make_table(part, dots.embodiment(), LABELLING) for part in (rest, cut)]


def run(config, out, held_out=True, tell=None, unsuccessful=4):
    training, validation = tables(unsuccessful=unsuccessful)
    losses = {}
    trained = train(
        config, dots.embodiment(), training, validation if held_out else None, out,
        on_step=lambda step, loss: (losses.__setitem__(step, loss), tell and tell(step)),
    )  # fmt: skip
    return trained, losses


def test_a_small_network_learns_to_act_and_to_judge_from_pictures_and_words(tmp_path):
    config = replace(
        CONFIG,
        backbone={"name": "small", "patch": 8, "channels": (16, 16), "slots": 4},
        steps=150,
        learning_rate=3e-3,
        mixture=Mixture(batch_size=48, shift_pixels=1, instruction=True),
        instruction_weight=0.2,
        foresight_weight=1.0,
        validate_every=50,
    )
    # The state is the same whatever the goal: only words tell the side.
    trained, losses = run(config, tmp_path, unsuccessful=0)
    assert losses[150] < losses[1] / 3
    table = tables(unsuccessful=0)[1]
    d, _ = predicted_steps(trained.reward, table, np.arange(len(table)), "mean")
    assert np.abs(d - table.steps_to_go).mean() < 1.0
    entry = read_metrics(tmp_path)[-1]
    assert entry["sft/foresight"] < 0.1
    assert entry["step"] == 150 and entry["sft/validation_action_agreement"] > 0.9
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_training_gives_the_very_same_losses(tmp_path):
    _, whole = run(CONFIG, tmp_path / "whole")

    class Killed(Exception):
        pass

    def die(step):
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        run(CONFIG, tmp_path / "parts", tell=die)
    trained, rest = run(CONFIG, tmp_path / "parts")
    assert list(rest) == list(range(5, 13))
    assert [rest[step] for step in rest] == [whole[step] for step in rest]
    assert trained.state.step == 12
    assert [entry["step"] for entry in read_metrics(tmp_path / "parts")] == [4, 8, 12]


def test_a_broken_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    _, whole = run(CONFIG, tmp_path)
    newest = checkpoints(tmp_path)[-1]
    (newest / "weights.safetensors").write_bytes(b"broken")
    _, again = run(CONFIG, tmp_path)
    assert list(again) == [9, 10, 11, 12] and again[12] == whole[12]


def test_what_a_killed_training_left_half_written_is_removed(tmp_path):
    torn = tmp_path / "checkpoints/.step_00000004.1.partial", tmp_path / "best/.policy_00000004.1.partial"
    torn[0].mkdir(parents=True)
    torn[1].parent.mkdir()
    torn[1].touch()
    run(CONFIG, tmp_path)
    assert not any(path.exists() for path in torn)


def test_metrics_of_an_interrupted_training_outlive_a_full_disk(tmp_path, monkeypatch):
    MetricsWriter(tmp_path).write(1, {"sft/loss": 2.0})

    def full(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("efm_core.files.write_synced", full)
        with pytest.raises(SpoolFull, match="metrics.jsonl cannot be written"):
            MetricsWriter(tmp_path, 1)
    assert read_metrics(tmp_path) == [{"step": 1, "sft/loss": 2.0}]


def test_other_settings_are_refused_in_the_same_folder(tmp_path):
    run(CONFIG, tmp_path)
    with pytest.raises(BadRequest, match="learning_rate: 0.0005 then, 0.1 now"):
        run(replace(CONFIG, learning_rate=0.1), tmp_path)
    run(replace(CONFIG, threads=2), tmp_path)


def test_policy_and_reward_are_chosen_by_their_own_validation_loss(tmp_path):
    trained, _ = run(CONFIG, tmp_path)
    entries = read_metrics(tmp_path)
    for choice, name in (("policy", "cloning"), ("reward", "steps_to_go")):
        losses = {entry["step"]: entry[f"sft/validation_{name}"] for entry in entries}
        best = trained.state.best[choice]
        assert best["loss"] == pytest.approx(min(losses.values())) and losses[best["step"]] == min(
            losses.values()
        )


def test_without_held_out_episodes_the_last_weights_are_taken(tmp_path):
    trained, _ = run(CONFIG, tmp_path, held_out=False)
    assert {entry["step"] for entry in trained.state.best.values()} == {12}


def test_the_last_policy_is_taken_on_request(tmp_path):
    trained, _ = run(replace(CONFIG, policy_weights="last", learning_rate=0.5), tmp_path)
    assert trained.state.best["policy"]["step"] == 12


SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1])
import logging
import test_training as t
from pathlib import Path
from dataclasses import replace
if sys.argv[2] == "long":
    print("ready", flush=True)
    t.run(replace(t.CONFIG, steps=10**6, checkpoint_every=10**6, validate_every=10**6), Path(sys.argv[3]))
else:
    _, losses = t.run(replace(t.CONFIG, steps=3), Path(sys.argv[3]))
    print(*[f"{loss:.6f}" for loss in losses.values()])
"""


def script(mode, out, **environment):
    arguments = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), mode, str(out)]
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def test_sigterm_saves_a_checkpoint_first(tmp_path):
    process = script("long", tmp_path)
    assert process.stdout.readline().strip() == "ready"
    deadline = time.monotonic() + 200
    while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=250)
    assert "Interrupted: stopped after step" in errors
    assert len(checkpoints(tmp_path)) == 1


def test_two_processes_get_the_same_losses_as_one(tmp_path):
    _, alone = run(replace(CONFIG, steps=3), tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
    }
    running = [
        script("short", tmp_path / "two", RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)
    ]
    outputs = [process.communicate(timeout=250) for process in running]
    for out, errors in outputs:
        assert out, errors
        assert [float(x) for x in out.split()] == pytest.approx(list(alone.values()), abs=2e-5)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(BadRequest, match="lower the learning rate"):
        run(replace(CONFIG, learning_rate=1e30, gradient_norm=0.0), tmp_path)


def test_settings_out_of_range_are_all_named():
    with pytest.raises(BadRequest, match=r"heads=0, expected .*; steps=0, expected"):
        SftConfig(heads=0, steps=0)
    with pytest.raises(BadRequest, match="did you mean 'mixture'"):
        SftConfig.from_dict({"mixtur": {}})
    assert SftConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert torch.get_num_threads() >= 1
