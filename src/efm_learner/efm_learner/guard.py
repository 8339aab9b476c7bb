"""Notices, without labels, when practice goes past its peak.

The policy is rewarded by one steps-to-go model, and sooner or later finds states that this model takes for
success and the world does not: detected success goes on rising while true success falls. A second model, the
**verifier**, was trained apart (other seed, other split) and is used for nothing else, so practice puts no
pressure on its mistakes. The guard counts an episode as good when the detector ended it AND the verifier agrees on the
last observations. It keeps the version with the most good episodes, and stops practice when later versions
are worse beyond chance.

What it leaves out: mistakes that both models share. They were trained on demonstrations of the same robot; where those
never show a certain failure, both can be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from efm_core.errors import BadRequest
from efm_core.statistics import wilson_interval

__all__ = ["Guard", "GuardSettings", "Verdict"]


@dataclass(frozen=True)
class GuardSettings:
    """When the guard acts.

    Attributes:
        enabled: Off: signals are still recorded, but nothing stops.
        window: Consecutive versions whose episodes are judged together.
        significance: Standard deviations by which the window must lie below the best one.
        patience: Consecutive windows that must do so before practice stops.
        instant_steps: Detected episodes of this many steps or fewer count as instant: nothing can be done so fast.
        instant_share: Share of instant episodes in a window at which practice stops at once.
        slack: Steps above its own threshold at which the verifier still agrees: the episode is cut when the detector
            fires, which may be a little before the verifier would.
        kl_limit: Mean KL from the Stage-1 policy per decision [nats] at which practice stops; 0 means no limit.
    """

    enabled: bool = True
    window: int = 3
    significance: float = 2.0
    patience: int = 2
    instant_steps: int = 2
    instant_share: float = 0.8
    slack: float = 2.0
    kl_limit: float = 0.0

    def __post_init__(self) -> None:
        if self.window < 1 or self.patience < 1 or self.significance < 0 or not 0 < self.instant_share <= 1:
            raise BadRequest(
                f"guard settings out of range: {asdict(self)}; window and patience >= 1, "
                "significance >= 0, instant_share in (0, 1]"
            )


@dataclass(frozen=True)
class Verdict:
    """What the guard concludes after an iteration.

    Attributes:
        stop: Practice should end.
        best_version: Version to go back to.
        message: For people; empty when all is well.
    """

    stop: bool
    best_version: int
    message: str


@dataclass
class _Tally:
    episodes: int = 0
    good: int = 0
    detected: int = 0
    instant: int = 0


@dataclass
class Guard:
    """Keeps the score of every version. Its state is plain data (`state`, `restore`)."""

    settings: GuardSettings
    tallies: dict[int, _Tally] = field(default_factory=dict)
    strikes: int = 0

    def record(self, version: int, detected: bool, verified: bool | None, steps: int) -> None:
        """Counts one finished episode of a version. Without a verifier `detected` alone counts as good."""
        tally = self.tallies.setdefault(version, _Tally())
        tally.episodes += 1
        tally.detected += detected
        tally.good += detected and verified is not False
        tally.instant += detected and steps <= self.settings.instant_steps

    def judge(self, kl: float = 0.0) -> Verdict:
        """Draws the conclusion from all that was recorded; call once per iteration."""
        best = next(iter(self.ranking()), 0)
        best_window = self._window(best)
        newest = self._window(max(self.tallies, default=0))
        if newest.episodes and newest.instant / newest.episodes >= self.settings.instant_share:
            return self._verdict(
                True,
                best,
                f"{newest.instant} of {newest.episodes} episodes ended within {self.settings.instant_steps} steps "
                "of the reset: the detector fires on the start state. Check the reset and the threshold",
            )
        if self.settings.kl_limit and kl > self.settings.kl_limit:
            return self._verdict(True, best, f"KL from Stage 1 is {kl:.2f} > {self.settings.kl_limit} nats")
        drop = _rate(best_window) - _rate(newest)
        noise = math.sqrt(_variance(best_window) + _variance(newest))
        worse = newest.episodes > 0 and drop > self.settings.significance * noise
        self.strikes = self.strikes + 1 if worse else 0
        if not worse:
            return self._verdict(False, best, "")
        message = (
            f"good episodes fell from {_text(best_window)} around version {best} to {_text(newest)}"
            f" ({newest.detected} of {newest.episodes} detected); strike {self.strikes} of {self.settings.patience}"
        )
        return self._verdict(self.strikes >= self.settings.patience, best, message)

    def ranking(self) -> list[int]:
        """Returns the versions with the greatest lower bound of good episodes first."""
        windows = {version: self._window(version) for version in sorted(self.tallies)}
        return sorted(windows, key=lambda v: -wilson_interval(windows[v].good, windows[v].episodes)[0])

    def state(self) -> dict[str, object]:
        """Returns everything needed to go on after a restart, as JSON-ready data."""
        return {"strikes": self.strikes, "tallies": {str(v): asdict(t) for v, t in self.tallies.items()}}

    def restore(self, state: dict) -> None:
        """Takes back what `state` returned."""
        self.strikes = int(state["strikes"])
        self.tallies = {int(version): _Tally(**tally) for version, tally in state["tallies"].items()}

    def _verdict(self, stop: bool, best: int, message: str) -> Verdict:
        return Verdict(stop and self.settings.enabled, best, message)

    def _window(self, version: int) -> _Tally:
        """Tally of a version and the ones before it within the window."""
        first = version - self.settings.window + 1
        return _sum(tally for v, tally in self.tallies.items() if first <= v <= version)


def _sum(tallies: Iterable[_Tally]) -> _Tally:
    total = _Tally()
    for tally in tallies:
        total.episodes += tally.episodes
        total.good += tally.good
        total.detected += tally.detected
        total.instant += tally.instant
    return total


def _rate(tally: _Tally) -> float:
    return tally.good / tally.episodes if tally.episodes else 0.0


def _variance(tally: _Tally) -> float:
    """Of the rate, with one good and one bad episode added so that it is never zero."""
    n = tally.episodes + 2
    p = (tally.good + 1) / n
    return p * (1 - p) / n


def _text(tally: _Tally) -> str:
    return f"{tally.good} of {tally.episodes}"
