"""The parameters of the episode node, and what they mean for runner and recorder."""

from __future__ import annotations

import dataclasses

from efm_core.embodiment import Embodiment
from efm_core.summary import Mode
from efm_episode_node.episode_watch import WatchLimits
from efm_episode_node.ports import RunnerSettings
from efm_episode_node.recorder import RecorderSettings
from efm_episode_node.run_types import ACTORS
from efm_ros.lifecycle import NodeParameters
from efm_ros.parameters import param

MODES = {"collect": Mode.COLLECT, "practice": Mode.PRACTICE, "evaluate": Mode.EVALUATE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeParameters(NodeParameters):
    """Parameters of the node."""

    embodiment: str = param(description="Embodiment, by name or path.")
    spool: str = param("spool", description="Folder for recorded episodes; no other node may have the same.")
    quota_bytes: int = param(8 << 30, low=1, unit="bytes", description="What the spool may hold.")
    learner: str = param(
        "/learner", description="Namespace of the learner that gets the episodes. Empty: none does."
    )
    learner_timeout_s: float = param(
        60.0,
        low=0.0,
        unit="s",
        description="Longest wait for the learner, and for its policy, before a first episode of practice.",
    )
    mode: str = param(
        "collect",
        choices=tuple(MODES),
        description="What the robot is there for: mode of the runs that episodes/start and autorun begin.",
    )
    autorun: bool = param(
        False, description="Begin a run at activation, and again whenever it ended with an error."
    )
    episodes: int = param(0, low=0, description="Episodes of such a run. 0: until it is stopped.")
    instructions: tuple[str, ...] = param(
        (), description="Instructions to draw from where a goal names none. Empty: the reset chooses."
    )
    max_steps: int = param(
        0, low=0, unit="control steps", description="Greatest length of an episode. 0: the embodiment's."
    )
    actor: str = param(
        "",
        choices=("", *ACTORS),
        description="Who acts in COLLECT. Empty: the expert of a simulated world, else the policy.",
    )
    reset: str = param(
        "",
        description="How scenes are reset: service, person, trajectory, policy, none. Empty: embodiment's.",
    )
    reset_instruction: str = param("", description="What the policy is asked for by reset 'policy'.")
    reset_timeout_s: float = param(15.0, low=0.1, unit="s", description="Longest reset by a machine.")
    person_timeout_s: float = param(
        3600.0, low=1.0, unit="s", description="Longest wait for a person's reset."
    )
    dry_run: str = param(
        "auto",
        choices=("auto", "true", "false"),
        description="A reset by trajectory moves nothing. auto: as the embodiment says.",
    )
    ready_timeout_s: float = param(
        60.0, low=0.0, unit="s", description="Longest wait for nodes and topics before an episode."
    )
    stall_timeout_s: float = param(
        15.0,
        low=0.1,
        unit="s",
        description="Silence of the actor or the reward node ends an episode as a fault.",
    )
    settle_timeout_s: float = param(
        10.0, low=0.1, unit="s", description="Longest wait for the last observation and its judgement."
    )
    instant_limit: int = param(
        3, low=1, description="Practice pauses after so many successes in a row right after the reset."
    )
    fault_limit: int = param(5, low=1, description="A run ends after so many faults in a row.")
    image_format: str = param(
        "auto",
        choices=("auto", "png", "jpeg"),
        description="Of recorded images. auto: png up to 128 x 128 pixels, else jpeg.",
    )
    jpeg_quality: int = param(90, low=1, high=100, description="Of recorded JPEG images.")

    def runner_settings(self) -> RunnerSettings:
        """Returns the limits of the runner."""
        return RunnerSettings(
            ready_s=self.ready_timeout_s,
            instant_limit=self.instant_limit,
            fault_limit=self.fault_limit,
            watch=WatchLimits(self.stall_timeout_s, self.settle_timeout_s),
        )

    def recorder_settings(self) -> RecorderSettings:
        """Returns how episodes are written."""
        return RecorderSettings(self.image_format, self.jpeg_quality)

    def is_dry_run(self, embodiment: Embodiment) -> bool:
        """Returns whether resets may move the robot."""
        return embodiment.dry_run if self.dry_run == "auto" else self.dry_run == "true"
