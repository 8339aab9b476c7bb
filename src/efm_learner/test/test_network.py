"""The network: shapes, masks, and what the small backbone can and cannot confuse."""

import dots
import pytest
import torch

from efm_core.errors import BadRequest
from efm_core.instruction import encode_instruction
from efm_learner.network import NO_BIN, build_network, input_specs, random_batch


@pytest.mark.parametrize("backbone", ["state", "small"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("heads", [1, 3])
def test_outputs_have_the_shapes_of_the_embodiment(backbone, shared, heads):
    network = build_network(dots.embodiment(chunk=4), {"name": backbone, "shared_trunk": shared}, heads)
    outputs = network(random_batch(network, 5))
    assert outputs["action_logits"].shape == (5, 4, 2, 5)
    assert outputs["steps_to_go_logits"].shape == (5, heads, 12)


def test_bins_that_a_dimension_does_not_have_are_never_drawn():
    network = build_network(dots.embodiment(), {"name": "state"})
    logits = network(random_batch(network, 3))["action_logits"]
    assert (logits[:, :, 1, 2:] < NO_BIN / 2).all() and (logits[:, :, 0] > NO_BIN / 2).all()
    assert (torch.softmax(logits, -1)[:, :, 1, 2:] == 0).all()


def test_separate_trunks_share_no_weight():
    network = build_network(dots.embodiment(), {"name": "state", "shared_trunk": False})
    network(random_batch(network, 2))["steps_to_go_logits"].sum().backward()
    assert all(p.grad is None for p in network.policy_backbone.parameters())
    assert network.backbone_settings["shared_trunk"] is False


def test_the_small_backbone_stays_below_a_million_parameters_and_uses_all_of_them():
    network = build_network(dots.embodiment(), {"name": "small"}, heads=3)
    assert network.trained_parameters() <= 1_000_000
    outputs = network(random_batch(network, 4))
    (outputs["action_logits"].sum() + outputs["steps_to_go_logits"].square().sum()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_who_pushes_what_is_not_confused():
    network = build_network(dots.embodiment(), {"name": "small"}).eval()
    batch = random_batch(network, 2)
    sentences = ("push the red moon to the blue cube", "push the blue cube to the red moon")
    batch["instruction"] = torch.stack(
        [torch.from_numpy(encode_instruction(text, network.instruction)) for text in sentences]
    )
    batch = {name: value[[0, 0]] if name != "instruction" else value for name, value in batch.items()}
    first, second = network.policy_backbone(batch)
    assert (first - second).abs().max() > 1e-3


def test_dropout_acts_in_training_only():
    network = build_network(dots.embodiment(), {"name": "small", "dropout": 0.5})
    batch = random_batch(network, 2)
    assert not torch.equal(network(batch)["action_logits"], network(batch)["action_logits"])
    network.eval()
    assert torch.equal(network(batch)["action_logits"], network(batch)["action_logits"])


def test_an_empty_instruction_gives_finite_outputs():
    network = build_network(dots.embodiment(), {"name": "small"})
    batch = random_batch(network, 2)
    batch["instruction"] = torch.zeros_like(batch["instruction"])
    assert all(torch.isfinite(value).all() for value in network(batch).values())


def test_inputs_are_described_as_the_manifest_has_them():
    network = build_network(dots.embodiment(), {"name": "small"})
    assert input_specs(network) == {
        "observation.images.top": {"shape": ["batch", 2, 16, 16, 3], "dtype": "uint8"},
        "observation.state": {"shape": ["batch", 1], "dtype": "float32"},
        "instruction": {"shape": ["batch", 16], "dtype": "int64"},
    }


def test_state_bounds_are_mapped_to_minus_one_and_one():
    normalise = build_network(dots.embodiment(), {"name": "state"}).policy_backbone.normalise
    assert normalise(torch.tensor([[0.0], [8.0], [16.0]])).flatten().tolist() == [-1.0, 0.0, 1.0]


def test_a_wrong_backbone_or_setting_names_the_nearest():
    with pytest.raises(BadRequest, match="did you mean 'small'"):
        build_network(dots.embodiment(), {"name": "smal"})
    with pytest.raises(BadRequest, match="did you mean 'slots'"):
        build_network(dots.embodiment(), {"name": "small", "slot": 3})
    with pytest.raises(BadRequest, match="of 1 or more, found 4 and"):
        build_network(dots.embodiment(), {"name": "small", "channels": []})
    with pytest.raises(BadRequest, match="images of 99 pixels or more"):
        build_network(dots.embodiment(), {"name": "small", "patch": 99})
    with pytest.raises(BadRequest, match="no camera"):
        build_network(dots.embodiment(cameras=[]), {"name": "small"})
