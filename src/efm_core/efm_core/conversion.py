"""A bundle in half precision or with 8-bit weights: smaller, faster on some machines, and a little different.

The graph is converted by ONNX Runtime's tools, run beside the original on frames of recorded episodes, and
refused where they disagree too often; what was found stands in the new manifest under `parity`. The bundle
acts and judges as any other, but holds no weights to train: practice goes on from its parent. Weights that
lie beside the graph do so afterwards, too.

- fp16: weights and arithmetic in 16 bits, inputs and outputs as before. For GPUs; a CPU gains nothing.
- int8: weights of matrix products in 8 bits, activations scaled as they come; convolutions stay as they are.
  For CPUs.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from efm_core.bundle import Bundle, write_bundle
from efm_core.episode import list_episodes, observations_of, read_episode
from efm_core.errors import BadRequest, BundleUnusable, EfmError, EpisodeInvalid
from efm_core.external_data import DATA_FILE, MODEL_FILE, WEIGHTS_FILE, check_external_data
from efm_core.files import disk_full_is_told, temporary_folder
from efm_core.observation import Observation
from efm_core.onnx_model import OnnxModel
from efm_core.steps_to_go import StepsToGoBins, combine

PRECISIONS = ("fp16", "int8")
EPISODES_READ = 32  # At most; the frames are spread over them.
BATCH = 64


def convert_bundle(
    bundle: Bundle,
    precision: str,
    episodes: Path | str,
    out_dir: Path | str,
    *,
    frames: int = 256,
    least_agreement: float = 0.9,
) -> Bundle:
    """Writes `out_dir/<id>/` with the same model in lower precision.

    Args:
        bundle: To convert; it becomes the new one's parent.
        precision: One of `PRECISIONS`.
        episodes: Folder of recorded episodes of the bundle's embodiment.
        out_dir: Folder that the new bundle's own folder is made in.
        frames: Observations to compare on, about.
        least_agreement: Least share of action tokens, and of verdicts of success, that must be the same.

    Raises:
        BadRequest: An unknown precision, or numbers out of range.
        EpisodeInvalid: None of the episodes can be used.
        SpoolFull: The disk is full, that of `out_dir` or that of temporary files.
        BundleUnusable: The model cannot be converted, or agrees less than it must.
    """
    if precision not in PRECISIONS or frames < 1 or not 0 <= least_agreement <= 1:
        raise BadRequest(
            f"convert: expected a precision of {', '.join(PRECISIONS)}, 1 or more frames and an agreement in "
            f"[0, 1], found {precision!r}, {frames} and {least_agreement}"
        )
    check_external_data(bundle)
    seen = _frames(bundle, Path(episodes), frames)
    names = bundle.manifest.files.keys() - {MODEL_FILE, DATA_FILE, WEIGHTS_FILE}
    files: dict[str, bytes | Path] = {name: bundle.file(name) for name in names}
    parity = {"source": "episode frames", "samples": len(seen), "precision": precision, "against": bundle.id}
    manifest = dataclasses.replace(bundle.manifest, files={}, parent_id=bundle.id, parity=parity)
    # A folder of its own, so that a bundle which is refused is never to be seen.
    place = Path(tempfile.gettempdir())
    with (
        disk_full_is_told("the conversion (TMPDIR names another place)", place),
        temporary_folder(place, "efm-conversion-", mode=0o700) as folder,
    ):
        files |= _converted(bundle, precision, folder)
        trial = write_bundle(folder / "bundles", manifest, files)
        found = _compared(bundle, trial, seen)
        for name, share in found.items():
            if name.endswith("agreement") and share < least_agreement:
                raise BundleUnusable(
                    f"bundle {bundle.id} as {precision}: {name} is {share:.3f} on {len(seen)} frames, "
                    f"expected at least {least_agreement}; use it as it is, or accept less with "
                    "--least-agreement"
                )
        return write_bundle(out_dir, dataclasses.replace(manifest, parity={**parity, **found}), files)


def _frames(bundle: Bundle, folder: Path, frames: int) -> list[tuple[Observation, str]]:
    """Returns observations with their instructions, spread over the episodes."""
    episodes = list_episodes(folder)
    spread = np.unique(np.linspace(0, max(0, len(episodes) - 1), EPISODES_READ).astype(int))
    chosen = [episodes[index] for index in spread] if episodes else []
    wanted = -(-frames // max(1, len(chosen)))
    found: list[tuple[Observation, str]] = []
    faults: list[str] = []
    for path in chosen:
        try:
            episode = read_episode(path)
            bundle.check_embodiment(episode.embodiment)
        except EfmError as error:
            faults.append(str(error))
            continue
        rows = np.linspace(0, len(episode) - 1, min(wanted, len(episode)))
        for row in np.unique(rows.astype(int)):
            found += [(item, episode.instruction) for item in observations_of(episode, row, row + 1)]
    if not found:
        raise EpisodeInvalid(
            f"{folder}: expected recorded episodes to compare on, found {'; '.join(faults) or 'none'}; "
            "give the folder that the bundle was trained on"
        )
    return found


def _converted(bundle: Bundle, precision: str, folder: Path) -> dict[str, Path]:
    """Writes the ONNX file in lower precision, and what lies beside it; returns the files by name."""
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise BundleUnusable(f"convert: needs the packages onnx and onnxruntime: {error}") from error
    beside = DATA_FILE in bundle.manifest.files
    ready, made = folder / "ready.onnx", folder / MODEL_FILE
    with _quiet_runtime():
        try:
            # Folds constants and infers shapes: weights behind a transposition are found only so.
            quant_pre_process(
                str(bundle.file(MODEL_FILE)),
                str(ready),
                skip_symbolic_shape=True,
                save_as_external_data=beside,
                all_tensors_to_one_file=True,
                external_data_location="ready.onnx.data",
            )
            if precision == "fp16":
                half = convert_float_to_float16(
                    onnx.load(ready), keep_io_types=True, disable_shape_infer=True
                )
                onnx.save(half, made, save_as_external_data=beside, location=DATA_FILE)
            else:
                _forget_shapes_of_weights(ready)
                quantize_dynamic(
                    ready,
                    made,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    use_external_data_format=beside,
                )
        except OSError:
            raise  # The disk is full, or else at fault, not the bundle.
        except Exception as error:  # The tools' own exceptions have no common base but this.
            raise BundleUnusable(
                f"bundle {bundle.id}: cannot be converted to {precision}: {error or type(error).__name__}"
            ) from error
    return {name: folder / name for name in (MODEL_FILE, DATA_FILE) if (folder / name).exists()}


def _forget_shapes_of_weights(file: Path) -> None:
    """Leaves out of an ONNX file what pre-processing noted of weights: it is wrong once the runtime (before
    1.24) has transposed those of Gemm.
    """
    import onnx

    model = onnx.load(file, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [info for info in model.graph.value_info if info.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    onnx.save(model, file)


@contextmanager
def _quiet_runtime() -> Iterator[None]:
    """Keeps the runtime's remarks about its optimiser away from the user; errors still show."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)


def _compared(first: Bundle, second: Bundle, seen: Sequence[tuple[Observation, str]]) -> dict[str, Any]:
    """Returns how often, and how far, two bundles differ."""
    models = OnnxModel(first), OnnxModel(second)
    pieces = [seen[start : start + BATCH] for start in range(0, len(seen), BATCH)]
    results = [
        [model.run([item for item, _ in piece], [text for _, text in piece]) for piece in pieces]
        for model in models
    ]
    found: dict[str, Any] = {}
    if results[0][0].action_logits is not None:
        mine, other = (np.concatenate([r.action_logits for r in each]).argmax(-1) for each in results)
        found["action_agreement"] = float((mine == other).mean())
    if results[0][0].steps_to_go_logits is not None:
        steps = first.embodiment.steps_to_go
        bins = StepsToGoBins(steps.bins, steps.width)
        logits = [np.concatenate([r.steps_to_go_logits for r in each]) for each in results]
        d, other_d = (combine(item, first.manifest.combine, bins)[0] for item in logits)
        found["steps_to_go_difference"] = {
            "mean": float(np.abs(d - other_d).mean()),
            "greatest": float(np.abs(d - other_d).max()),
        }
        threshold = first.manifest.success_threshold
        if threshold is not None:
            found["success_agreement"] = float(((d <= threshold) == (other_d <= threshold)).mean())
    return found
