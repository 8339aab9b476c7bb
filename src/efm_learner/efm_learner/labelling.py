"""What a frozen reward bundle says of a finished episode, by the same runtime as the reward node."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from efm_core.bundle import Bundle
from efm_core.episode import Episode, observations_of
from efm_core.errors import BadRequest, BundleInvalid
from efm_core.onnx_model import OnnxModel
from efm_core.steps_to_go import StepsToGoBins, combine

__all__ = ["Judge", "check_apart"]

BATCH = 64  # Observations per inference.


def check_apart(verifier: Bundle, reward: Bundle) -> None:
    """Does nothing where a verifier has an opinion of its own.

    Raises:
        BadRequest: It would always agree with the reward.
    """
    if verifier.id in (reward.id, *reward.manifest.training.get("members", ())):
        raise BadRequest(
            f"bundle {verifier.id}: the verifier is the reward itself or part of it; train one apart, "
            "with efm sft --seed"
        )


class Judge:
    """Predicts the steps-to-go of episodes.

    Args:
        bundle: Of kind reward or both, calibrated.

    Raises:
        BundleInvalid: It does not predict steps-to-go, or has no success threshold.
    """

    def __init__(self, bundle: Bundle) -> None:
        if bundle.manifest.kind == "policy" or bundle.manifest.success_threshold is None:
            raise BundleInvalid(
                f"bundle {bundle.id}: expected a calibrated reward, found kind {bundle.manifest.kind!r} with "
                f"success_threshold {bundle.manifest.success_threshold}; make one with efm sft"
            )
        self.bundle = bundle
        self.threshold = float(bundle.manifest.success_threshold)
        self.hold = bundle.manifest.success_hold
        self._model = OnnxModel(bundle)
        bins = bundle.embodiment.steps_to_go
        self._bins = StepsToGoBins(bins.bins, bins.width)

    def steps_to_go(self, episode: Episode, first: int = 0) -> npt.NDArray[np.float32]:
        """Returns d of the observations from row `first` on, float32 [N - first]."""
        found = []
        for start in range(first, len(episode), BATCH):
            observations = observations_of(episode, start, min(start + BATCH, len(episode)))
            output = self._model.run(observations, [episode.instruction] * len(observations))
            assert output.steps_to_go_logits is not None  # The bundle's kind was checked.
            d, *_ = combine(output.steps_to_go_logits, self.bundle.manifest.combine, self._bins)
            found.append(d)
        return np.concatenate(found).astype(np.float32)

    def agrees(self, episode: Episode, slack: float) -> bool:
        """Returns whether the end of an episode looks like success to this bundle, too.

        Args:
            episode: Ended by another bundle's detector.
            slack: Control steps by which the mean of the last `hold` observations may exceed the threshold.
        """
        last = self.steps_to_go(episode, max(0, len(episode) - self.hold))
        return bool(last.mean() <= self.threshold + slack)
