"""Writes a valid bundle of an untrained network: for tests of everything that runs models, and for dry runs.

It acts and judges at random, and says so in its manifest.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from efm_core.bundle import Bundle
from efm_core.embodiment import Embodiment
from efm_learner.export import OnnxExporter, export_bundle
from efm_learner.network import build_network


def write_random_bundle(
    embodiment: Embodiment,
    out_dir: Path | str,
    kind: str = "both",
    seed: int = 0,
    backbone: str = "state",
    *,
    heads: int = 1,
    success_threshold: float | None = 2.0,
    success_hold: int = 2,
    settings: dict[str, Any] | None = None,
) -> Bundle:
    """Writes `out_dir/<id>/`.

    Args:
        embodiment: What the bundle is for.
        out_dir: Folder that the bundle's own folder is made in.
        kind: "policy", "reward" or "both".
        seed: Decides the weights; other seeds give other ids.
        backbone: "state" or "small".
        heads: Steps-to-go heads.
        success_threshold: s, in control steps; None leaves it open.
        success_hold: Observations at or below s that make a success.
        settings: Further settings of the backbone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(embodiment, {"name": backbone, **(settings or {})}, heads)
    return export_bundle(
        network.eval(),
        embodiment,
        out_dir,
        kind,
        exporter=_exporter(kind),
        training={"untrained": True, "seed": seed},
        success_threshold=None if kind == "policy" else success_threshold,
        success_hold=success_hold,
    )


@functools.cache
def _exporter(kind: str) -> OnnxExporter:
    """Traces an architecture once, however many bundles of it are wanted."""
    return OnnxExporter(kind)
