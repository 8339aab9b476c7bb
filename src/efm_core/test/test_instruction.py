"""Instructions: the same words give the same numbers on every machine, and nothing is cut off."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from efm_core.errors import BadRequest, BundleInvalid
from efm_core.instruction import encode_instruction

WORDS = {"kind": "hashed_words", "buckets": 1024, "length": 6}


def test_the_numbers_of_words_are_the_same_on_every_machine():
    # Bundles in the field were trained on these very numbers.
    encoded = encode_instruction("push the red block", WORDS)
    assert encoded.dtype == np.int64
    np.testing.assert_array_equal(encoded, [735, 775, 913, 572, 0, 0])


def test_case_punctuation_and_blanks_do_not_count():
    plain = encode_instruction("push the red block", WORDS)
    for text in ("  Push the RED block. ", "push, the red-block", "push\tthe\nred block!"):
        np.testing.assert_array_equal(encode_instruction(text, WORDS), plain)


def test_accents_written_in_two_ways_are_one_word():
    one, two = "\u00e9t\u00e9", "e\u0301te\u0301"
    np.testing.assert_array_equal(encode_instruction(one, WORDS), encode_instruction(two, WORDS))


def test_order_counts_and_numbers_stay_within_the_buckets():
    first, second = encode_instruction("red to blue", WORDS), encode_instruction("blue to red", WORDS)
    assert not np.array_equal(first, second)
    few = encode_instruction("a b c d e f", {**WORDS, "buckets": 2})
    np.testing.assert_array_equal(few, 1)


def test_an_empty_instruction_is_all_padding():
    np.testing.assert_array_equal(encode_instruction("", WORDS), np.zeros(6))


def test_an_instruction_that_is_too_long_is_refused_and_not_cut():
    with pytest.raises(BadRequest, match="expected at most 6 tokens, found 7"):
        encode_instruction("one two three four five six seven", WORDS)


def test_a_model_of_one_task_has_no_instruction():
    assert encode_instruction("whatever", {"kind": "none"}).shape == (0,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "instruction.kind: expected one of hashed_words, none, tokenizer, found None"),
        ({"kind": "hashed_word"}, "did you mean 'hashed_words'"),
        ({"kind": ["none"]}, "instruction.kind: expected one of"),
        ({**WORDS, "buckets": 1}, "instruction.buckets: expected a whole number >= 2"),
        ({**WORDS, "size": 1}, "instruction.size: unknown key"),
        ({"kind": "tokenizer", "file": "t.json"}, "instruction.length: expected a whole number"),
    ],
)
def test_a_specification_with_faults_is_refused(spec, message):
    with pytest.raises(BundleInvalid, match=message):
        encode_instruction("push", spec)


def test_a_tokenizer_of_the_bundle_is_used_without_its_own_cutting(tmp_path):
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 3, "push": 1, "red": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_padding(pad_id=3, length=10)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    spec = {"kind": "tokenizer", "file": "tokenizer.json", "length": 4}
    np.testing.assert_array_equal(encode_instruction("push red what", spec, tmp_path), [1, 2, 0, -1])
    with pytest.raises(BadRequest, match="expected at most 4 tokens, found 5"):
        encode_instruction("push push push push push", spec, tmp_path)


@pytest.mark.parametrize("file", ["../tokenizer.json", "/etc/hostname"])
def test_a_bundle_opens_no_file_outside_its_folder(tmp_path, file):
    with pytest.raises(BundleInvalid, match=r"instruction\.file: expected a file of the bundle"):
        encode_instruction("push", {"kind": "tokenizer", "file": file, "length": 4}, tmp_path)


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BundleInvalid, match=r"nothing\.json: expected a tokenizer\.json"):
        encode_instruction("push", {"kind": "tokenizer", "file": "nothing.json", "length": 4}, tmp_path)
