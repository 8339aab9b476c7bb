"""Network -> ONNX -> bundle.

An architecture is traced once (seconds); later exports of the same architecture only replace the weights in
the graph, whose initialisers carry the names of the state dict (milliseconds). Weights that are too large for
one ONNX file lie beside it. Every export is compared with torch on the frames that it is given and refused
beyond `PARITY_LIMIT`. Training lives elsewhere.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from efm_core.bundle import PARTIAL, Bundle, load_bundle, write_bundle
from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest, BundleInvalid, BundleUnusable
from efm_core.external_data import DATA_FILE, MODEL_FILE, ONE_FILE_BYTES, WEIGHTS_FILE
from efm_core.files import disk_full_is_told, temporary_folder
from efm_core.manifest import OUTPUTS as OUTPUTS_OF_KIND
from efm_core.manifest import BundleManifest
from efm_learner.backbones.adapters import merged
from efm_learner.network import (
    ACTION_LOGITS,
    BATCH,
    NO_BIN,
    STEPS_TO_GO_LOGITS,
    EfmNetwork,
    Network,
    build_network,
    input_specs,
    random_batch,
)

PARITY_LIMIT = 1e-4
# Weights beside the graph begin at a page, so that the runtime can map them.
PAGE_BYTES = 4096


class _Graph(nn.Module):
    """The network with positional inputs and outputs, as the tracer wants it."""

    def __init__(self, network: Network, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = self.network(dict(zip(self.inputs, values, strict=True)), self.outputs)
        return tuple(results[name] for name in self.outputs)


class OnnxExporter:
    """Exports networks of one architecture, the first time by tracing and then by replacing weights.

    Args:
        kind: "policy", "reward" or "both": decides the outputs of the graph. A graph holds only what its
            outputs need.
    """

    def __init__(self, kind: str) -> None:
        if kind not in OUTPUTS_OF_KIND:
            raise BadRequest(f"export: expected a kind of {', '.join(OUTPUTS_OF_KIND)}, found {kind!r}")
        self.kind = kind
        self.outputs = OUTPUTS_OF_KIND[kind]
        self._architecture = ""
        self._model = onnx.ModelProto()
        self._weights: dict[str, onnx.TensorProto] = {}

    def prepare(self, network: Network) -> Network:
        """Traces a network if it must; returns it with the adapters merged into the layers."""
        architecture = architecture_of(network)
        network = merged(network)
        if architecture != self._architecture:
            self._model = _trace(network, self.outputs)
            names = network.state_dict().keys()
            self._weights = {w.name: w for w in self._model.graph.initializer if w.name in names}
            self._architecture = architecture
        return network

    def export(self, network: Network, folder: Path) -> dict[str, Path]:
        """Writes the ONNX file of a network, with the weights inside or, where they are too large, beside it.

        Args:
            network: To export; adapters are merged into the layers.
            folder: To write into; what is there of an earlier export is replaced.

        Returns:
            The files by name, as `write_bundle` takes them.

        Raises:
            BundleUnusable: A weight is not finite.
        """
        tensors = self.prepare(network).state_dict()
        files = {MODEL_FILE: folder / MODEL_FILE}
        if sum(4 * tensors[name].numel() for name in self._weights) <= ONE_FILE_BYTES:
            for name, target in self._weights.items():
                _put_inside(target, _finite(name, tensors[name]))
        else:
            files[DATA_FILE] = folder / DATA_FILE
            with files[DATA_FILE].open("wb") as data:
                for name, target in self._weights.items():
                    _put_beside(target, _finite(name, tensors[name]), data)
        files[MODEL_FILE].write_bytes(self._model.SerializeToString())
        onnx.checker.check_model(str(files[MODEL_FILE]))
        return files

    @property
    def opset(self) -> int:
        """The opset of the last export."""
        return max(item.version for item in self._model.opset_import if item.domain in ("", "ai.onnx"))


def export_bundle(
    network: Network,
    embodiment: Embodiment,
    out_dir: Path | str,
    kind: str,
    *,
    parity_batch: Mapping[str, torch.Tensor] | None = None,
    exporter: OnnxExporter | None = None,
    **manifest: Any,
) -> Bundle:
    """Writes a bundle of the network.

    Args:
        network: With the weights to export; left in evaluation mode as it was found.
        embodiment: Stored whole; must have the digest of the network's.
        out_dir: Folder that the bundle's own folder is made in.
        kind: "policy", "reward" or "both".
        parity_batch: Inputs made of real frames to compare torch and ONNX Runtime on; None compares on
            random inputs, and the manifest says so.
        exporter: Keep one and hand it in again: the second export is then a matter of milliseconds.
        **manifest: Further fields of `BundleManifest`: combine, parent_id, version, training, data_ids,
            validation, success_threshold, success_hold.

    Raises:
        BundleUnusable: The graph differs from torch by more than `PARITY_LIMIT`, or is not finite.
    """
    if embodiment.digest != network.embodiment.digest:
        raise BadRequest(
            f"export: the network was made for embodiment '{network.embodiment.name}' "
            f"({network.embodiment.digest}), found '{embodiment.name}' ({embodiment.digest})"
        )
    exporter = exporter or OnnxExporter(kind)
    if exporter.kind != kind:
        raise BadRequest(f"export: expected an exporter of kind '{kind}', found '{exporter.kind}'")
    batch = random_batch(network, 8) if parity_batch is None else dict(parity_batch)
    out = Path(out_dir)
    with disk_full_is_told("the bundle", out), temporary_folder(out, PARTIAL) as folder:
        files: dict[str, bytes | Path] = {**exporter.export(network, folder)}
        if isinstance(network, EfmNetwork):
            save_weights(network, folder / WEIGHTS_FILE)
            files[WEIGHTS_FILE] = folder / WEIGHTS_FILE
        instruction = dict(network.instruction)
        if instruction["kind"] == "tokenizer":
            file = Path(instruction["file"])
            files[file.name], instruction["file"] = file, file.name
        parity = {
            "source": "random inputs" if parity_batch is None else "episode frames",
            "samples": len(next(iter(batch.values()))),
            "limit": PARITY_LIMIT,
            "greatest_difference": check_parity(network, folder / MODEL_FILE, batch, exporter.outputs),
        }
        fields: dict[str, Any] = {"git_revision": git_revision(), **manifest}
        return write_bundle(
            out,
            BundleManifest(
                kind=kind,
                embodiment=embodiment.to_dict(),
                inputs=input_specs(network),
                outputs=_output_specs(network, exporter.outputs),
                opset=exporter.opset,
                instruction=instruction,
                backbone=network.backbone_settings,
                heads=network.heads,
                parity=parity,
                **fields,
            ),
            files,
        )


def load_network(bundle: Bundle | Path | str) -> EfmNetwork:
    """Makes the torch network of a bundle, with its weights.

    Raises:
        BundleInvalid: The weights do not fit the architecture that the manifest names.
    """
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle)
    if WEIGHTS_FILE not in bundle.manifest.files:
        raise BundleInvalid(
            f"{bundle.path}: expected {WEIGHTS_FILE}, found none: a bundle that was converted or made of "
            f"others acts and judges, but cannot be trained; take its parent {bundle.manifest.parent_id}"
        )
    network = build_network(bundle.embodiment, bundle.manifest.backbone, bundle.manifest.heads)
    try:
        network.load_state_dict(load_file(bundle.file(WEIGHTS_FILE)))
    except RuntimeError as error:
        raise BundleInvalid(f"{bundle.path}: {WEIGHTS_FILE} does not fit its manifest: {error}") from error
    if network.instruction["kind"] == "tokenizer":
        network.instruction["file"] = str(bundle.file(network.instruction["file"]))
    return network.eval()


def recalibrated(bundle: Bundle, out_dir: Path | str, **manifest: Any) -> Bundle:
    """Writes a bundle with the same model and other manifest fields, for example a new success threshold."""
    files: dict[str, bytes | Path] = {name: bundle.file(name) for name in bundle.manifest.files}
    return write_bundle(out_dir, replace(bundle.manifest, files={}, **manifest), files)


def check_parity(
    network: Network, model: Path, batch: Mapping[str, torch.Tensor], outputs: Sequence[str]
) -> dict[str, float]:
    """Runs torch and ONNX Runtime on the same inputs and returns the greatest difference of each output.

    Raises:
        BundleUnusable: A difference above `PARITY_LIMIT`, or an output that is not finite.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    feeds = {item.name: batch[item.name].numpy() for item in session.get_inputs()}
    found = dict(zip(outputs, session.run(list(outputs), feeds), strict=True))
    was_training = network.training
    network.eval()
    with torch.no_grad():
        expected = network({name: value.to(_device(network)) for name, value in batch.items()}, outputs)
    network.train(was_training)
    differences: dict[str, float] = {}
    for name in outputs:
        mine, other = expected[name].cpu().numpy(), found[name]
        if not (np.isfinite(mine).all() and np.isfinite(other).all()):
            raise BundleUnusable(f"export: the output '{name}' is not finite")
        counts = np.abs(mine - other)[mine > NO_BIN / 2] if name == ACTION_LOGITS else np.abs(mine - other)
        differences[name] = float(counts.max(initial=0.0))
        if differences[name] > PARITY_LIMIT:
            raise BundleUnusable(
                f"export: '{name}' of ONNX Runtime differs from torch by {differences[name]:.2e}, "
                f"expected at most {PARITY_LIMIT:.0e} on {len(mine)} samples"
            )
    return differences


def save_weights(network: Network, path: Path) -> None:
    """Writes the network's state dict as a safetensors file.

    Raises:
        OSError: The disk is full, or else at fault.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # What the system said is found in its words alone.
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


def architecture_of(network: Network) -> str:
    """Returns a text that is equal for networks whose graphs differ in nothing but weights."""
    return json.dumps([network.backbone_settings, network.heads, network.embodiment.digest], sort_keys=True)


@functools.cache
def git_revision() -> str:
    """Returns the revision of the source tree that this module lies in, or "unknown"."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _trace(network: Network, outputs: Sequence[str]) -> onnx.ModelProto:
    """Traces the network and names the initialisers as in its state dict."""
    batch = random_batch(network, 2)
    free = torch.export.Dim(BATCH, min=1, max=65536)
    graph = _Graph(network, list(batch), outputs)
    was_training = network.training
    graph.eval()
    with _quiet_tracer():
        program = torch.onnx.export(
            graph,
            tuple(value.to(_device(network)) for value in batch.values()),
            input_names=list(batch),
            output_names=list(outputs),
            dynamic_shapes=(tuple({0: free} for _ in batch),),
            dynamo=True,
            # The optimiser would fold weights into new constants, which later exports could not replace;
            # ONNX Runtime folds them when it loads the graph.
            optimize=False,
            verbose=False,
        )
    network.train(was_training)
    if program is None:
        raise BundleUnusable("export: the tracer gave no graph")
    # The weights are named, and filled in by every export: a message that held them could be too large.
    weights = network.state_dict()
    used = [
        name for name in weights if program.model.graph.initializers.pop(f"network.{name}", None) is not None
    ]
    model: onnx.ModelProto = program.model_proto
    for name in used:
        model.graph.initializer.add(name=name, dims=weights[name].shape, data_type=onnx.TensorProto.FLOAT)
    names = {f"network.{name}": name for name in used}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    return model


def _finite(name: str, tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    """Returns a weight as the graph has it."""
    value: npt.NDArray[np.float32] = tensor.detach().cpu().float().contiguous().numpy()
    if not np.isfinite(value).all():
        raise BundleUnusable(f"export: the weight '{name}' is not finite; train with a smaller learning rate")
    return value


def _put_inside(target: onnx.TensorProto, value: npt.NDArray[np.float32]) -> None:
    """Writes a weight into the graph."""
    target.ClearField("external_data")
    target.ClearField("data_location")
    target.raw_data = value.tobytes()


def _put_beside(target: onnx.TensorProto, value: npt.NDArray[np.float32], data: IO[bytes]) -> None:
    """Writes a weight to the end of a file, and into the graph where it is."""
    data.write(bytes(-data.tell() % PAGE_BYTES))
    target.ClearField("raw_data")
    target.ClearField("external_data")
    target.data_location = onnx.TensorProto.EXTERNAL
    for key, entry in (("location", DATA_FILE), ("offset", data.tell()), ("length", value.nbytes)):
        target.external_data.add(key=key, value=str(entry))
    data.write(value.reshape(-1).data)


@contextmanager
def _quiet_tracer() -> Iterator[None]:
    """Keeps the tracer's notes about itself away from the user while it works; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _output_specs(network: Network, outputs: Sequence[str]) -> dict[str, dict[str, Any]]:
    shapes = {STEPS_TO_GO_LOGITS: [BATCH, network.heads, network.embodiment.steps_to_go.bins]}
    if isinstance(network, EfmNetwork):
        shapes[ACTION_LOGITS] = [BATCH, network.chunk, network.dimensions, network.max_bins]
    return {name: {"shape": shapes[name], "dtype": "float32"} for name in outputs}


def _device(network: Network) -> torch.device:
    return next(network.parameters()).device
