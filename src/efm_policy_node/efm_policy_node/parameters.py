"""Parameters of the policy node; `config/policy.yaml` holds what is tuned, arguments hold where and what."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from efm_core.errors import BadRequest
from efm_core.onnx_model import PROVIDERS
from efm_ros.lifecycle import NodeParameters
from efm_ros.parameters import param


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyParameters(NodeParameters):
    """See the description of each."""

    robots: tuple[str, ...] = param(
        ("",), description="Namespaces of the robots served together; '' is the node's own namespace."
    )
    embodiment: str = param(description="Embodiment of the robots, by name or path.")
    bundle: str = param(
        "",
        description="Folder of the policy bundle. Empty: wait for the learner's. Set later: swapped in.",
        read_only=False,
    )
    bundle_dir: str = param("", description="Where fetched bundles are kept. Empty: ~/.cache/efm/bundles.")
    keep_bundles: int = param(3, low=1, description="Fetched bundles that stay there.")
    learner: str = param("/learner", description="Namespace of the learner.")
    follow_models: bool = param(True, description="Take the policies that the learner announces.")
    lockstep: bool = param(
        False, description="Answer every observation at once: the world waits for it. False: control rate."
    )
    temperature: float = param(
        1.0, low=0.0, high=100.0, read_only=False, description="Sampling where a goal names none; 0: greedy."
    )
    seed: int = param(0, low=0, description="Seed of the seeds that goals do not name. 0: drawn.")
    dry_run: bool | None = param(
        None, description="Decide and record, but send nothing. Not given: as the embodiment says."
    )
    stage: str = param(
        "full",
        choices=("full", "shadow", "blend"),
        description="shadow: decide beside another commander, send nothing; blend: a share of the policy.",
    )
    blend: float = param(
        0.3,
        low=0.0,
        high=1.0,
        description="Share of the policy in stage blend; the rest holds still or steers.",
    )
    infer_ahead: int = param(
        0, low=0, high=1000, unit="control steps", description="Infer so long before a chunk is used up."
    )
    stale_end: float = param(
        10.0,
        low=0.1,
        high=3600.0,
        unit="s",
        description="End an act whose input, or whose inference, keeps it waiting for so long.",
    )
    human_timeout: float = param(
        0.5,
        low=0.05,
        high=60.0,
        unit="s",
        description="A person's command holds for so long, then stillness.",
    )
    release_ramp: float = param(
        0.5, low=0.0, high=60.0, unit="s", description="The policy comes in gradually after a takeover."
    )
    allow_second_commander: bool = param(
        False, description="Act although another node publishes on the command topic."
    )
    known_commanders: tuple[str, ...] = param(
        ("teleop", "sim"),
        description="Names of nodes that may publish commands, since they wait for their turn.",
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
        if not self.bundle and not (self.follow_models and self.learner):
            raise BadRequest(
                "expected a bundle, or follow_models with a learner; found neither: nothing could act"
            )

    @property
    def bundle_folder(self) -> Path:
        """Where fetched bundles are kept."""
        if self.bundle_dir:
            return Path(os.path.expanduser(self.bundle_dir))
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "efm" / "bundles"
