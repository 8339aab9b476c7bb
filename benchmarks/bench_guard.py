"""Replays the guard on recorded practice: when does it stop, and what was true then?

    python benchmarks/bench_guard.py docs/results/push*.json docs/results/table*.json

Every iteration of a run has the numbers of detected and confirmed episodes, the KL from Stage 1 and the mean
return; the world's truth beside them is only printed. Left out: instant successes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from efm_learner.guard import Guard, GuardSettings

DRIFTS = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0)  # [nats]; 0: without this rule.
STEPS = 1_000  # Of every episode, so that none is instant.
ENDS = 3  # Iterations whose true success is averaged.


def histories(found: Any, name: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Gives the runs with a verifier that a file holds, by name."""
    if not isinstance(found, dict):
        return
    history = found.get("history") or []
    if history and history[0].get("verified") is not None and "kl" in history[0]:
        yield name, history
    for key, value in found.items():
        yield from histories(value, f"{name} {key}")


def stop(history: Sequence[dict[str, Any]], settings: GuardSettings) -> int | None:
    """Returns the iteration at which the guard stops a run; None: it does not."""
    guard = Guard(settings)
    for version, seen in enumerate(history):
        episodes = seen["episodes"]
        detected, verified = (round(seen[key] * episodes) for key in ("detected", "verified"))
        for number in range(episodes):
            guard.record(version, number < detected, number < verified, STEPS)
        if guard.judge(seen["kl"], episodes, seen["return"]).stop:
            return version
    return None


def main() -> None:
    """Prints a row for every run, and for every limit where it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    for path in parser.parse_args().files:
        for name, history in histories(json.loads(path.read_text()), path.stem):
            true = [seen["true"] for seen in history]
            ends = [sum(part) / len(part) for part in (true[:ENDS], true[-ENDS:])]
            print(f"{name}: true {ends[0]:.2f}, at most {max(true):.2f}, at the end {ends[1]:.2f}")
            for drift in DRIFTS:
                at = stop(history, GuardSettings(drift=drift))
                episodes = sum(seen["episodes"] for seen in history[: (at or 0) + 1])
                where = "" if at is None else f"after {episodes} episodes, true {true[at]:.2f}"
                print(f"    drift {drift:g}: {where or 'not stopped'}")


if __name__ == "__main__":
    main()
