"""Weights beside an ONNX file: where a graph may take them from.

One ONNX file is one message of protobuf, which ends at 2 GiB. A larger graph names a second file, and for
every weight the place in it. Such a name could lead anywhere on the disk, so it is compared with the bundle's
manifest before the graph is opened. Who writes such files, and who reads them, is elsewhere.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efm_core.bundle import Bundle
from efm_core.errors import BundleInvalid, BundleUnusable

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
# The same weights by their names, for those who train on.
WEIGHTS_FILE = "model.safetensors"

# Weights up to this lie in the ONNX file itself; the rest of its 2 GiB is for the graph.
ONE_FILE_BYTES = 2_000_000_000


def check_external_data(bundle: Bundle) -> None:
    """Does nothing where the graph takes its weights from itself, or from files that the manifest lists.

    Raises:
        BundleInvalid: it takes some from elsewhere; names it.
        BundleUnusable: the graph cannot be read.
    """
    path = bundle.file(MODEL_FILE)
    allowed = {name for name in bundle.manifest.files if name.endswith(".data")}
    if foreign := sorted(_locations(path) - allowed):
        listed = ", ".join(sorted(allowed)) or "none"
        raise BundleInvalid(
            f"bundle {bundle.id}, {MODEL_FILE}: takes weights from {', '.join(map(repr, foreign))}; expected "
            f"files of weights that its manifest lists ({listed}); do not use it, and ask who made it"
        )


def _locations(path: Path) -> set[str]:
    """Returns the names of the files that a graph takes tensors from."""
    # Every reference spells this key; most graphs have none, and need not be parsed.
    with path.open("rb") as file:
        if not path.stat().st_size:
            return set()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"location") < 0:
                return set()
    try:
        import onnx
    except ImportError as error:
        raise BundleUnusable(f"{path}: weights beside the graph need the package onnx: {error}") from error
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # The reader of protobuf has exceptions of its own in every version.
        raise BundleUnusable(f"{path}: expected an ONNX file, found none: {error}") from error
    entries = (entry for tensor in _tensors(model, onnx.TensorProto) for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def _tensors(message: Any, wanted: type) -> Iterator[Any]:
    """Yields the tensors of a graph wherever they are: weights, constants, graphs in graphs, functions."""
    if isinstance(message, wanted):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(item, wanted)
