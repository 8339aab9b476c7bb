"""How far a reward bundle can be trusted, and at which d it may call success: measured on held-out episodes.

Everything here comes from the demonstrators' marks and the ends of episodes; the world's truth has no way in.
The rule for threshold s and hold k: among all pairs for which the detector

- fires in at most `most_false` of the unsuccessful episodes, and of successful ones shown under a foreign
  instruction,
- fires early, more than `early_tolerance` steps before the rest that ends a demonstration, in at most
  `most_false` of the successful ones,

take those whose recall lies within `recall_slack` of the best, of them the lowest rate of false and early,
and of them the smallest s. Where no pair keeps the limits, the one that breaks them least is taken, and the
report says so. Nothing is chosen by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest
from efm_core.statistics import wilson_interval
from efm_learner.batches import foreign_instructions
from efm_learner.network import Network
from efm_learner.samples import StepTable
from efm_learner.validation import episode_rows, predicted_steps

FloatArray = npt.NDArray[np.float64]


MOST_HOLD = 2**16 - 1  # What a manifest holds.


@dataclass(frozen=True)
class CalibrationSettings:
    """How the success detector is chosen.

    Attributes:
        most_false: Greatest share of false, and of early, successes.
        recall_slack: Recall that is given away for fewer of them.
        holds: Candidates for the number of observations at or below s.
        early_tolerance: Control steps before the rest at which success may already be called; None: what one
            bin of steps-to-go cannot tell apart, its width less 1.
        most_episodes: Held-out episodes of each kind that are judged, at most.
    """

    most_false: float = 0.05
    recall_slack: float = 0.02
    holds: tuple[int, ...] = (1, 2, 3, 5)
    early_tolerance: int | None = None
    most_episodes: int = 300

    def __post_init__(self) -> None:
        object.__setattr__(self, "holds", tuple(self.holds))
        if not (0 <= self.most_false < 1 and 0 <= self.recall_slack < 1 and self.most_episodes >= 1):
            raise BadRequest("calibration: expected shares in [0, 1) and 1 or more episodes")
        if not self.holds or not 1 <= min(self.holds) <= max(self.holds) <= MOST_HOLD:
            raise BadRequest(f"calibration.holds: expected numbers from 1 to {MOST_HOLD}, found {self.holds}")
        if self.early_tolerance is not None and self.early_tolerance < 0:
            raise BadRequest(f"calibration.early_tolerance: expected 0 or more, found {self.early_tolerance}")


@dataclass(frozen=True)
class JudgedEpisodes:
    """d of whole held-out episodes, in control steps.

    Attributes:
        successful: Of each successful episode, d [N].
        rest: Of each of them, index of the first observation of the rest that ends it.
        unsuccessful: Of each unsuccessful one, d [N].
        mismatched: Of successful ones under a foreign instruction, d [N].
    """

    successful: list[FloatArray]
    rest: list[int]
    unsuccessful: list[FloatArray]
    mismatched: list[FloatArray]


def calibrate(
    network: Network, table: StepTable, combine: str, settings: CalibrationSettings
) -> dict[str, Any]:
    """Returns the report that goes into the manifest: errors, calibration, and the chosen detector.

    Args:
        network: Reward network.
        table: Held-out episodes, with targets.
        combine: How heads are combined.
        settings: See `CalibrationSettings`.
    """
    good = np.flatnonzero(table.success)[: settings.most_episodes]
    bad = np.flatnonzero(~table.success)[: settings.most_episodes]
    if not len(good):
        raise BadRequest("calibration: expected at least one successful held-out episode, found none")
    rows = episode_rows(table, list(good))
    d, distributions = predicted_steps(network, table, rows, combine)
    bad_rows = episode_rows(table, list(bad))
    bad_d, _ = predicted_steps(network, table, bad_rows, combine)
    target = table.steps_to_go[rows].astype(np.float64)
    lengths = (table.last - table.first + 1)[good]
    judged = JudgedEpisodes(
        successful=np.split(d, np.cumsum(lengths)[:-1]),
        rest=[int(np.argmax(left == 0)) for left in np.split(target, np.cumsum(lengths)[:-1])],
        unsuccessful=_pieces(bad_d, (table.last - table.first + 1)[bad]),
        mismatched=_under_foreign_instructions(network, table, good, combine),
    )
    detector = choose_detector(judged, settings, network.embodiment)
    return {
        "successful_episodes": len(good),
        "unsuccessful_episodes": len(bad),
        "mean_absolute_error": float(np.abs(d - target).mean()),
        "mean_absolute_error_last_20": _mean(np.abs(d - target)[target <= 20]),
        "bias": float((d - target).mean()),
        "rank_correlation": _mean([_rank_correlation(a, b) for a, b in _by_episode(d, target, lengths)]),
        "bound_kept": _mean(bad_d >= table.steps_to_go[bad_rows]),
        "coverage": coverage(distributions, target, network.embodiment.steps_to_go.width),
        "detector": detector,
        "settings": asdict(settings),
    }


def choose_detector(
    judged: JudgedEpisodes, settings: CalibrationSettings, embodiment: Embodiment
) -> dict[str, Any]:
    """Returns threshold and hold by the rule above, with precision and recall over s for the chosen hold."""
    steps = embodiment.steps_to_go
    tolerance = settings.early_tolerance
    if tolerance is None:
        tolerance = steps.width - 1
    everything = [*judged.successful, *judged.unsuccessful, *judged.mismatched]
    least = min(float(d.min()) for d in everything)
    thresholds = np.linspace(least, max(least + steps.width, steps.bins * steps.width / 4), 200)
    curves: dict[int, list[dict[str, float]]] = {}
    for hold in settings.holds:
        good = [firing_times(d, thresholds, hold) for d in judged.successful]
        bad = [firing_times(d, thresholds, hold) for d in judged.unsuccessful]
        foreign = [firing_times(d, thresholds, hold) for d in judged.mismatched]
        curves[hold] = [
            _row(float(s), i, good, judged.rest, bad, foreign, tolerance) for i, s in enumerate(thresholds)
        ]
    best = _choice(curves, settings)
    hold = int(best["hold"])
    false = round(best["false"] * len(judged.unsuccessful))
    return {
        **best,
        "limits_kept": bool(_excess(best, settings) <= 0),
        "early_tolerance": tolerance,
        "expected_false_success": best["false"] if judged.unsuccessful else best["early"],
        "false_success_interval": list(wilson_interval(false, len(judged.unsuccessful))),
        "curve": curves[hold][::8],
    }


def firing_times(d: FloatArray, thresholds: FloatArray, hold: int) -> npt.NDArray[np.int64]:
    """Returns the index in d [N] at which a detector first fires, for each threshold; -1: it never does."""
    if len(d) < hold:
        return np.full(len(thresholds), -1)
    windows = np.lib.stride_tricks.sliding_window_view(d, hold).max(axis=1)
    lowest = np.minimum.accumulate(windows)
    # `lowest` falls, so that the first index at or below s is found by counting those above it.
    index = np.searchsorted(-lowest, -thresholds, side="left")
    return np.where(index < len(lowest), index + hold - 1, -1)


def coverage(distributions: FloatArray, target: FloatArray, width: int) -> dict[str, float | None]:
    """Returns, for central intervals of some probabilities, how often the target's bin lies inside.

    A calibrated distribution covers at least as much as it promises; bins make it cover somewhat more.
    """
    bins = np.minimum(target // width, distributions.shape[1] - 1).astype(np.int64)
    upper = np.cumsum(distributions, axis=1)
    rows = np.arange(len(bins))
    above = upper[rows, bins]
    below = above - distributions[rows, bins]
    result: dict[str, float | None] = {}
    for promised in (0.5, 0.8, 0.95):
        tail = (1 - promised) / 2
        result[f"{promised:g}"] = _mean((above >= tail) & (below <= 1 - tail))
    return result


def _row(
    threshold: float,
    index: int,
    good: Sequence[npt.NDArray[np.int64]],
    rest: Sequence[int],
    bad: Sequence[npt.NDArray[np.int64]],
    foreign: Sequence[npt.NDArray[np.int64]],
    tolerance: int,
) -> dict[str, float]:
    fired = np.array([times[index] for times in good])
    early = (fired >= 0) & (fired < np.array(rest) - tolerance)
    right = (fired >= 0) & ~early
    false = np.array([times[index] >= 0 for times in bad], bool)
    swapped = np.array([times[index] >= 0 for times in foreign], bool)
    calls = right.sum() + early.sum() + false.sum()
    return {
        "threshold": threshold,
        "recall": float(right.mean()),
        "early": float(early.mean()),
        "false": float(false.mean()) if len(false) else 0.0,
        "mismatched": float(swapped.mean()) if len(swapped) else 0.0,
        "precision": float(right.sum() / calls) if calls else 1.0,
    }


def _excess(row: dict[str, float], settings: CalibrationSettings) -> float:
    return max(row[key] - settings.most_false for key in ("early", "false", "mismatched"))


def _choice(curves: dict[int, list[dict[str, float]]], settings: CalibrationSettings) -> dict[str, float]:
    rows = [{"hold": hold, **row} for hold, curve in curves.items() for row in curve if row["recall"] > 0]
    if not rows:
        # Nothing ever fires in time: the most cautious detector.
        return {"hold": max(curves), **curves[max(curves)][0]}
    allowed = [row for row in rows if _excess(row, settings) <= 1e-9]
    if not allowed:
        worst = min(_excess(row, settings) for row in rows)
        allowed = [row for row in rows if _excess(row, settings) <= worst + 1e-9]
    enough = max(row["recall"] for row in allowed) - settings.recall_slack
    return min(
        (row for row in allowed if row["recall"] >= enough - 1e-9),
        key=lambda row: (row["false"] + row["early"] + row["mismatched"], row["threshold"], row["hold"]),
    )


def _under_foreign_instructions(
    network: Network, table: StepTable, good: npt.NDArray[np.int64], combine: str
) -> list[FloatArray]:
    """Judges successful episodes under an instruction that means something else, where there is one."""
    others = foreign_instructions(table.instructions)
    chosen = [index for index in good if len(others[table.episode_instruction[index]])]
    if not chosen or network.instruction["kind"] == "none":
        return []
    rng = np.random.default_rng(0)
    rows = episode_rows(table, chosen)
    lengths = (table.last - table.first + 1)[chosen]
    shown = [rng.choice(others[table.episode_instruction[index]]) for index in chosen]
    d, _ = predicted_steps(network, table, rows, combine, np.repeat(shown, lengths))
    return _pieces(d, lengths)


def _pieces(values: FloatArray, lengths: npt.NDArray[np.int64]) -> list[FloatArray]:
    return list(np.split(values, np.cumsum(lengths)[:-1])) if len(lengths) else []


def _by_episode(
    d: FloatArray, target: FloatArray, lengths: npt.NDArray[np.int64]
) -> list[tuple[FloatArray, FloatArray]]:
    return list(zip(_pieces(d, lengths), _pieces(target, lengths), strict=True))


def _rank_correlation(a: FloatArray, b: FloatArray) -> float:
    """Returns Spearman's correlation; 0 where one of the two does not vary."""
    first, second = _ranks(a), _ranks(b)
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: FloatArray) -> FloatArray:
    """Returns ranks, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _mean(values: Any) -> float | None:
    """Returns the mean, or None where there is nothing: JSON has no NaN."""
    array = np.asarray(values, np.float64)
    return float(array.mean()) if array.size else None
