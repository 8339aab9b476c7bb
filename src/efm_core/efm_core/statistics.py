"""How sure a success rate is. Only what evaluation reports need."""

from __future__ import annotations

import math


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the Wilson score interval of a success rate.

    Args:
        successes: 0 .. n.
        n: episodes; with 0 nothing is known, and the interval is 0 .. 1.
        z: quantile of the normal distribution; 1.96 is 95 %.

    Raises:
        ValueError: successes are not within 0 .. n, or z is not positive.
    """
    if not 0 <= successes <= n or not z > 0:
        raise ValueError(f"expected 0 <= successes <= n and z > 0, found {successes} of {n}, z {z}")
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    scale = 1.0 / (1.0 + z * z / n)
    center = scale * (rate + z * z / (2 * n))
    half = scale * z * math.sqrt(rate * (1.0 - rate) / n + z * z / (4 * n * n))
    # At 0 and at n the bound is exactly 0 or 1; rounding must not say otherwise.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return low, high
