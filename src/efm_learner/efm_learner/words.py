"""Chooses the word table of a network so that no two words of the data share a vector."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from efm_core.errors import BadRequest
from efm_core.instruction import encode_instruction

LEAST_BUCKETS = 1024
MOST_BUCKETS = 16384
LEAST_LENGTH = 16


def word_table(instructions: Sequence[str]) -> dict[str, Any]:
    """Returns an instruction specification of kind "hashed_words" for these instructions.

    Words that training never saw may still collide with one that it did.

    Raises:
        BadRequest: There are too many words for any table.
    """
    split = [re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()) for text in instructions]
    words = sorted({word for sentence in split for word in sentence})
    length = max([LEAST_LENGTH, *(len(sentence) for sentence in split)])
    for buckets in range(LEAST_BUCKETS, MOST_BUCKETS + 1):
        spec = {"kind": "hashed_words", "buckets": buckets, "length": 1}
        numbers = [int(np.asarray(encode_instruction(word, spec))[0]) for word in words]
        if len(set(numbers)) == len(numbers):
            return {"kind": "hashed_words", "buckets": buckets, "length": length}
    raise BadRequest(
        f"instructions: {len(words)} words do not fit a table of {MOST_BUCKETS} without collisions; "
        "give the backbone's instruction settings yourself"
    )


def with_word_table(backbone: Mapping[str, Any], instructions: Sequence[str]) -> dict[str, Any]:
    """Returns the backbone's settings with a word table, where it takes one and none is given.

    A state network without a choice gets one only where there is more than one instruction.
    """
    settings = dict(backbone)
    wanted = settings.get("name") == "small" or (
        settings.get("name") == "state" and len(set(instructions)) > 1
    )
    if settings.get("instruction") is None and wanted:
        settings["instruction"] = word_table(instructions)
    return settings
