"""Drawing actions from a policy's logits. `onnx_model` makes logits, `action_tokens` makes numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def sample_actions(
    logits: npt.NDArray[np.floating[Any]], temperature: float, rng: np.random.Generator | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Draws one token for every action dimension, each on its own.

    Args:
        logits: [B, C, D, bins]: robots, chunk, dimensions. Bins that a dimension does not have are very
            low, -1e9 say, or -inf.
        temperature: 0: the most likely bin; 1: as the model says; more: flatter.
        rng: source of randomness; not needed at temperature 0.

    Returns:
        tokens int64 [B, C, D]; log_prob float64 [B, C], natural logarithm of the probability of an action's
        tokens at temperature 1, whatever they were drawn at.

    Raises:
        ValueError: wrong shape, NaN or +inf logits, a negative temperature, or no rng where one is needed.
    """
    if logits.ndim != 4 or logits.shape[-1] == 0:
        raise ValueError(f"action logits: expected the shape [B, C, D, bins], found {list(logits.shape)}")
    if not (np.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature: expected a finite number >= 0, found {temperature}")
    values = logits.astype(np.float64)
    top = values.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():  # Also true of NaN anywhere, which max hands on.
        raise ValueError("action logits: expected finite numbers, found NaN, +inf or only -inf")
    values -= top
    if temperature == 0:
        tokens = values.argmax(axis=-1)
    elif rng is None:
        raise ValueError(f"temperature {temperature}: expected an rng to draw with, found None")
    else:  # Gumbel noise makes the argmax a draw from the softmax; scaling the noise cannot overflow.
        tokens = (values + temperature * rng.gumbel(size=values.shape)).argmax(axis=-1)
    log_sums = np.log(np.exp(values).sum(axis=-1))
    chosen = np.take_along_axis(values, tokens[..., np.newaxis], axis=-1)[..., 0]
    return tokens.astype(np.int64), (chosen - log_sums).sum(axis=-1)
