"""Parameters of the reward node; `config/reward.yaml` holds what is tuned, arguments hold where and what."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from efm_core.errors import BadRequest
from efm_core.onnx_model import PROVIDERS
from efm_ros.lifecycle import NodeParameters
from efm_ros.parameters import param


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardParameters(NodeParameters):
    """See the description of each."""

    robots: tuple[str, ...] = param(
        ("",), description="Namespaces of the robots judged together; '' is the node's own namespace."
    )
    embodiment: str = param(description="Embodiment of the robots, by name or path.")
    bundle: str = param(
        "",
        description="Folder of the reward bundle. Empty: take the learner's. Set later: swapped in.",
        read_only=False,
    )
    bundle_dir: str = param("", description="Where fetched bundles are kept. Empty: ~/.cache/efm/bundles.")
    keep_bundles: int = param(3, low=1, description="Fetched bundles that stay there.")
    learner: str = param("/learner", description="Namespace of the learner.")
    follow_models: bool = param(
        False,
        description="Take every reward bundle that the learner announces. False: only a first one, where "
        "none is given, so that the reward stays the same during practice.",
    )
    threshold: float = param(
        -1.0, low=-1.0, unit="control steps", description="Success threshold s. Negative: the bundle's."
    )
    hold: int = param(
        0,
        low=0,
        high=1000,
        description="Observations in a row at or below s that make a success. 0: as the bundle says.",
    )
    lockstep: bool = param(
        False, description="Judge every observation, in order. False: the newest one, at the control rate."
    )
    queue: int = param(
        256,
        low=1,
        high=100_000,
        description="Observations of a robot that may wait in lockstep; with one more the oldest goes.",
    )
    live: bool = param(
        True, description="Judge robots while they act. False: only label recorded episodes, on request."
    )
    provider: str = param(
        "auto", choices=("auto", *PROVIDERS), description="What runs the model; auto: the best there is."
    )
    threads: int = param(1, low=1, high=256, description="Cores of one inference on the CPU.")

    def __post_init__(self) -> None:
        """Checks what belongs together; raises BadRequest."""
        if not self.robots or len(set(self.robots)) != len(self.robots):
            raise BadRequest(
                f"robots: expected at least one and each once, found {list(self.robots)}; [''] is one robot"
            )
        if not self.bundle and not self.learner:
            raise BadRequest("expected a bundle, or a learner that announces one; found neither")

    @property
    def bundle_folder(self) -> Path:
        """Where fetched bundles are kept."""
        if self.bundle_dir:
            return Path(os.path.expanduser(self.bundle_dir))
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "efm" / "bundles"
