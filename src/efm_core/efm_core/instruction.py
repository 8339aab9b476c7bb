"""Instructions as numbers: the one encoding that training and serving share, chosen by the bundle's manifest.

Kinds: `hashed_words` needs no vocabulary file; `tokenizer` uses that of a pretrained language model; `none`
is for models that know one task only. An instruction that does not fit is refused, never cut: half of it
would mean something else.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from efm_core.errors import BadRequest, BundleInvalid, nearest
from efm_core.strict_record import Fault, read_record, setting

# Fills up what is too short: word number 0 is left free by hashed words, a tokenizer may use all from 0 on.
NO_WORD = 0
NO_TOKEN = -1


@dataclass(frozen=True)
class HashedWords:
    """Every word becomes a number 1 .. buckets - 1, by a hash of its letters; `length` is L."""

    kind: Literal["hashed_words"] = setting()
    buckets: int = setting(1024, low=2, high=1 << 31)
    length: int = setting(16, low=1, high=4096)


@dataclass(frozen=True)
class NoInstruction:
    """The model has no instruction input; L is 0."""

    kind: Literal["none"] = setting()


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json of Hugging Face's `tokenizers`; `file` is in the bundle's folder."""

    kind: Literal["tokenizer"] = setting()
    file: str = setting(pattern=r"\S.*", meaning="the path of a tokenizer.json")
    length: int = setting(low=1, high=4096)


_KINDS: dict[str, type[HashedWords] | type[NoInstruction] | type[TokenizerFile]] = {
    "hashed_words": HashedWords,
    "none": NoInstruction,
    "tokenizer": TokenizerFile,
}


def encode_instruction(
    text: str, spec: Mapping[str, Any], folder: Path | None = None
) -> npt.NDArray[np.int64]:
    """Encodes an instruction for a model.

    Args:
        text: of the instruction, in any case; may be empty.
        spec: the manifest's entry `instruction`, for example {"kind": "hashed_words", "buckets": 1024,
            "length": 16}.
        folder: of the bundle, for the tokenizer's file.

    Returns:
        int64 [L], filled up at the end with `NO_WORD` (hashed words) or `NO_TOKEN` (tokenizer).

    Raises:
        BadRequest: the instruction is longer than the model can take.
        BundleInvalid: the specification breaks its schema, or its tokenizer cannot be loaded.
    """
    settings = parse_instruction_spec(spec)
    if isinstance(settings, NoInstruction):
        return np.zeros(0, dtype=np.int64)
    padding = NO_TOKEN
    if isinstance(settings, HashedWords):
        padding = NO_WORD
        numbers = [zlib.crc32(word.encode()) % (settings.buckets - 1) + 1 for word in _words(text)]
    else:
        numbers = _tokenizer(str(_inside(folder, settings.file))).encode(text).ids
    if len(numbers) > settings.length:
        raise BadRequest(
            f"instruction: expected at most {settings.length} tokens, found {len(numbers)} in '{text:.200}'; "
            "shorten it or train a model with a longer instruction"
        )
    encoded = np.full(settings.length, padding, dtype=np.int64)
    encoded[: len(numbers)] = numbers
    return encoded


def parse_instruction_spec(spec: Mapping[str, Any]) -> HashedWords | NoInstruction | TokenizerFile:
    """Checks the specification of an encoding.

    Raises:
        BundleInvalid: with all faults.
    """
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise BundleInvalid(
            f"instruction.kind: expected one of {', '.join(_KINDS)}, found {kind!r}{nearest(kind, _KINDS)}"
        )
    faults: list[Fault] = []
    settings = read_record(_KINDS[kind], spec, "instruction", faults)
    if settings is None:
        raise BundleInvalid("; ".join(f"{fault.key}: {fault.text}" for fault in faults))
    return settings


def _words(text: str) -> list[str]:
    """Returns the words of a text, in lower case and without punctuation; "ß" or "é" come out in one way."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def _inside(folder: Path | None, file: str) -> Path:
    """Returns the path of a bundle's file; a bundle that came from elsewhere must not open others."""
    if folder is None:
        return Path(file)
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BundleInvalid(f"instruction.file: expected a file of the bundle, found '{file}'")
    return path


@functools.lru_cache(maxsize=4)
def _tokenizer(file: str) -> Any:
    """Returns a loaded tokenizer, which neither pads nor cuts."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BundleInvalid(
            f"{file}: this bundle needs the package `tokenizers`; install it with pip install tokenizers"
        ) from error
    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:  # The package raises a bare Exception.
        raise BundleInvalid(f"{file}: expected a tokenizer.json, found: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
