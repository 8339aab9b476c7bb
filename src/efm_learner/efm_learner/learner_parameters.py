"""Parameters of the learner; `config/learner.yaml` holds what is tuned, arguments hold where and what."""

from __future__ import annotations

import dataclasses
from typing import Any

from efm_learner.guard import GuardSettings
from efm_learner.practice import PracticeSettings
from efm_learner.practice_run import RunSettings
from efm_ros.lifecycle import NodeParameters
from efm_ros.parameters import param

_PRACTICE = PracticeSettings()
_GUARD = {field.name: field for field in dataclasses.fields(GuardSettings)}


def _of_guard(name: str, description: str, unit: str = "") -> Any:
    """Makes the parameter for one of `GuardSettings`, with its default and its bounds."""
    field = _GUARD[name]
    low, above, high = (field.metadata.get(key) for key in ("low", "above", "high"))
    least = above if low is None else low
    return param(field.default, description=description, unit=unit, low=least, high=high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerParameters(NodeParameters):
    """Those of `PracticeSettings` have its names, those of `GuardSettings` begin with `guard_`."""

    run: str = param(description="Folder of the practice run; resumed where it exists.")
    policy: str = param(description="Folder of the Stage-1 policy bundle.")
    reward: str = param(description="Folder of the frozen reward bundle.")
    verifier: str = param(
        "", description="Folder of a reward bundle trained apart, for the guard. Empty: none."
    )
    iterations: int = param(0, description="Iterations after which the run ends. 0: no limit.", low=0)
    episodes: int = param(0, description="Episodes after which the run ends. 0: no limit.", low=0)
    threads: int = param(1, description="CPU threads of torch.", low=1, high=256)
    device: str = param(
        "cpu", description="Where torch learns; auto: on a GPU where there is one.", choices=("cpu", "auto")
    )

    gamma: float = param(_PRACTICE.gamma, description="Discount per decision.", low=0.0, high=1.0)
    c: float = param(_PRACTICE.c, description="Factor of the loss.", low=0.0)
    updates: int = param(_PRACTICE.updates, description="Gradient steps per iteration.", low=1)
    batch: int = param(_PRACTICE.batch, description="Decisions per gradient step.", low=1)
    learning_rate: float = param(_PRACTICE.learning_rate, description="Of AdamW.", low=0.0)
    weight_decay: float = param(_PRACTICE.weight_decay, description="Of AdamW.", low=0.0)
    gradient_norm: float = param(
        _PRACTICE.gradient_norm, description="Greatest norm of a gradient; 0: no limit.", low=0.0
    )
    freeze_encoder: bool = param(
        _PRACTICE.freeze_encoder, description="Keep the image encoder as Stage 1 left it."
    )
    cap_at_start: bool = param(
        _PRACTICE.cap_at_start, description="Count no d as greater than the first one of its episode."
    )
    normalise_advantages: bool = param(
        _PRACTICE.normalise_advantages, description="Shift and scale returns to mean 0, deviation 1."
    )
    epochs: int = param(
        _PRACTICE.epochs, description="Times that each decision is used; above 1 with a clipped ratio.", low=1
    )
    clip: float = param(_PRACTICE.clip, description="Clip range of that ratio.", low=0.0, high=1.0)
    step_kl: float = param(
        _PRACTICE.step_kl,
        description="KL from an iteration's first policy that ends its updates; 0: no limit.",
        unit="nats",
        low=0.0,
    )
    kl_anchor: float = param(
        _PRACTICE.kl_anchor, description="Weight of the KL divergence from the Stage-1 policy.", low=0.0
    )
    entropy_bonus: float = param(
        _PRACTICE.entropy_bonus, description="Weight of the policy's entropy.", low=0.0
    )
    max_staleness: int = param(
        _PRACTICE.max_staleness, description="Versions that an episode's policy may be old.", low=0
    )
    seed: int = param(_PRACTICE.seed, description="Of the minibatch order.", low=0)

    guard: bool = _of_guard("enabled", "Stop and go back to the best bundle when practice passes its peak.")
    guard_window: int = _of_guard("window", "Episodes judged together, at least.")
    guard_significance: float = _of_guard(
        "significance", "Fall of good episodes that stops, in standard deviations."
    )
    guard_instant_steps: int = _of_guard(
        "instant_steps",
        "Success so soon after the reset, beyond the detector's hold, is not believed.",
        unit="control steps",
    )
    guard_instant_window: int = _of_guard("instant_window", "Newest episodes looked at for such successes.")
    guard_instant_share: float = _of_guard("instant_share", "Share of them that stops at once.")
    guard_slack: float = _of_guard(
        "slack", "Above its own threshold, the verifier still agrees.", unit="control steps"
    )
    guard_drift: float = _of_guard(
        "drift",
        "KL from Stage 1 beyond which episodes must be good more often than at first; 0: no limit.",
        unit="nats",
    )
    guard_kl_limit: float = _of_guard("kl_limit", "KL from Stage 1 that stops; 0: no limit.", unit="nats")

    def __post_init__(self) -> None:
        self.run_settings()

    def run_settings(self) -> RunSettings:
        """Returns the settings of the run.

        Raises:
            BadRequest: One of them is out of range.
        """
        values = dataclasses.asdict(self)
        practice = {field.name: values[field.name] for field in dataclasses.fields(PracticeSettings)}
        guard = {name: values[f"guard_{name}"] for name in _GUARD if name != "enabled"}
        return RunSettings(
            PracticeSettings(**practice),
            GuardSettings(enabled=self.guard, **guard),
            self.iterations,
            self.episodes,
        )
