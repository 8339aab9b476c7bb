"""Backbone `vlm` on tiny models of real architectures: from their folder to a served bundle and practice."""

import json
import subprocess
import sys
from dataclasses import replace

import dots
import numpy as np
import pytest
import tiny_models
import torch

from efm_core.errors import BadRequest
from efm_core.instruction import encode_instruction
from efm_core.observation import Observation
from efm_core.onnx_model import OnnxModel
from efm_learner.backbones.eyes import FAMILIES
from efm_learner.batches import Mixture
from efm_learner.export import OnnxExporter, export_bundle, load_network
from efm_learner.network import build_network
from efm_learner.practice import PracticeSettings, PracticeTrainer, Rollout
from efm_learner.samples import Labelling, make_table
from efm_learner.sft import export, parity_frames
from efm_learner.sft_config import SftConfig
from efm_learner.training import train

LABELLING = Labelling(rest_steps=dots.REST)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model type -> folder of a model, made when it is asked for."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tiny_models.save(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def exporter():
    return OnnxExporter("policy")


@pytest.fixture(scope="module")
def policy(folders, exporter, tmp_path_factory):
    """An untrained policy bundle."""
    network = build_network(dots.embodiment(), backbone(folders("smolvlm"), freeze_vision=False))
    out = tmp_path_factory.mktemp("policy")
    return export_bundle(network.eval(), dots.embodiment(), out, "policy", exporter=exporter)


def backbone(folder, **settings):
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    size = tiny_models.ASKED_SIZE.get(kind)
    return {"name": "vlm", "model": str(folder), "instruction_length": 8, "image_size": size, **settings}


def inputs_of(network, episode, rows=(0, 2, 3)):
    table = make_table([episode], network.embodiment, LABELLING)
    names = ("observation.images.top", "observation.state", "instruction")
    return table.inputs(np.array(rows), network.embodiment, names, network.instruction)


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_model_sees_here_what_it_sees_at_home(kind, folders):
    pictured = dots.embodiment(frames=1, state=None)
    network = build_network(pictured, backbone(folders(kind))).eval()
    batch = inputs_of(network, replace(dots.episode(0), state=None))
    model = tiny_models.make(kind)
    trunk = network.policy_backbone
    pixels = trunk._pixels(batch["observation.images.top"][:, 0])
    words = batch["instruction"][:1][batch["instruction"][:1] >= 0]
    with torch.no_grad():
        features = trunk(batch)
        images = trunk.eyes(pixels).shape[1]
        ids = torch.cat([torch.full((images,), tiny_models.IMAGE_TOKEN), words])[None].expand(3, -1)
        told = tiny_models.shown(kind, pixels, ids)
        at_home = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), **told).last_hidden_state
    torch.testing.assert_close(features, at_home[:, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", tiny_models.ASKED_SIZE)
def test_several_images_lie_where_they_lie_at_home(kind, folders):
    network = build_network(dots.embodiment(), backbone(folders(kind)))
    image = [tiny_models.IMAGE_TOKEN] * 9
    ids = torch.tensor([[*image, 5, *image, 5, 6, 7]])  # There, images never follow one another at once.
    at_home, _ = tiny_models.make(kind).model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == tiny_models.IMAGE_TOKEN).long(),
        image_grid_thw=torch.tensor([[1, 6, 6]] * 2),
    )
    without_word = torch.cat([at_home[..., :9], at_home[..., 10:] - 1], dim=-1)
    assert torch.equal(network.policy_backbone.eyes.positions(2, 3), without_word)


@pytest.mark.parametrize("kind", tiny_models.ASKED_SIZE)
@pytest.mark.parametrize("rank", [0, 2])
def test_training_reaches_all_that_sees_and_all_that_reads_or_its_adapters(kind, rank, folders):
    settings = backbone(folders(kind), freeze_vision=False, lora_rank=rank)
    network = build_network(dots.embodiment(), settings)
    with torch.autocast("cpu", torch.bfloat16):
        network(inputs_of(network, dots.episode(0)))["action_logits"].square().mean().backward()
    trunk = network.policy_backbone
    still = {name for name, value in trunk.named_parameters() if value.grad is None or not value.grad.any()}
    read = {f"language.{name}" for name, _ in trunk.language.named_parameters()}
    adapters = {name for name in read if "lora_B" in name}  # As they begin with 0, the others wait.
    assert still == (read - adapters if rank else set())


TRAINED = (  # Whole or with adapters, and their eyes too.
    ("smolvlm", {"lora_rank": 4}),
    ("paligemma", {"freeze_vision": False}),
    ("qwen2_5_vl", {"lora_rank": 4, "freeze_vision": False}),
)


@pytest.mark.parametrize("kind", sorted(FAMILIES.keys() - {kind for kind, _ in TRAINED}))
def test_every_kind_of_model_becomes_a_graph_that_says_the_same(kind, folders, tmp_path):
    torch.manual_seed(1)
    network = build_network(dots.embodiment(), backbone(folders(kind))).eval()
    frames = parity_frames(network, make_table(dots.episodes(3), dots.embodiment(), LABELLING))
    bundle = export_bundle(network, dots.embodiment(), tmp_path, "policy", parity_batch=frames)
    assert bundle.manifest.parity["source"] == "episode frames"
    assert max(bundle.manifest.parity["greatest_difference"].values()) <= 1e-4
    assert served(bundle, dots.episode(1), 2) == pytest.approx(
        log_probs(load_network(bundle), dots.episode(1), 2), abs=1e-4
    )


def served(bundle, episode, row):
    """Log-probabilities of the first dimension's bins, as a policy node computes them."""
    images = {"top": episode.images["top"][[row - 1, row]]}
    observation = Observation(stamp_ns=1, images=images, state=episode.state[row])
    logits = OnnxModel(bundle).run([observation], [episode.instruction]).action_logits
    return list(torch.log_softmax(torch.from_numpy(logits), -1)[0, 0, 0].numpy())


def log_probs(network, episode, row):
    with torch.no_grad():
        logits = network(inputs_of(network, episode, [row]))["action_logits"]
    return list(torch.log_softmax(logits, -1)[0, 0, 0].numpy())


@pytest.mark.parametrize(("kind", "settings"), TRAINED)
def test_it_trains_resumes_and_is_served_with_the_same_log_probabilities(kind, settings, folders, tmp_path):
    config = SftConfig(
        backbone=backbone(folders(kind), **settings),
        steps=6,
        warmup_steps=1,
        learning_rate=3e-3,
        mixture=Mixture(batch_size=8),
        labelling=LABELLING,
        validate_every=3,
        checkpoint_every=2,
    )
    episodes = dots.episodes(8, 3)
    table, held_out = (
        make_table(part, dots.embodiment(), LABELLING)
        for part in (episodes[:6] + episodes[8:10], episodes[6:8] + episodes[10:])
    )

    def run(out, stop_at=None):
        losses = {}

        def tell(step, loss):
            losses[step] = loss
            if step == stop_at:
                raise KeyboardInterrupt

        return train(config, dots.embodiment(), table, held_out, out, on_step=tell), losses

    _, whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop_at=5)
    trained, rest = run(tmp_path / "parts")
    assert list(rest) == [5, 6] and all(rest[step] == whole[step] for step in rest)

    result = export(config, dots.embodiment(), trained, table, held_out, tmp_path / "parts")
    policy = result.policy
    assert max(policy.manifest.parity["greatest_difference"].values()) <= 1e-4
    assert policy.manifest.instruction == {"kind": "tokenizer", "file": "tokenizer.json", "length": 8}
    graph = policy.file("model.onnx").read_bytes()
    assert b"lora" not in graph, "adapters are merged"
    again = load_network(policy)
    for episode in (dots.episode(0), dots.episode(1)):
        assert served(policy, episode, 3) == pytest.approx(log_probs(again, episode, 3), abs=1e-4)
    assert served(policy, dots.episode(0), 3) != served(
        policy, replace(dots.episode(0), instruction=dots.INSTRUCTIONS[1]), 3
    )
    assert result.reward.manifest.success_threshold is not None


def practise(network):
    """Takes two gradient steps, and returns the names of what changed."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer = PracticeTrainer(network, PracticeSettings(updates=2, batch=4, learning_rate=1e-2))
    count = len(dots.episode(0)) - 1
    rollout = Rollout(
        episode_id="one",
        version=0,
        inputs={k: v.numpy() for k, v in inputs_of(network, dots.episode(0), range(count)).items()},
        tokens=np.zeros((count, 1, 2), np.int64),
        log_probs=np.full(count, -2.0, np.float32),
        steps_to_go=np.linspace(8, 0, count + 1).astype(np.float32),
        detected=True,
    )
    trainer.iterate([rollout, rollout])
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def test_its_bundle_practises_with_eyes_as_they_were(policy, exporter, tmp_path):
    network = load_network(policy)
    changed = practise(network)
    assert changed and not [name for name in changed if ".eyes." in name]
    after = export_bundle(network, dots.embodiment(), tmp_path, "policy", exporter=exporter)
    assert after.id != policy.id
    assert served(after, dots.episode(0), 2) == pytest.approx(
        log_probs(network, dots.episode(0), 2), abs=1e-4
    )


def test_with_adapters_practice_changes_nothing_else_of_the_language_model(folders):
    changed = practise(build_network(dots.embodiment(), backbone(folders("smolvlm"), lora_rank=2)))
    inner = {name for name in changed if ".language." in name}
    assert inner and all("lora" in name for name in inner)


def test_the_tokenizer_of_a_bundle_encodes_as_that_of_the_model(folders, policy):
    network = build_network(dots.embodiment(), backbone(folders("smolvlm")))
    encoded = encode_instruction("go left", policy.manifest.instruction, policy.path)
    assert encoded[0] == 1 and list(encoded[3:]) == [-1] * 5
    np.testing.assert_array_equal(encoded, encode_instruction("go left", network.instruction))


def test_a_bundle_is_served_without_torch_and_transformers(policy):
    code = (
        "import sys; from efm_core.bundle import load_bundle; from efm_core.onnx_model import OnnxModel\n"
        f"OnnxModel(load_bundle({str(policy.path)!r})).warm_up(1)\n"
        "print(sorted({'torch', 'transformers', 'peft'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_model_that_is_not_there_is_told_with_what_to_do(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def complaint(settings):
        with pytest.raises(BadRequest) as told:
            build_network(dots.embodiment(), {"name": "vlm", **settings})
        return str(told.value)

    assert "set backbone.model to a local folder or a hub id" in complaint({})
    assert "expected a folder, found nothing at /nowhere/model" in complaint({"model": "/nowhere/model"})
    told = complaint({"model": "nobody/nothing"})
    assert "cannot be had from the hub" in told and "give its folder" in told
    assert "did you mean 'lora_rank'" in complaint({"lora_rnk": 3})
    assert "instruction_length" in complaint({"instruction_length": 0})
    assert "expected 16 px" in complaint(backbone(folders("smolvlm"), image_size=64))
    assert "a multiple of 8 px, found 20" in complaint(backbone(folders("qwen2_vl"), image_size=20))
    assert "k_proj" in complaint(backbone(folders("smolvlm"), lora_rank=2, lora_targets=["no_such_layer"]))

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    told = complaint({"model": str(tmp_path)})
    assert "is of type 'llama'" in told and "smolvlm" in told
    damaged = tiny_models.save("smolvlm", tmp_path / "damaged")
    (damaged / "model.safetensors").unlink()
    assert "is incomplete or damaged" in complaint({"model": str(damaged)})


def test_an_embodiment_without_camera_is_refused(folders):
    blind = dots.embodiment(cameras=[])
    with pytest.raises(BadRequest, match="has no camera; use 'state'"):
        build_network(blind, backbone(folders("smolvlm")))
