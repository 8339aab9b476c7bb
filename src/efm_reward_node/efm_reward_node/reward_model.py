"""A reward model from a bundle: observations of many robots in, predicted steps-to-go out. No ROS in it.

`RewardModel` judges single observations, live; `label_episode` judges a recorded episode as a whole, with the
same preprocessing.
Left out: reward and success over the course of an episode (`robot_stream`), and when a model is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efm_core.bundle import Bundle, load_bundle
from efm_core.embodiment import Embodiment
from efm_core.episode import Episode, observations_of
from efm_core.errors import BundleUnusable, EfmError, EmbodimentMismatch, Reason
from efm_core.observation import Observation
from efm_core.onnx_model import OnnxModel
from efm_core.reward import first_success
from efm_core.steps_to_go import StepsToGoBins, combine

LABEL_BATCH = 16  # Observations of a recording that are judged at once; live ones wait no longer than that.


@dataclass(frozen=True)
class Judgement:
    """What a model says of one observation.

    Attributes:
        expectation: d, expected control steps left.
        spread: Standard deviation of the distribution [control steps].
        disagreement: Largest difference between the heads of the ensemble [control steps].
        probabilities: float32 [K].
    """

    expectation: float
    spread: float
    disagreement: float
    probabilities: np.ndarray


@dataclass(frozen=True)
class EpisodeLabels:
    """What a model says of a recorded episode of N observations.

    Attributes:
        stamps: int64 [N], nanoseconds.
        expectation: float32 [N], expected control steps left.
        spread: float32 [N], standard deviation [control steps].
        success_index: First observation at which success held; -1: none.
    """

    stamps: np.ndarray
    expectation: np.ndarray
    spread: np.ndarray
    success_index: int


class LabellingStopped(EfmError):
    """The labelling of an episode was ended before its end."""

    reason = Reason.CANCELLED


class RewardModel:
    """A loaded bundle that judges. Any thread may call it; inferences take turns."""

    def __init__(
        self,
        bundle: Bundle,
        embodiment: Embodiment,
        threshold: float = -1.0,
        hold: int = 0,
        provider: str = "auto",
        threads: int = 1,
    ) -> None:
        """Loads the model.

        Args:
            bundle: Of kind reward or both.
            embodiment: Of the robots; the bundle must have been made for it.
            threshold: Success threshold s [control steps]; negative: the bundle's.
            hold: Observations in a row at or below s that make a success; 0: the bundle's.
            provider: See `OnnxModel`.
            threads: Cores of one inference on the CPU.

        Raises:
            EmbodimentMismatch: Made for another embodiment.
            BundleUnusable: A policy bundle, one that does not load, or one without a success threshold where
                none is given.
        """
        manifest = bundle.manifest
        if manifest.kind == "policy":
            raise BundleUnusable(
                f"bundle {bundle.id}: expected kind reward or both, found policy; it acts and cannot judge"
            )
        bundle.check_embodiment(embodiment)
        if threshold < 0 and manifest.success_threshold is None:
            raise BundleUnusable(
                f"bundle {bundle.id}: expected a calibrated success threshold, found none; calibrate it on "
                "held-out episodes, or set the parameter threshold"
            )
        self.bundle = bundle
        self.threshold = float(manifest.success_threshold if threshold < 0 else threshold)
        self.hold = hold or manifest.success_hold
        self._combine = manifest.combine
        self._bins = StepsToGoBins(embodiment.steps_to_go.bins, embodiment.steps_to_go.width)
        self._model = OnnxModel(bundle, provider, threads)
        self._turn = threading.Lock()

    @property
    def id(self) -> str:
        """The bundle's id."""
        return self.bundle.id

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

    def judge(
        self, observations: Sequence[Observation], instructions: Sequence[str]
    ) -> list[Judgement | EfmError]:
        """Judges all observations in one batch.

        Args:
            observations: As an `ObservationAssembler` hands them out.
            instructions: One for each.

        Returns:
            One entry for each, in order: the judgement, or the error of that observation alone.
        """
        try:
            with self._turn:
                logits = self._model.run(observations, instructions).steps_to_go_logits
        except EfmError as error:
            if len(observations) == 1:
                return [error]
            pairs = zip(observations, instructions, strict=True)
            return [entry for observation, text in pairs for entry in self.judge([observation], [text])]
        values = combine(logits, self._combine, self._bins)
        return [Judgement(float(d), float(s), float(g), p) for d, s, g, p in zip(*values, strict=True)]


def load_reward(
    path: Path | str,
    embodiment: Embodiment,
    robots: int = 1,
    threshold: float = -1.0,
    hold: int = 0,
    provider: str = "auto",
    threads: int = 1,
) -> RewardModel:
    """Verifies, loads and warms up the bundle in a folder; the result is ready to judge.

    Raises:
        BundleUnknown, BundleInvalid, BundleTampered, EmbodimentMismatch, BundleUnusable: See `load_bundle`
            and `RewardModel`.
    """
    model = RewardModel(load_bundle(path), embodiment, threshold, hold, provider, threads)
    model.warm_up(robots)
    return model


def label_episode(
    model: RewardModel,
    episode: Episode,
    instruction: str = "",
    stopped: Callable[[], bool] = lambda: False,
) -> EpisodeLabels:
    """Judges every observation of a recorded episode, in batches.

    Args:
        model: Judges.
        episode: As `read_episode` gives it.
        instruction: To judge by; empty: the episode's own.
        stopped: Looked at between batches; True ends the work.

    Raises:
        EmbodimentMismatch: Recorded with another embodiment than the model's.
        BadRequest: The instruction is too long for the model.
        LabellingStopped: `stopped` became true.
        EpisodeInvalid: An image does not decode.
        BundleUnusable: An output is not finite.
    """
    if episode.embodiment.digest != model.bundle.embodiment.digest:
        raise EmbodimentMismatch(
            f"episode {episode.id}: expected embodiment {model.bundle.embodiment.digest} of bundle "
            f"{model.id}, found {episode.embodiment.digest} ('{episode.embodiment.name}')"
        )
    text = instruction or episode.instruction
    judgements: list[Judgement] = []
    for start in range(0, len(episode), LABEL_BATCH):
        if stopped():
            raise LabellingStopped(f"episode {episode.id}: stopped at observation {start}; ask again")
        observations = observations_of(episode, start, min(start + LABEL_BATCH, len(episode)))
        for judgement in model.judge(observations, [text] * len(observations)):
            if isinstance(judgement, EfmError):
                raise judgement
            judgements.append(judgement)
    expectation = np.array([judgement.expectation for judgement in judgements], np.float32)
    return EpisodeLabels(
        stamps=episode.stamps,
        expectation=expectation,
        spread=np.array([judgement.spread for judgement in judgements], np.float32),
        success_index=first_success(expectation, model.threshold, model.hold),
    )
