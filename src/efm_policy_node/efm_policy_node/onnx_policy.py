"""A policy from a bundle: observations of many robots in, one sampled chunk of actions each out. No ROS.

One batched inference serves all robots that are ready; every robot samples from its own generator, so that
a robot's actions depend on its own seed and observations and not on who else was in the batch (up to the
last bits of the logits, which ONNX Runtime may compute in another order for another batch size). One bad
observation fails alone. Left out: when to infer and what of a chunk is executed (`robot_loop`), and safety
limits (`efm_core.safety`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efm_core.action_tokens import ActionTokenizer
from efm_core.bundle import Bundle, load_bundle
from efm_core.embodiment import Embodiment
from efm_core.errors import BundleUnusable, EfmError
from efm_core.observation import Observation
from efm_core.onnx_model import OnnxModel
from efm_core.policy import sample_actions


@dataclass(frozen=True)
class Request:
    """One robot's wish for actions.

    Attributes:
        observation: What it sees.
        instruction: What it is to do.
        temperature: 0 takes the most likely tokens; 1 samples as trained.
        rng: The robot's own generator; used up by sampling only.
    """

    observation: Observation
    instruction: str
    temperature: float
    rng: np.random.Generator


@dataclass(frozen=True)
class Decision:
    """One sampled chunk.

    Attributes:
        tokens: int64 [C, D].
        log_prob: float32 [C], of all tokens of a step at temperature 1.
        actions: float64 [C, D], bin centres in the units of the embodiment.
        temperature: They were drawn at.
    """

    tokens: np.ndarray
    log_prob: np.ndarray
    actions: np.ndarray
    temperature: float


class OnnxPolicy:
    """A loaded bundle that acts. `decide` is called from one thread at a time."""

    def __init__(
        self, bundle: Bundle, embodiment: Embodiment, provider: str = "auto", threads: int = 1
    ) -> None:
        """Loads the model.

        Args:
            bundle: Of kind policy or both.
            embodiment: Of the robots; the bundle must have been made for it.
            provider: See `OnnxModel`.
            threads: Cores of one inference on the CPU.

        Raises:
            EmbodimentMismatch: Made for another embodiment.
            BundleUnusable: A reward bundle, or one that does not load.
        """
        if bundle.manifest.kind == "reward":
            raise BundleUnusable(
                f"bundle {bundle.id}: expected kind policy or both, found reward; it judges and cannot act"
            )
        bundle.check_embodiment(embodiment)
        self.bundle = bundle
        self._tokenizer = ActionTokenizer(embodiment.action)
        self._model = OnnxModel(bundle, provider, threads)

    @property
    def id(self) -> str:
        """The bundle's id."""
        return self.bundle.id

    @property
    def version(self) -> int:
        """The bundle's version within its practice run."""
        return self.bundle.manifest.version

    @property
    def provider(self) -> str:
        """What runs it, for example CPUExecutionProvider."""
        return self._model.provider

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Better providers that are installed and did not come up."""
        return self._model.passed_over

    def warm_up(self, robots: int) -> None:
        """Runs every batch size once, so that the first real inference allocates nothing.

        Raises:
            BundleUnusable: The outputs have the wrong shape or are not finite.
        """
        for batch in range(1, robots + 1):
            self._model.warm_up(batch)

    def decide(self, requests: Sequence[Request]) -> list[Decision | EfmError]:
        """Infers and samples for all requests in one batch.

        Returns:
            One entry for each request, in order: the decision, or the error of that robot alone.
        """
        try:
            logits = self._logits(requests)
        except EfmError as error:
            if len(requests) == 1:
                return [error]
            return [entry for request in requests for entry in self.decide([request])]
        rows_at: dict[float, list[int]] = {}
        for row, request in enumerate(requests):
            rows_at.setdefault(request.temperature, []).append(row)
        decisions: dict[int, Decision] = {}
        for temperature, rows in rows_at.items():
            rngs = _Generators([requests[row].rng for row in rows])
            decisions |= zip(rows, self._sample(logits[rows], temperature, rngs), strict=True)
        return [decisions[row] for row in range(len(requests))]

    def _logits(self, requests: Sequence[Request]) -> np.ndarray:
        """Returns float32 [B, C, D, bins]; the model may use the memory again at the next call."""
        output = self._model.run([r.observation for r in requests], [r.instruction for r in requests])
        if output.action_logits is None:
            raise BundleUnusable(f"bundle {self.id}: expected the output action_logits, found none")
        return output.action_logits

    def _sample(self, logits: np.ndarray, temperature: float, rngs: _Generators) -> list[Decision]:
        """Draws for robots that share a temperature."""
        tokens, log_probs = sample_actions(logits, temperature, rngs)  # type: ignore[arg-type]
        actions = self._tokenizer.decode(tokens)
        return [
            Decision(tokens=each, log_prob=log_prob, actions=action, temperature=temperature)
            for each, log_prob, action in zip(tokens, log_probs, actions, strict=True)
        ]


class _Generators:
    """The generators of several robots as one: row i of what is drawn comes from generator i."""

    def __init__(self, rngs: Sequence[np.random.Generator]) -> None:
        self._rngs = rngs

    def gumbel(self, size: tuple[int, ...]) -> np.ndarray:
        """Returns noise [len(rngs), ...]."""
        return np.concatenate([rng.gumbel(size=(1, *size[1:])) for rng in self._rngs])


def load_policy(
    path: Path | str, embodiment: Embodiment, robots: int, provider: str = "auto", threads: int = 1
) -> OnnxPolicy:
    """Verifies, loads and warms up the bundle in a folder; the result is ready to act.

    Raises:
        BundleUnknown, BundleInvalid, BundleTampered, EmbodimentMismatch, BundleUnusable: See `load_bundle`,
            `OnnxPolicy` and `OnnxPolicy.warm_up`.
    """
    policy = OnnxPolicy(load_bundle(path), embodiment, provider, threads)
    policy.warm_up(robots)
    return policy
