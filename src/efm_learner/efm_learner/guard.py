"""Notices, without labels, when practice goes past its peak.

The policy is rewarded by one steps-to-go model, and sooner or later finds states that this model takes for
success and the world does not: detected success goes on rising while true success falls. A second model, the
**verifier**, was trained apart (other seed, other split) and is used for nothing else, so practice puts no
pressure on its mistakes. An episode counts as good when the detector ended it AND the verifier agrees on the
last observations; it is doubted when the detector ended it alone. The guard knows the version with the most
good episodes, and stops practice when, beyond chance, the newest episodes are less often good than the best
ones before them, or more often doubted without being good more often; where `drift` is set, also when the
policy has moved far from Stage 1 and is not good more often for it. And it stops where the reward speaks
against nearly everything that the policy does: standing still is then the best that can be learnt.

What it leaves out: mistakes that both models share. Where demonstrations never show a certain failure, both
can be wrong: a verifier of demonstrations with other failures sees more. Without a verifier only the detector
is left to ask, and the guard cannot notice that it is fooled (`BLIND`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from efm_core.errors import BadRequest
from efm_core.statistics import wilson_interval
from efm_core.strict_record import Fault, read_values, setting

__all__ = ["BLIND", "Guard", "GuardSettings", "Verdict"]

BLIND = (
    "there is no verifier: the guard can only ask the detector, and does not notice when that is fooled; "
    "train a second reward bundle with another seed and name it"
)
LOSS = 2.0  # Standard errors by which the mean return must be below zero.
LOSS_ITERATIONS = 3  # At least so many give a standard error.
GAIN = 1.0  # Standard deviations by which episodes must be good more often to be worth doubts or a long way.
HIGH = 0.8  # Rate of good episodes beyond which practice has hardly anything to win but time.


@dataclass(frozen=True)
class GuardSettings:
    """When the guard acts.

    Attributes:
        enabled: Off: signals are still recorded, but nothing stops.
        window: Episodes that are judged together, at least.
        significance: Standard deviations by which the newest window must be worse than one before it. The
            best of many windows is good by luck as well: of 600 simulated runs with constant rates, 1,560
            episodes each, 1 was stopped at 4.5, 17 at 4 and 59 at 3.5.
        instant_steps: A success within so many control steps beyond the detector's hold counts as instant:
            nothing can be done so fast.
        instant_window: Newest episodes that are looked at for instant ones.
        instant_share: Share of instant episodes among them at which practice stops at once.
        slack: Control steps above its own threshold at which the verifier still agrees: the episode is cut
            when the detector fires, which may be a little before the verifier would.
        drift: Mean KL from the Stage-1 policy per decision [nats] beyond which the newest window must be good
            more often than the first one; 0: no limit. It depends on the robot: 1 nat tells lost runs of a
            camera's policy early, and stops the point mass before it gains, see `docs/results.md`.
        kl_limit: Mean KL from the Stage-1 policy per decision [nats] at which practice stops; 0: no limit.
    """

    enabled: bool = True
    window: int = setting(90, low=1)
    significance: float = setting(4.5, above=0.0)
    instant_steps: int = setting(2, low=0)
    instant_window: int = setting(10, low=1)
    instant_share: float = setting(0.8, above=0.0, high=1.0)
    slack: float = setting(2.0, low=0.0)
    drift: float = setting(0.0, low=0.0)
    kl_limit: float = setting(0.0, low=0.0)

    def __post_init__(self) -> None:
        faults: list[Fault] = []
        read_values(GuardSettings, asdict(self), "", faults)
        if faults:
            wrong = "; ".join(f"{fault.key}: {fault.text}" for fault in faults)
            raise BadRequest(f"guard settings: {wrong}; see GuardSettings")


@dataclass(frozen=True)
class Verdict:
    """What the guard concludes.

    Attributes:
        stop: Practice should end.
        best_version: Version to go back to.
        message: For people; empty when all is well.
    """

    stop: bool
    best_version: int
    message: str


class _Tally(NamedTuple):
    """Episodes of one version, or of several together; of those detected, the good are never instant."""

    episodes: int = 0
    good: int = 0
    detected: int = 0

    @property
    def doubted(self) -> int:
        """Those that the detector ended and that are not good."""
        return self.detected - self.good

    def plus(self, other: _Tally) -> _Tally:
        return _Tally(self.episodes + other.episodes, self.good + other.good, self.detected + other.detected)

    def __str__(self) -> str:
        return f"{self.good} of {self.episodes}"


class _Window(NamedTuple):
    """The episodes of versions `first` to `last`."""

    first: int
    last: int
    tally: _Tally


@dataclass
class Guard:
    """Keeps the score of every version. Its state is plain data (`state`, `restore`).

    Attributes:
        settings: When it acts.
        hold: Observations that the detector needs at or below its threshold.
    """

    settings: GuardSettings
    hold: int = 1
    _tallies: dict[int, _Tally] = field(default_factory=dict)
    _instant: list[bool] = field(default_factory=list)
    _returns: list[tuple[int, float]] = field(default_factory=list)

    def record(self, version: int, detected: bool, verified: bool | None, steps: int) -> None:
        """Counts one finished episode.

        Args:
            version: Of the policy that acted.
            detected: Whether the detector ended it.
            verified: Whether the verifier agrees; None without a verifier, and then `detected` is believed.
            steps: Its control steps.
        """
        instant = detected and steps <= self.hold - 1 + self.settings.instant_steps
        good = detected and verified is not False and not instant
        self._tallies[version] = self._tallies.get(version, _Tally()).plus(
            _Tally(1, int(good), int(detected))
        )
        self._instant = [*self._instant, instant][-self.settings.instant_window :]

    def glance(self) -> Verdict:
        """Looks for instant successes only; for every episode."""
        return self._verdict(self._instant_message())

    def judge(self, kl: float = 0.0, episodes: int = 0, mean_return: float = 0.0) -> Verdict:
        """Draws the conclusion from all that was recorded; for every iteration.

        Args:
            kl: Mean KL from the Stage-1 policy per decision [nats].
            episodes: Of the iteration.
            mean_return: Of its decisions [control steps].
        """
        self._returns.append((episodes, mean_return))
        while sum(count for count, _ in self._returns[1:]) >= self.settings.window:
            self._returns.pop(0)
        return self._verdict(
            self._instant_message()
            or self._kl_message(kl)
            or self._loss_message()
            or self._past_peak_message()
            or self._drift_message(kl)
        )

    def _verdict(self, message: str) -> Verdict:
        return Verdict(bool(message) and self.settings.enabled, next(iter(self.ranking()), 0), message)

    def ranking(self) -> list[int]:
        """Returns the versions, that with the greatest lower bound of its rate of good episodes first.

        A version is judged together with those before it that fill its window.
        """
        windows = self._windows()
        bounds = {w.last: wilson_interval(w.tally.good, w.tally.episodes)[0] for w in windows}
        return sorted(bounds, key=lambda version: (-bounds[version], version))

    def state(self) -> dict[str, Any]:
        """Returns everything needed to go on after a restart, as JSON-ready data."""
        tallies = {str(version): tally._asdict() for version, tally in self._tallies.items()}
        return {"instant": self._instant, "returns": self._returns, "tallies": tallies}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` returned, also that of a version which did not keep the returns yet."""
        self._instant = list(state["instant"])
        self._returns = [(count, mean_return) for count, mean_return in state.get("returns", ())]
        self._tallies = {int(version): _Tally(**tally) for version, tally in state["tallies"].items()}

    def _instant_message(self) -> str:
        count, settings = sum(self._instant), self.settings
        full = len(self._instant) == settings.instant_window
        if not full or count < settings.instant_share * settings.instant_window:
            return ""
        return (
            f"{count} of the newest {len(self._instant)} episodes ended in success within "
            f"{self.hold - 1 + settings.instant_steps} steps of the reset: the detector fires on the start "
            "state; check the reset and the success threshold"
        )

    def _kl_message(self, kl: float) -> str:
        limit = self.settings.kl_limit
        return f"KL from Stage 1 is {kl:.2f}, more than {limit:g} nats" if limit and kl > limit else ""

    def _loss_message(self) -> str:
        episodes, means = sum(count for count, _ in self._returns), [mean for _, mean in self._returns]
        if episodes < self.settings.window or len(means) < LOSS_ITERATIONS:
            return ""
        mean, error = statistics.fmean(means), statistics.stdev(means) / math.sqrt(len(means))
        if mean + LOSS * error >= 0:
            return ""
        return (
            f"the mean return of the newest {episodes} episodes is {mean:.2f} control steps: by this reward "
            "the policy leads away from the goal, and practice would teach it to stand still; fine-tune it "
            "further, or practise with cap_at_start"
        )

    def _drift_message(self, kl: float) -> str:
        """Compares the newest window with the first one."""
        full = self._full_windows()
        if not 0.0 < self.settings.drift < kl or not full or full[-1].first <= full[0].last:
            return ""
        was, now = full[0].tally, full[-1].tally
        if was.good > HIGH * was.episodes or _rise(was, now, "good") >= GAIN:
            return ""
        return (
            f"the policy is {kl:.2f} nats away from Stage 1, which has not paid: good episodes were {was} at "
            f"first and are {now} now; practise with a lower learning_rate or step_kl, or with a kl_anchor"
        )

    def _past_peak_message(self) -> str:
        """Compares the newest window with those that have no episode in common with it."""
        full = self._full_windows()
        if not full:
            return ""
        now, limit = full[-1].tally, self.settings.significance
        before = [window for window in full if window.last < full[-1].first]
        best = max(before, key=lambda window: window.tally.good / window.tally.episodes, default=None)
        if best is None:
            return ""
        if _rise(best.tally, now, "good") < -limit:
            return (
                f"good episodes fell from {best.tally} (until version {best.last}) to {now}, of which "
                f"{now.detected} look like success to the detector"
            )
        as_good = (window for window in before if _rise(window.tally, now, "good") < GAIN)
        calm = min(as_good, key=lambda window: window.tally.doubted / window.tally.episodes, default=None)
        if calm is not None and _rise(calm.tally, now, "doubted") > limit:
            was = calm.tally
            return (
                f"detections that the verifier doubts rose from {was.doubted} of {was.episodes} episodes "
                f"(until version {calm.last}) to {now.doubted} of {now.episodes}, good episodes only from "
                f"{was} to {now}"
            )
        return ""

    def _full_windows(self) -> list[_Window]:
        """Returns the windows with enough episodes; none where the newest version's has too few."""
        windows = self._windows()
        if not windows or windows[-1].tally.episodes < self.settings.window:
            return []
        return [window for window in windows if window.tally.episodes >= self.settings.window]

    def _windows(self) -> list[_Window]:
        """Returns for each version the episodes that it is judged by, in the order of versions."""
        versions = sorted(self._tallies)
        windows = []
        for index, last in enumerate(versions):
            total, first = self._tallies[last], last
            for first in reversed(versions[:index]) if total.episodes < self.settings.window else ():
                total = total.plus(self._tallies[first])
                if total.episodes >= self.settings.window:
                    break
            windows.append(_Window(first, last, total))
        return windows


def _rise(before: _Tally, after: _Tally, what: str) -> float:
    """Returns by how many standard deviations the rate of "good" or "doubted" episodes rose."""
    was, now = getattr(before, what), getattr(after, what)
    rate = (was + now + 1) / (before.episodes + after.episodes + 2)  # Never 0 or 1.
    deviation = math.sqrt(rate * (1 - rate) * (1 / before.episodes + 1 / after.episodes))
    return (now / after.episodes - was / before.episodes) / deviation
