"""What the policy node says of its own actions is what the learner computes for them: one log-probability."""

import numpy as np
import pytest
import torch

from efm_core.embodiment import load_embodiment
from efm_core.instruction import encode_instruction
from efm_core.observation import Observation
from efm_learner.export import load_network
from efm_learner.network import ACTION_LOGITS
from efm_learner.random_bundle import write_random_bundle
from efm_policy_node.onnx_policy import Request, load_policy

INSTRUCTION = "push the red moon to the blue cube"


def seen(embodiment, rng, stamp_ns):
    images = {
        camera.name: rng.integers(0, 256, (camera.frames, camera.height, camera.width, 3), dtype=np.uint8)
        for camera in embodiment.cameras
    }
    state = rng.uniform(-0.3, 0.3, embodiment.state_size).astype(np.float32) if embodiment.state else None
    return Observation(stamp_ns, images, state)


@pytest.mark.parametrize(("name", "backbone"), [("pointmass", "state"), ("table", "small")])
def test_the_log_probability_of_a_recorded_step_is_the_learners(name, backbone, tmp_path):
    embodiment = load_embodiment(name)
    bundle = write_random_bundle(embodiment, tmp_path, "policy", 3, backbone)
    policy = load_policy(bundle.path, embodiment, robots=4)
    network = load_network(bundle).eval()
    rng = np.random.default_rng(5)
    observations = [seen(embodiment, rng, k + 1) for k in range(4)]
    with torch.no_grad():
        tables = [
            torch.log_softmax(network(inputs, (ACTION_LOGITS,))[ACTION_LOGITS][0].double(), dim=-1)
            for inputs in (policy_inputs(bundle, observation) for observation in observations)
        ]
    for temperature in (1.0, 0.3, 0.0):
        requests = [Request(o, INSTRUCTION, temperature, rng) for o in observations]
        for table, decision in zip(tables, policy.decide(requests), strict=True):
            chosen = table.gather(-1, torch.as_tensor(decision.tokens).unsqueeze(-1)).squeeze(-1)
            assert decision.log_prob == pytest.approx(chosen.sum(-1).numpy(), abs=1e-4)


def policy_inputs(bundle, observation):
    """The learner's batch of one observation."""
    batch = {f"observation.images.{name}": torch.as_tensor(a)[None] for name, a in observation.images.items()}
    if observation.state is not None:
        batch["observation.state"] = torch.as_tensor(observation.state)[None]
    if "instruction" in bundle.manifest.inputs:
        words = encode_instruction(INSTRUCTION, bundle.manifest.instruction, bundle.path)
        batch["instruction"] = torch.as_tensor(words)[None]
    return batch
