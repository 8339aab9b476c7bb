"""The word table that is chosen for the instructions of the data."""

import numpy as np

from efm_core.instruction import encode_instruction
from efm_learner.words import with_word_table, word_table

COLOURS = ["red", "blue", "green", "yellow", "purple", "orange", "black", "white", "grey", "brown", "pink"]
SENTENCES = [
    f"push the {a} {shape} to the {b} cube" for a in COLOURS for b in COLOURS for shape in ("moon", "star")
]


def test_no_two_words_of_the_data_share_a_number():
    spec = word_table(SENTENCES)
    words = sorted({word for text in SENTENCES for word in text.split()})
    numbers = [int(encode_instruction(word, spec)[0]) for word in words]
    assert len(set(numbers)) == len(words)


def test_the_longest_sentence_fits():
    long = " ".join(["again"] * 30)
    assert np.count_nonzero(encode_instruction(long, word_table([long]))) == 30


def test_only_a_backbone_that_needs_words_gets_a_table():
    assert "instruction" not in with_word_table({"name": "state"}, ["go"])
    assert with_word_table({"name": "state"}, ["go", "stop"])["instruction"]["kind"] == "hashed_words"
    given = {"name": "small", "instruction": {"kind": "none"}}
    assert with_word_table(given, SENTENCES) == given
