"""A robot for tests that practises without ROS: a point is pushed around, and real episode folders come out.

The policy is a bundle, run by ONNX Runtime as on a robot; the embodiment is `pointmass`. Further down is what
the tests of practice runs share.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from efm_core.action_tokens import ActionTokenizer
from efm_core.bundle import Bundle, load_bundle
from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.episode import Actor, EndReason, EpisodeWriter, Mode, Outcome, Summary
from efm_core.observation import Observation
from efm_core.onnx_model import OnnxModel
from efm_core.policy import sample_actions
from efm_core.schemas import make_header, message_class, serialize
from efm_learner.practice import PracticeSettings
from efm_learner.practice_run import PracticeRun, RunSettings
from efm_learner.random_bundle import write_random_bundle

PERIOD_NS = 100_000_000
INSTRUCTION = "reach the goal"
SMALL = {"hidden": [16, 16]}


@functools.cache
def pointmass() -> Embodiment:
    return load_embodiment("pointmass")


def bundles(directory: Path) -> dict[str, Bundle]:
    """A policy, a reward and a verifier, all untrained and small."""
    kinds = {"policy": ("policy", 0), "reward": ("reward", 1), "verifier": ("reward", 2)}
    return {
        name: write_random_bundle(pointmass(), directory, kind, seed, settings=SMALL, success_threshold=1e3)
        for name, (kind, seed) in kinds.items()
    }


def episode_name(number: int) -> str:
    return f"20260101T{number:06d}Z-{number:08x}"


def play(policy: Bundle, steps: int, seed: int, temperature: float = 1.0) -> dict[str, np.ndarray]:
    """Moves the point; returns states [T + 1, 6], tokens [T, 2], actions [T, 2], log_probs [T]."""
    rng = np.random.default_rng(seed)
    model, tokenizer = _model(policy.path), ActionTokenizer(pointmass().action)
    place, goal = rng.uniform(-1, 1, 2), rng.uniform(-1, 1, 2)
    states, tokens, actions, log_probs = [], [], [], []
    for step in range(steps + 1):
        state = np.concatenate([place, [0.0, 0.0], goal]).astype(np.float32)
        states.append(state)
        if step == steps:
            break
        logits = model.run([Observation(step * PERIOD_NS, {}, state)], [INSTRUCTION]).action_logits
        chosen, log_prob = sample_actions(logits, temperature, rng)
        tokens.append(chosen[0, 0])
        actions.append(tokenizer.decode(chosen[0, 0]))
        log_probs.append(log_prob[0, 0])
        place = np.clip(place + 0.2 * actions[-1], -1, 1)
    return {
        "states": np.array(states),
        "tokens": np.array(tokens, np.int64).reshape(steps, 2),
        "actions": np.array(actions).reshape(steps, 2),
        "log_probs": np.array(log_probs),
    }


def record_episode(
    directory: Path,
    policy: Bundle,
    number: int,
    *,
    steps: int = 12,
    detected: bool = False,
    temperature: float = 1.0,
    human: Sequence[int] = (),
    labels: tuple[str, np.ndarray] | None = None,
    truth: bytes | None = None,
    **changes: Any,
) -> Path:
    """Practises one episode and writes its folder.

    Args:
        directory: The folder is made in.
        policy: Who acts.
        number: Decides name and start.
        steps: Control steps.
        detected: Whether the summary says that the detector ended it.
        temperature: Of the sampling.
        human: Steps that a person decided.
        labels: Reward bundle and d [T + 1], as the reward node labels live.
        truth: Put this on `ground_truth`, which practice never does.
        changes: Fields of the summary.
    """
    name = episode_name(number)
    played = play(policy, steps, number, temperature)
    writer = EpisodeWriter(directory, name, pointmass())
    for step, state in enumerate(played["states"]):
        stamp = (step + 1) * PERIOD_NS
        _write(
            writer, "joint_states", "sensor_msgs/msg/JointState", stamp,
            name=["x", "y", "goal_x", "goal_y"], position=state[[0, 1, 4, 5]].astype(np.float64),
            velocity=np.array([*state[2:4], 0.0, 0.0]), effort=np.zeros(0),
        )  # fmt: skip
        if labels is not None:
            _write(
                writer, "steps_to_go", "efm_msgs/msg/StepsToGo", stamp,
                episode_id=name, bundle_id=labels[0], expectation=float(labels[1][step]), spread=1.0,
                disagreement=0.0, probabilities=np.zeros(70, np.float32), bin_width=2, reward=0.0,
                threshold=2.0, held=0, success=False,
            )  # fmt: skip
        if truth is not None:
            writer.write("ground_truth", "efm_msgs/msg/GroundTruth", stamp, truth)
        if step == steps:
            break
        mine = step not in human
        action = played["actions"][step]
        _write(
            writer, "policy_step", "efm_msgs/msg/PolicyStep", stamp,
            episode_id=name, bundle_id=policy.id if mine else "", step=step, chunk_index=0,
            actor=int(Actor.POLICY if mine else Actor.HUMAN), gate=0,
            tokens=played["tokens"][step].astype(np.uint16) if mine else np.zeros(0, np.uint16),
            log_prob=float(played["log_probs"][step]) if mine else math.nan,
            temperature=temperature if mine else math.nan, action=action, command=action, latency=math.nan,
        )  # fmt: skip
    known: dict[str, Any] = {
        "episode_id": name,
        "start_ns": PERIOD_NS,
        "stamp_ns": (steps + 1) * PERIOD_NS,
        "instruction": INSTRUCTION,
        "mode": Mode.PRACTICE,
        "outcome": Outcome.SUCCESS if detected else Outcome.FAILURE,
        "end_reason": EndReason.SUCCESS_DETECTED if detected else EndReason.MAX_STEPS,
        "actor": Actor.POLICY,
        "steps": steps,
        "policy_bundle_id": policy.id,
    }
    return writer.close(Summary(**{**known, **changes}))


def _write(writer: EpisodeWriter, topic: str, kind: str, stamp: int, **fields: Any) -> None:
    message = message_class(kind)(header=make_header(stamp), **fields)
    writer.write(topic, kind, stamp, serialize(message))


@functools.lru_cache(maxsize=32)
def _model(path: Path) -> OnnxModel:
    return OnnxModel(load_bundle(path))


PRACTICE = PracticeSettings(updates=2, batch=12, learning_rate=1e-2, max_staleness=1000)
TWO_EPISODES = RunSettings(PRACTICE)  # 24 decisions, 12 an episode.


def record(run: PracticeRun, number: int, policy: Bundle | None = None, **changes: Any) -> Path:
    """Practises an episode for a run, by default with its newest policy."""
    return record_episode(run.folder.episodes, policy or run.bundle, number, **changes)


def take(run: PracticeRun, numbers: Sequence[int], **changes: Any) -> None:
    """Practises episodes and lets the run take them in."""
    for number in numbers:
        run.ingest(record(run, number, **changes))


def state_of(run: PracticeRun) -> dict[str, Any]:
    """All that must not depend on how often the process died.

    Ids of bundles are left out: they hold the revision of the source tree, which may change meanwhile. So are
    the names within a graph: they depend on what the same process has traced before.
    """
    graphs = {v: run.folder.bundle(name).file("model.onnx") for v, name in run._versions.items()}
    return {
        "weights": {name: value.clone() for name, value in run.trainer.network.state_dict().items()},
        "moments": [state["exp_avg"].clone() for state in run.trainer.optimizer.state.values()],
        "journal": [(entry["episode"], entry["reason"]) for entry in run._journal.entries],
        "metrics": [(m["iteration"], m["loss"], m["version"]) for m in run._metrics.entries],
        "versions": {
            version: sorted(tensor.raw_data for tensor in onnx.load(path).graph.initializer)
            for version, path in graphs.items()
        },
        "buffered": [taken.rollout.episode_id for taken in run._buffer],
        "guard": run.guard.state(),
        "counts": (run.version, run.episodes_taken, run.steps_taken, run.episodes_refused),
    }


def assert_same(mine: dict[str, Any], other: dict[str, Any]) -> None:
    for name in mine["weights"]:
        assert torch.equal(mine["weights"][name], other["weights"][name]), name
    assert len(mine["moments"]) == len(other["moments"])
    assert all(torch.equal(*pair) for pair in zip(mine["moments"], other["moments"], strict=True))
    for name in mine.keys() - {"weights", "moments"}:
        assert mine[name] == other[name], name


def journal(run: PracticeRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder.path / "journal.jsonl").read_text().splitlines()]
