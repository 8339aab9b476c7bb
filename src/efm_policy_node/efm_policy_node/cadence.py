"""How well a loop keeps its rhythm: achieved rate, late and missed cycles, latencies.

Durations are on the steady clock. Memory is bounded: percentiles come from the newest latencies. Left out:
logging; the report prints itself in one line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

WINDOW = 2048  # Newest latencies that percentiles are taken from.


@dataclass(frozen=True)
class CadenceReport:
    """A loop's rhythm, for people and for diagnostics.

    Attributes:
        cycles: Commands that answered an observation.
        intervals: Pairs of successive commands within one act.
        duration_s: Time in which it acted.
        late: Cycles whose command left more than half a period after it was due.
        missed: Control periods that passed without a command although one was due.
        median_ms, p99_ms: Of the newest latencies, from due to published. NaN: none yet.
        worst_ms: Greatest latency of all. NaN: none yet.
        wanted_hz: Control rate. 0: none is wanted (lockstep).
    """

    cycles: int
    intervals: int
    duration_s: float
    late: int
    missed: int
    median_ms: float
    p99_ms: float
    worst_ms: float
    wanted_hz: float

    @property
    def achieved_hz(self) -> float:
        """Commands per second of acting; 0 before there are two in one act."""
        return self.intervals / self.duration_s if self.duration_s > 0 else 0.0

    def __str__(self) -> str:
        of = f" of {self.wanted_hz:g}" if self.wanted_hz else ""
        return (
            f"{self.cycles} cycles in {self.duration_s:.1f} s, {self.achieved_hz:.2f}{of} Hz, "
            f"{self.late} late, {self.missed} missed; latency median {self.median_ms:.1f} ms, "
            f"p99 {self.p99_ms:.1f} ms, worst {self.worst_ms:.1f} ms"
        )


class Cadence:
    """Counts cycles while something acts. Not thread-safe: its owner holds a lock."""

    def __init__(self, wanted_hz: float) -> None:
        """Starts at zero; `wanted_hz` 0 where the world sets the pace, as in lockstep, and nothing can be
        late.
        """
        self._wanted_hz = wanted_hz
        self._latencies = np.empty(WINDOW)
        self._filled = self._next = 0
        self._cycles = self._intervals = self._late = self._missed = 0
        self._acted_s = 0.0
        self._worst_s = math.nan
        self._first_s: float | None = None
        self._last_s = 0.0

    def cycle(self, due_s: float, done_s: float) -> None:
        """Counts a command that was due and left at these times (steady clock)."""
        latency = done_s - due_s
        self._latencies[self._next] = latency
        self._next = (self._next + 1) % WINDOW
        self._filled = min(self._filled + 1, WINDOW)
        self._worst_s = latency if math.isnan(self._worst_s) else max(self._worst_s, latency)
        self._cycles += 1
        if self._wanted_hz and latency > 0.5 / self._wanted_hz:
            self._late += 1
        if self._first_s is None:
            self._first_s = done_s
        else:
            self._intervals += 1
        self._last_s = done_s

    def miss(self, cycles: int = 1) -> None:
        """Counts control periods without a command."""
        self._missed += cycles

    def pause(self) -> None:
        """Says that acting ended; the time until the next cycle does not count."""
        if self._first_s is not None:
            self._acted_s += self._last_s - self._first_s
            self._first_s = None

    def report(self) -> CadenceReport:
        """Returns the rhythm so far."""
        window_ms = self._latencies[: self._filled] * 1e3
        median, p99 = np.percentile(window_ms, (50, 99)) if self._filled else (math.nan, math.nan)
        running = self._last_s - self._first_s if self._first_s is not None else 0.0
        return CadenceReport(
            cycles=self._cycles,
            intervals=self._intervals,
            duration_s=self._acted_s + running,
            late=self._late,
            missed=self._missed,
            median_ms=float(median),
            p99_ms=float(p99),
            worst_ms=self._worst_s * 1e3,
            wanted_hz=self._wanted_hz,
        )
