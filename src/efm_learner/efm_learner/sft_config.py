"""Settings of stage 1: one frozen dataclass, validated when made, saved as JSON beside what it produced."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from efm_core.bundle import Bundle
from efm_core.errors import BadRequest
from efm_learner.batches import Mixture
from efm_learner.calibrate import CalibrationSettings
from efm_learner.samples import Labelling
from efm_learner.settings import read_settings

# What a manifest's `training.stage` says of the commands that train a reward.
SFT, REFIT = "sft", "refit"

# Settings that may change between the parts of a resumed training: they do not change its result.
FREE_SETTINGS = ("episodes", "embodiment", "out", "cache", "threads", "device", "checkpoint_every")


# More than any training lasts, any bundle holds, and any machine has.
MOST_STEPS, MOST_HEADS, MOST_THREADS = 10**9, 1000, 256


@dataclass(frozen=True)
class SftConfig:
    """Settings of a training.

    Attributes:
        episodes: Folder of episodes; empty where the data come from memory.
        embodiment: Name or file.
        out: Folder of the run.
        cache: Folder of decoded frames; empty: `<episodes>/.cache`.
        backbone: `{"name": ..., ...}`, see `efm_learner.backbones`. Where it gives no instruction settings, a
            word table is chosen in which no two words of the data collide.
        heads: Steps-to-go heads of the ensemble.
        combine: How heads are combined: "mean", or "max" for the pessimistic head.
        steps: Gradient steps.
        learning_rate: Of AdamW, at its highest.
        weight_decay: Of AdamW.
        warmup_steps: Steps over which the learning rate rises.
        final_share: Share of the learning rate that a cosine falls to; 1 keeps it constant.
        gradient_norm: Greatest norm of a gradient; 0 means no limit.
        instruction_weight: Weight of the objective "instruction from first and last image"; 0 leaves it out.
        foresight_weight: Weight of the objective "the robot's own states 4, 10 and 20 steps later and at the
            end"; 0 leaves it out. It teaches a network that learns from images where things are.
        mixture: Composition of the batches.
        labelling: How episodes become targets.
        calibration: How the success detector is chosen.
        validation_share: Share of the episodes held out, of successful and unsuccessful ones each.
        validate_every: Steps between two validations.
        checkpoint_every: Steps between two checkpoints.
        policy_weights: "best" by validation loss, or "last": trained past it, as the paper does on Aloha.
        seed: Of weights, batches and split.
        threads: Torch threads of each process.
        device: "cpu", or "auto" for what accelerate finds.
        precision: "no" for float32, or "bf16".
    """

    episodes: str = ""
    embodiment: str = ""
    out: str = ""
    cache: str = ""
    backbone: Mapping[str, Any] = field(default_factory=lambda: {"name": "small"})
    heads: int = 1
    combine: str = "mean"
    steps: int = 4000
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup_steps: int = 100
    final_share: float = 0.05
    gradient_norm: float = 1.0
    instruction_weight: float = 0.0
    foresight_weight: float = 0.0
    mixture: Mixture = field(default_factory=Mixture)
    labelling: Labelling = field(default_factory=Labelling)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    validation_share: float = 0.1
    validate_every: int = 200
    checkpoint_every: int = 500
    policy_weights: str = "best"
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    precision: str = "no"

    def __post_init__(self) -> None:
        count, share = f"a whole number from 1 to {MOST_STEPS}", "from 0 to 1"
        expected = {
            "backbone": (isinstance(self.backbone.get("name"), str), "a mapping with a name"),
            "heads": (1 <= self.heads <= MOST_HEADS, f"a whole number from 1 to {MOST_HEADS}"),
            "combine": (self.combine in ("mean", "max"), "mean or max"),
            "steps": (1 <= self.steps <= MOST_STEPS, count),
            "learning_rate": (0 < self.learning_rate < math.inf, "a number above 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "a number from 0 on"),
            "warmup_steps": (0 <= self.warmup_steps <= MOST_STEPS, f"from 0 to {MOST_STEPS}"),
            "final_share": (0 <= self.final_share <= 1, share),
            "gradient_norm": (self.gradient_norm >= 0, "0 or more"),
            "instruction_weight": (0 <= self.instruction_weight < math.inf, "a number from 0 on"),
            "foresight_weight": (0 <= self.foresight_weight < math.inf, "a number from 0 on"),
            "validation_share": (0 <= self.validation_share < 1, "from 0 to below 1"),
            "validate_every": (1 <= self.validate_every <= MOST_STEPS, count),
            "checkpoint_every": (1 <= self.checkpoint_every <= MOST_STEPS, count),
            "policy_weights": (self.policy_weights in ("best", "last"), "best or last"),
            "seed": (0 <= self.seed < 2**63, "from 0 to below 2^63"),
            "threads": (1 <= self.threads <= MOST_THREADS, f"a whole number from 1 to {MOST_THREADS}"),
            "device": (self.device in ("cpu", "auto"), "cpu or auto"),
            "precision": (self.precision in ("no", "bf16"), "no or bf16"),
        }
        wrong = [
            f"{name}={getattr(self, name)!r}, expected {text}"
            for name, (valid, text) in expected.items()
            if not valid
        ]
        if wrong:
            raise BadRequest(f"settings of sft out of range: {'; '.join(wrong)}")
        if (self.instruction_weight > 0) != self.mixture.instruction:
            raise BadRequest(
                "settings of sft: mixture.instruction and instruction_weight > 0 belong together, found "
                f"{self.mixture.instruction} and {self.instruction_weight}"
            )

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of a step; the first is 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup_steps))
        progress = step / max(1, self.steps)
        fall = self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * rise * fall

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return dataclasses.asdict(self)

    def lasting(self) -> dict[str, Any]:
        """Returns the settings that decide the result of a training, as JSON gives them back."""
        return {key: _plain(value) for key, value in self.to_dict().items() if key not in FREE_SETTINGS}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> SftConfig:
        """Reads settings back; an unknown name is refused with the nearest known one."""
        return read_settings(SftConfig, values, "sft")


def config_of(bundle: Bundle) -> SftConfig:
    """Returns the settings that a bundle was trained with.

    Raises:
        BadRequest: It was made by something else.
    """
    training = bundle.manifest.training
    if training.get("stage") not in (SFT, REFIT):
        raise BadRequest(f"bundle {bundle.id} was not made by efm sft or efm refit; take one that was")
    known = {field.name for field in dataclasses.fields(SftConfig)}
    return SftConfig.from_dict({name: value for name, value in training.items() if name in known})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
