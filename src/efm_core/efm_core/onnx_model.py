"""Runs the model of a bundle with ONNX Runtime: observations of several robots in, logits out, in one go.

What the graph takes and gives is compared with the bundle's embodiment when it is loaded, and every output is
checked to be finite: a model that passes here can be trusted to have the right shapes, not to be any good.
One path serves CPU and GPU. Sampling, bins and rewards are elsewhere; onnxruntime is imported when a model is
made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from efm_core.action_tokens import ActionTokenizer
from efm_core.bundle import Bundle
from efm_core.embodiment import Embodiment
from efm_core.errors import BundleUnusable, ObservationInvalid, nearest
from efm_core.external_data import MODEL_FILE, check_external_data
from efm_core.instruction import encode_instruction
from efm_core.manifest import OUTPUTS
from efm_core.observation import Observation

FloatArray = npt.NDArray[np.float32]

IMAGE_INPUT = "observation.images."
STATE_INPUT = "observation.state"
INSTRUCTION_INPUT = "instruction"
ACTION_OUTPUT = "action_logits"
STEPS_TO_GO_OUTPUT = "steps_to_go_logits"

# What can run a model, and its name in ONNX Runtime; best first.
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
# Encoded instructions that are remembered; a robot asks for the same few again and again.
INSTRUCTIONS_KEPT = 1024
# Batch sizes whose buffers are kept; a node has few, a learner's last batch of an episode can have any.
BATCH_SIZES_KEPT = 16


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """What a model says of B observations; None for what its bundle does not give.

    Attributes:
        action_logits: float32 [B, C, D, max_bins].
        steps_to_go_logits: float32 [B, E, K].
    """

    action_logits: FloatArray | None
    steps_to_go_logits: FloatArray | None


@dataclass(frozen=True)
class _Tensor:
    """An input or output: its dtype and its shape without the batch axis."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {['B', *self.shape]}".replace("'", "")


class OnnxModel:
    """A loaded model. Used by one thread at a time.

    Args:
        bundle: verified by `load_bundle`.
        provider: one of `PROVIDERS`, which is an error where it does not come up; what it cannot run of the
            model, those after it do. "auto": the best that comes up; `passed_over` names better ones.
        threads: cores for one inference on the CPU.

    Attributes:
        passed_over: better providers, in ONNX Runtime's names, that are installed and did not come up.

    Raises:
        BundleUnusable: the model does not load, or its inputs and outputs do not fit the bundle's embodiment.
        BundleInvalid: the model takes weights from a file that the bundle does not list.
    """

    def __init__(self, bundle: Bundle, provider: str = "auto", threads: int = 1) -> None:
        self._bundle = bundle
        self._where = f"bundle {bundle.id}, {MODEL_FILE}"
        self._runtime, self._session, self.passed_over = _open(bundle, self._where, provider, threads)
        self._encoded: dict[str, npt.NDArray[np.int64]] = {}
        embodiment = bundle.embodiment
        length = len(self._encode("")) if bundle.manifest.instruction else 0
        self._inputs = self._checked(
            "input", self._session.get_inputs(), _inputs_of(embodiment, length), bundle.manifest.inputs
        )
        outputs = _outputs_of(embodiment, bundle.manifest.heads)
        wanted = OUTPUTS[bundle.manifest.kind]
        self._outputs = self._checked("output", self._session.get_outputs(), outputs, wanted)
        self._buffers: dict[int, dict[str, npt.NDArray[Any]]] = {}
        self._bindings: dict[int, Any] = {}
        self._device_values: dict[int, dict[str, Any]] = {}

    @property
    def provider(self) -> str:
        """What runs the model, for example CPUExecutionProvider."""
        return str(self._session.get_providers()[0])

    def warm_up(self, batch: int) -> None:
        """Runs the model once on noise, so that the first real inference of this batch size is a fast one.

        Raises:
            BundleUnusable: the outputs have the wrong shape or are not finite.
        """
        _check_batch(batch)
        rng = np.random.default_rng(0)
        for name, buffer in self._buffers_of(batch).items():
            if buffer.dtype == np.uint8:
                buffer[:] = rng.integers(0, 256, size=buffer.shape, dtype=np.uint8)
            else:
                buffer[:] = self._encode("") if name == INSTRUCTION_INPUT else 0
        self._infer(batch)

    def run(self, observations: Sequence[Observation], instructions: Sequence[str]) -> ModelOutput:
        """Runs the model once for all observations.

        Args:
            observations: B of them, at least one, each as `ObservationAssembler` hands them out.
            instructions: one for each.

        Returns:
            The logits; the arrays are the caller's.

        Raises:
            ObservationInvalid: an observation lacks an input or has a wrong shape; says which.
            BadRequest: an instruction is too long for the model.
            BundleUnusable: an output has the wrong shape or is not finite.
        """
        batch = len(observations)
        _check_batch(batch)
        if len(instructions) != batch:
            raise ValueError(
                f"expected one instruction for each of {batch} observations, found {len(instructions)}"
            )
        for name, buffer in self._buffers_of(batch).items():
            for row, observation in enumerate(observations):
                if name == INSTRUCTION_INPUT:
                    buffer[row] = self._encode(instructions[row])
                else:
                    buffer[row] = self._value(name, observation, row)
        return self._infer(batch)

    def _value(self, name: str, observation: Observation, row: int) -> npt.NDArray[Any]:
        """Returns one observation's value of an input, checked."""
        value: npt.NDArray[Any] | None
        if name == STATE_INPUT:
            value = observation.state
        else:
            value = observation.images.get(name.removeprefix(IMAGE_INPUT))
        expected = self._inputs[name]
        if value is None:
            raise ObservationInvalid(f"observation {row} of the batch: expected '{name}', found none")
        if value.shape != expected.shape or value.dtype != expected.dtype:
            found = f"{value.dtype} {list(value.shape)}"
            raise ObservationInvalid(
                f"observation {row} of the batch: expected '{name}' of {expected.dtype} "
                f"{list(expected.shape)}, found {found}"
            )
        if name == STATE_INPUT and not np.isfinite(value).all():
            raise ObservationInvalid(
                f"observation {row} of the batch: '{name}' is not finite: {value.tolist()}"
            )
        return value

    def _encode(self, text: str) -> npt.NDArray[np.int64]:
        encoded = self._encoded.get(text)
        if encoded is None:
            encoded = encode_instruction(text, self._bundle.manifest.instruction, self._bundle.path)
            if len(self._encoded) >= INSTRUCTIONS_KEPT:
                self._encoded.clear()
            self._encoded[text] = encoded
        return encoded

    def _buffers_of(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        """Returns the input arrays [B, ...] of a batch size, with the binding that reads them made once."""
        if batch in self._buffers:
            return self._buffers[batch]
        if len(self._buffers) >= BATCH_SIZES_KEPT:
            oldest = next(iter(self._buffers))
            for kept in (self._buffers, self._bindings, self._device_values):
                kept.pop(oldest)
        device = "cpu" if self.provider == "CPUExecutionProvider" else "cuda"
        buffers = {
            name: np.zeros((batch, *tensor.shape), tensor.dtype) for name, tensor in self._inputs.items()
        }
        # On the CPU a value is a view of its buffer; on a GPU it is memory of the device, updated in place.
        make = self._runtime.OrtValue.ortvalue_from_numpy
        values = {name: make(buffer, device, 0) for name, buffer in buffers.items()}
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        self._buffers[batch], self._bindings[batch] = buffers, binding
        self._device_values[batch] = {} if device == "cpu" else values
        return buffers

    def _infer(self, batch: int) -> ModelOutput:
        binding = self._bindings[batch]
        try:
            for name, value in self._device_values[batch].items():
                value.update_inplace(self._buffers[batch][name])
            for name in self._outputs:
                # Bound anew each time, or the runtime writes into the arrays that it gave out before.
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            arrays = dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))
        except Exception as error:  # The runtime's own exceptions have no common base but this.
            raise BundleUnusable(f"{self._where}: does not run on {self.provider}: {_line(error)}") from error
        for name, array in arrays.items():
            self._check_output(name, array, batch)
        return ModelOutput(arrays.get(ACTION_OUTPUT), arrays.get(STEPS_TO_GO_OUTPUT))

    def _check_output(self, name: str, array: npt.NDArray[Any], batch: int) -> None:
        expected = self._outputs[name]
        if array.shape != (batch, *expected.shape) or array.dtype != expected.dtype:
            found = f"{array.dtype} {list(array.shape)}"
            raise BundleUnusable(
                f"{self._where}: output '{name}': expected {expected} with B {batch}, found {found}"
            )
        finite = np.isfinite(array)
        if not finite.all():
            rows = sorted({int(index) for index in np.argwhere(~finite)[:, 0]})
            raise BundleUnusable(
                f"{self._where}: output '{name}': expected finite numbers, found NaN or infinity for "
                f"observations {rows} of {batch}; go back to the bundle before"
            )

    def _checked(
        self,
        what: str,
        found: Sequence[Any],
        known: dict[str, _Tensor],
        wanted: Sequence[str] | dict[str, Any],
    ) -> dict[str, _Tensor]:
        """Compares the graph's inputs or outputs with those that the embodiment makes possible."""
        graph = {item.name: item for item in found}
        faults = [f"lacks the {what} '{name}' of its manifest" for name in wanted if name not in graph]
        for name, item in graph.items():
            if name not in known:
                # An output that nobody reads does no harm; an input must be fed.
                if what == "input":
                    near = nearest(name, known) or f"; an observation has {list(known)}"
                    faults.append(f"wants the input '{name}'{near}")
                continue
            dtype = _DTYPES.get(item.type, item.type)
            sizes = list(item.shape)
            if isinstance(sizes[0] if sizes else 0, int):
                faults.append(f"{what} '{name}': expected a free first axis for the batch, found {sizes}")
            elif dtype != known[name].dtype or not _fits(sizes[1:], known[name].shape):
                faults.append(f"{what} '{name}': expected {known[name]}, found {dtype} {sizes}")
        if faults:
            raise BundleUnusable(f"{self._where}: {'; '.join(faults)}; export it again for this embodiment")
        return {name: known[name] for name in graph if name in known}


_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int64)": "int64"}


def _inputs_of(embodiment: Embodiment, instruction_length: int) -> dict[str, _Tensor]:
    """Returns all inputs that an observation of the embodiment can feed."""
    inputs = {
        IMAGE_INPUT + camera.name: _Tensor("uint8", (camera.frames, camera.height, camera.width, 3))
        for camera in embodiment.cameras
    }
    if embodiment.state is not None:
        inputs[STATE_INPUT] = _Tensor("float32", (embodiment.state_size,))
    if instruction_length:
        inputs[INSTRUCTION_INPUT] = _Tensor("int64", (instruction_length,))
    return inputs


def _outputs_of(embodiment: Embodiment, heads: int) -> dict[str, _Tensor]:
    tokenizer = ActionTokenizer(embodiment.action)
    action = (embodiment.action.chunk, embodiment.action_size, tokenizer.max_bins)
    return {
        ACTION_OUTPUT: _Tensor("float32", action),
        STEPS_TO_GO_OUTPUT: _Tensor("float32", (heads, embodiment.steps_to_go.bins)),
    }


def _fits(sizes: Sequence[Any], expected: tuple[int, ...]) -> bool:
    """Whether a graph's axes are the expected ones; a named axis may have any size."""
    return len(sizes) == len(expected) and all(
        not isinstance(size, int) or size == want for size, want in zip(sizes, expected, strict=True)
    )


def _open(bundle: Bundle, where: str, provider: str, threads: int) -> tuple[Any, Any, tuple[str, ...]]:
    """Returns the module onnxruntime, a session of the model, and the providers that were passed over."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BundleUnusable(f"{where}: needs the package onnxruntime; pip install onnxruntime") from error
    if threads < 1:
        raise ValueError(f"threads: expected at least 1, found {threads}")
    available = onnxruntime.get_available_providers()
    known = list(PROVIDERS.values())
    first = 0 if provider == "auto" else list(PROVIDERS).index(provider)
    if provider != "auto" and known[first] not in available:
        raise BundleUnusable(
            f"{where}: expected the provider {known[first]}, found {', '.join(available)} on this machine"
        )
    chosen = [name for name in known[first:] if name in available]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads sleep: a robot's cores are needed by others between two control ticks.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    check_external_data(bundle)
    path = bundle.file(MODEL_FILE)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:  # The runtime's own exceptions have no common base but this.
        raise BundleUnusable(f"{where}: does not load: {_line(error)}") from error
    runs_on = session.get_providers()[0]
    if provider != "auto" and runs_on != chosen[0]:
        raise BundleUnusable(
            f"{where}: expected to run on {chosen[0]}, found {runs_on}; is the driver installed?"
        )
    return onnxruntime, session, tuple(chosen[: chosen.index(runs_on)])


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise ValueError(f"batch: expected at least one observation, found {batch}")


def _line(error: Exception) -> str:
    """Returns the first line of an error, which is the one for people."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
