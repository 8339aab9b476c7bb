"""Stage 1, supervised fine-tuning: demonstrations in, a policy bundle and a reward bundle out.

`main(config)` reads top to bottom: episodes, training, calibration of the success detector, export. Practice
(stage 2) is in `practice.py`; the command line in `sft_command.py`.
"""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efm_core.bundle import Bundle
from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.files import replace_json
from efm_learner.calibrate import calibrate
from efm_learner.dataset import load_tables
from efm_learner.export import export_bundle
from efm_learner.network import Network, input_specs
from efm_learner.run_folder import owned
from efm_learner.samples import StepTable
from efm_learner.sft_config import SFT, SftConfig
from efm_learner.training import POLICY, REWARD, Trained, train

PARITY_FRAMES = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SftResult:
    """Two bundles and the calibration's report."""

    policy: Bundle
    reward: Bundle
    report: dict[str, Any]


def main(config: SftConfig) -> SftResult | None:
    """Trains on a folder of episodes and writes two bundles to `<out>/bundles/`; `result.json` names them.

    Run again with the same settings, it goes on from the last checkpoint.

    Returns:
        The result; None in all processes of a distributed training but the first.

    Raises:
        Interrupted: SIGTERM or SIGINT came; a checkpoint was saved.
        SpoolLocked: Another training has the same folder.
    """
    embodiment, out = load_embodiment(config.embodiment), Path(config.out)
    first = int(os.environ.get("RANK", "0")) == 0
    # Before the minutes that decoding can take.
    with owned(out) if first else nullcontext():
        tables = load_tables(
            Path(config.episodes),
            embodiment,
            config.labelling,
            validation_share=config.validation_share,
            seed=config.seed,
            cache=Path(config.cache) if config.cache else None,
        )
        _log.info("%s", tables.description())
        trained = train(config, embodiment, tables.training, tables.held_out, out)
        if trained.samples_per_second:
            _log.info("%.0f rows of batches per second", trained.samples_per_second)
        if not first:
            return None
        return export(config, embodiment, trained, tables.training, tables.held_out, out)


def export(
    config: SftConfig,
    embodiment: Embodiment,
    trained: Trained,
    table: StepTable,
    held_out: StepTable | None,
    out: Path,
) -> SftResult:
    """Calibrates the reward on held-out episodes and writes both bundles.

    Without held-out episodes the reward bundle has no success threshold, and says so.
    """
    report: dict[str, Any] = {}
    detector: dict[str, Any] = {"threshold": None, "hold": 1}
    if held_out is not None and held_out.success.any():
        report = calibrate(trained.reward, held_out, config.combine, config.calibration)
        detector = report["detector"]
    best = trained.state.best
    common: dict[str, Any] = {
        "parity_batch": parity_frames(trained.policy, table if held_out is None else held_out),
        "training": {"stage": SFT, **config.lasting()},
        "data_ids": sorted(table.episode_ids),
    }
    policy = export_bundle(
        trained.policy,
        embodiment,
        out / "bundles",
        POLICY,
        validation={"chosen": best[POLICY]},
        **common,
    )
    reward = export_bundle(
        trained.reward,
        embodiment,
        out / "bundles",
        REWARD,
        combine=config.combine,
        validation={"chosen": best[REWARD], "calibration": report},
        success_threshold=detector["threshold"],
        success_hold=int(detector["hold"]),
        **common,
    )
    summary = {"policy": policy.id, "reward": reward.id, "calibration": report}
    replace_json(out / "result.json", summary)
    return SftResult(policy, reward, report)


def parity_frames(network: Network, table: StepTable) -> dict[str, torch.Tensor]:
    """Returns inputs made of real frames, spread over a table."""
    rows = np.unique(np.linspace(0, len(table) - 1, PARITY_FRAMES).astype(np.int64))
    return table.inputs(rows, network.embodiment, tuple(input_specs(network)), network.instruction)
