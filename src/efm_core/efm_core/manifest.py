"""The manifest of a model bundle: its fields, its JSON, its id, and what makes it invalid.

Written once by whoever trains, read by everybody who loads. Files and folders are bundle.py's business.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from efm_core.embodiment import Embodiment
from efm_core.errors import BundleInvalid, EmbodimentInvalid, nearest

FORMAT = 1
MANIFEST = "manifest.json"
# Formats that hold data and nothing that runs. ".data": external weights of an ONNX file.
ALLOWED_SUFFIXES = (".onnx", ".data", ".safetensors", ".json", ".txt", ".md", ".csv", ".png", ".svg")
# What a bundle of each kind must give.
OUTPUTS = {
    "policy": ("action_logits",),
    "reward": ("steps_to_go_logits",),
    "both": ("action_logits", "steps_to_go_logits"),
}
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{16}")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # A surrogate, which UTF-8 has no bytes for.


@dataclass(frozen=True, kw_only=True)
class BundleManifest:
    """What a bundle is, where it comes from and how to use it. Values are plain JSON.

    Attributes:
        kind: policy (acts), reward (predicts steps-to-go) or both.
        embodiment: `Embodiment.to_dict()` of the robot that it was made for.
        instruction: how the instruction is encoded, see instruction.py.
        backbone: architecture and its settings; enough to build the network again.
        inputs: name -> {"shape": [sizes or names of free dimensions], "dtype": "uint8"...} of the ONNX graph.
        outputs: likewise; at least those in OUTPUTS for the kind.
        opset: of the ONNX graph.
        heads: E, heads of the steps-to-go ensemble.
        combine: how the heads are combined, mean or max.
        parent_id: bundle that it was trained or converted from; None: from scratch.
        version: within one practice run, counted from 0.
        training: settings of the training.
        data_ids: episodes or data sets that it was trained on.
        validation: losses and other figures on held-out data.
        success_threshold: s [control steps]; None: not calibrated.
        success_hold: consecutive observations at or below s that make a success.
        parity: greatest difference between torch and ONNX Runtime, by output; of a converted bundle, how it
            agrees with its parent.
        git_revision: of the code that wrote it; empty: unknown.
        files: name -> {"size": bytes, "sha256": 64 hex digits}; filled by `write_bundle`.
        format: of the manifest.
    """

    kind: str
    embodiment: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    opset: int
    instruction: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    heads: int = 1
    combine: str = "mean"
    parent_id: str | None = None
    version: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    data_ids: list[str] = field(default_factory=list)
    validation: dict[str, Any] = field(default_factory=dict)
    success_threshold: float | None = None
    success_hold: int = 1
    parity: dict[str, Any] = field(default_factory=dict)
    git_revision: str = ""
    files: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> bytes:
        """Returns the text of manifest.json, laid out for readers.

        Raises:
            BundleInvalid: a value has no place in JSON; names its key.
        """
        plain = _plain({name: getattr(self, name) for name in _FIELDS}, "manifest")
        return (json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def bundle_id(manifest_bytes: bytes) -> str:
    """Returns the id, 16 hex digits, that the text of a manifest.json gives.

    It is the beginning of the SHA-256 of the manifest in canonical JSON (UTF-8, sorted keys, no blanks), so
    that the layout of the text does not count. As the manifest holds the hash of every file, the id names all
    of the content.
    """
    plain = json.loads(manifest_bytes)
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def parse_manifest(text: bytes, where: str) -> BundleManifest:
    """Reads and checks a manifest; `where` it comes from is for the errors.

    Raises:
        BundleInvalid: no JSON, unknown or missing keys, wrong types, or values that contradict one another.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        json.dumps(data, ensure_ascii=False).encode()  # JSON can spell half a character; UTF-8 cannot.
    except (ValueError, RecursionError) as error:
        raise BundleInvalid(f"{where}: expected JSON in UTF-8, found: {error}") from error
    if not isinstance(data, dict):
        raise BundleInvalid(f"{where}: expected a JSON object, found {type(data).__name__}")
    if data.get("format") != FORMAT:
        found = data.get("format")
        raise BundleInvalid(f"{where}: expected format {FORMAT}, found {found!r}: written by another EFM")
    faults = [f"unknown key '{key}'{nearest(key, _FIELDS)}" for key in data if key not in _FIELDS]
    faults += [f"the key '{key}' is missing" for key in _FIELDS if key not in data]
    faults = faults or list(_type_faults(data)) or list(_faults(data))
    if faults:
        raise BundleInvalid(f"{where}: " + "; ".join(faults))
    return BundleManifest(**data)


def file_faults(table: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with a table of files: name -> {"size", "sha256"}."""
    for name, entry in table.items():
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            yield f"files: '{name}' is no name for a file of a bundle"
        elif not name.endswith(ALLOWED_SUFFIXES):
            yield f"files: '{name}' has a format that is refused; allowed are {', '.join(ALLOWED_SUFFIXES)}"
        if not (
            isinstance(entry, dict)
            and entry.keys() == {"size", "sha256"}
            and type(entry["size"]) is int
            and entry["size"] >= 0
            and isinstance(entry["sha256"], str)
            and _SHA256.fullmatch(entry["sha256"])
        ):
            yield f"files.{name}: expected {{'size': bytes, 'sha256': 64 hex digits}}, found {entry!r:.100}"


def leaves(value: Any, key: str = "") -> dict[str, Any]:
    """Returns the scalars of nested plain data by their keys, such as cameras[0].width."""
    if isinstance(value, Mapping):
        pairs = [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = [(f"{key}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {key: value}
    return {name: leaf for path, item in pairs for name, leaf in leaves(item, path).items()}


_FIELDS = tuple(item.name for item in dataclasses.fields(BundleManifest))
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("kind", "combine", "git_revision"), (str,)),
    **dict.fromkeys(("opset", "heads", "version", "success_hold", "format"), (int,)),
    **dict.fromkeys(("embodiment", "inputs", "outputs", "instruction", "backbone"), (dict,)),
    **dict.fromkeys(("training", "validation", "parity", "files"), (dict,)),
    "data_ids": (list,),
    "parent_id": (str, type(None)),
    "success_threshold": (int, float, type(None)),
}
# What their fields in messages hold (uint32, uint16), or more than any model has.
_RANGES = {"opset": (1, 1000), "heads": (1, 1000), "version": (0, 2**32 - 1), "success_hold": (1, 2**16 - 1)}
_GREATEST_THRESHOLD = 1e9


def _type_faults(data: Mapping[str, Any]) -> Iterator[str]:
    for key in _FIELDS:
        if not isinstance(data[key], _TYPES[key]) or isinstance(data[key], bool):
            expected = " or ".join(item.__name__ for item in _TYPES[key])
            yield f"{key}: expected {expected}, found {data[key]!r:.60}"


def _faults(data: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with a manifest whose keys and types are right."""
    kind, threshold, parent = data["kind"], data["success_threshold"], data["parent_id"]
    if kind not in OUTPUTS:
        yield f"kind: expected one of {', '.join(OUTPUTS)}, found '{kind}'{nearest(kind, OUTPUTS)}"
    for name in OUTPUTS.get(kind, ()):
        if name not in data["outputs"]:
            yield f"outputs: a bundle of kind {kind} gives '{name}', found none"
    if not data["inputs"]:
        yield "inputs: expected at least one, found none"
    for table in ("inputs", "outputs"):
        for name, spec in data[table].items():
            if not _is_tensor(spec):
                yield f"{table}.{name}: expected {{'shape': [...], 'dtype': '...'}}, found {spec!r:.80}"
    if data["combine"] not in ("mean", "max"):
        yield f"combine: expected mean or max, found '{data['combine']}'"
    for key, (least, greatest) in _RANGES.items():
        if not least <= data[key] <= greatest:
            yield f"{key}: expected {least} to {greatest}, found {data[key]}"
    if threshold is not None and not 0 <= threshold <= _GREATEST_THRESHOLD:
        yield f"success_threshold: expected 0 to {_GREATEST_THRESHOLD:g} control steps, found {threshold}"
    if parent is not None and not _ID.fullmatch(parent):
        yield f"parent_id: expected 16 hex digits, found '{parent}'"
    for item in data["data_ids"]:
        if not isinstance(item, str):
            yield f"data_ids: expected texts, found {item!r:.60}"
    try:
        Embodiment.from_dict(data["embodiment"], where="embodiment")
    except EmbodimentInvalid as error:
        yield str(error)
    if not data["files"]:
        yield "files: expected at least one, found none"
    yield from file_faults(data["files"])


def _is_tensor(spec: Any) -> bool:
    return (
        isinstance(spec, dict)
        and spec.keys() == {"shape", "dtype"}
        and isinstance(spec["dtype"], str)
        and isinstance(spec["shape"], list)
        and all(type(size) in (int, str) for size in spec["shape"])
    )


def _plain(value: Any, key: str) -> Any:
    """Returns a value as JSON holds it: numpy scalars as numbers, tuples as lists."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str) and not _HALF_CHARACTER.search(value):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{key}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(item, f"{key}.{name}") for name, item in value.items()}
    raise BundleInvalid(f"{key}: expected texts, finite numbers, lists or mappings, found {value!r:.60}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key '{name}' twice")
        result[name] = value
    return result


def _no_constant(word: str) -> Any:
    raise ValueError(f"the number {word}, which JSON does not have")
