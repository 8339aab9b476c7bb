"""The reward node: images in, steps-to-go, reward and success out, for one robot or many.

It wires parameters, the model's supply and a service to plain objects: `LiveJudge` judges robots while they
act, `label_episode` a recorded episode on request. Nothing here commands a robot, and nothing that does waits
for it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.service import Service

from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.episode import read_episode
from efm_core.errors import EfmError, Reason, reason_of
from efm_msgs.msg import ModelInfo
from efm_msgs.srv import LabelEpisode
from efm_reward_node.live_judge import LiveJudge, LiveRobot
from efm_reward_node.parameters import RewardParameters
from efm_reward_node.reward_model import RewardModel, label_episode, load_reward
from efm_ros.conversion import ns_to_stamp
from efm_ros.lifecycle import OK, WARN, EfmLifecycleNode
from efm_ros.model_supply import ModelSupply

QUIET_S = 2.0  # An episode that runs without a new judgement for so long is worth a warning.


class RewardNode(EfmLifecycleNode):
    """See the description of the file."""

    Parameters = RewardParameters
    parameters: RewardParameters

    def __init__(self, **options: Any) -> None:
        """Declares the parameters."""
        super().__init__("reward", **options)
        self._embodiment: Embodiment | None = None
        self._supply: ModelSupply[RewardModel] | None = None
        self._live: LiveJudge | None = None
        self._service: Service | None = None

    # Lifecycle

    def acquire(self) -> None:
        """Loads embodiment and model."""
        settings = self.parameters
        self._embodiment = load_embodiment(settings.embodiment)
        self._supply = ModelSupply(
            self,
            settings.robots,
            self._load,
            settings.bundle_folder,
            settings.learner,
            self._embodiment.digest,
            (ModelInfo.KIND_REWARD, ModelInfo.KIND_BOTH),
            self._model_is_ready,
            settings.keep_bundles,
        )
        if settings.bundle:
            self._supply.load_now(Path(settings.bundle).expanduser())
        if settings.follow_models or not settings.bundle:
            self._supply.follow()
        # A group of its own: labelling takes seconds, in which the node still answers everything else.
        group = MutuallyExclusiveCallbackGroup()
        self._service = self.create_service(
            LabelEpisode, "~/label_episode", self._label, callback_group=group
        )

    def start(self) -> None:
        """Begins to judge."""
        settings, supply = self.parameters, self._supply
        if not settings.live:
            return
        self._live = LiveJudge(
            self, self._embodiment, settings.robots, supply, settings.lockstep, settings.queue, self.fail
        )
        if supply.current is not None:
            self._live.model_is_ready(supply.current)

    def stop(self) -> None:
        """Judges no more."""
        if self._live is not None:
            self._live.close()
            self._live = None

    def release(self) -> None:
        """Gives models, topics and the service back."""
        if self._service is not None:
            self.destroy_service(self._service)
            self._service = None
        if self._supply is not None:
            self._supply.close()
            self._supply = None

    def parameters_changed(self, names: Collection[str]) -> None:
        """Swaps in the bundle that was set."""
        if self._supply is not None and "bundle" in names and self.parameters.bundle:
            self._supply.want(Path(self.parameters.bundle).expanduser())

    # Models

    def _load(self, path: Path) -> RewardModel:
        settings = self.parameters
        began_s = time.monotonic()
        model = load_reward(
            path,
            self._embodiment,
            len(settings.robots),
            settings.threshold,
            settings.hold,
            settings.provider,
            settings.threads,
        )
        self.get_logger().info(
            f"bundle {model.id} is ready on {model.provider} after {time.monotonic() - began_s:.2f} s; "
            f"success: at most {model.threshold:g} steps to go, {model.hold} times in a row"
        )
        return model

    def _model_is_ready(self, model: RewardModel) -> None:
        supply, live = self._supply, self._live
        if supply is not None and not self.parameters.follow_models:
            supply.unfollow()
        if live is not None:
            live.model_is_ready(model)

    # Labelling

    def _label(self, request: LabelEpisode.Request, answer: LabelEpisode.Response) -> LabelEpisode.Response:
        answer.success_index = -1
        model = self._supply.current if self._supply is not None else None
        if not self.is_active:
            answer.reason = int(Reason.NOT_ACTIVE)
            answer.message = "expected an active node; activate it first"
            return answer
        if model is None:
            answer.reason, answer.message = int(Reason.BUNDLE_UNKNOWN), self._supply.why_none()
            return answer
        answer.bundle_id = model.id
        try:
            episode = read_episode(Path(request.path).expanduser())
            labels = label_episode(model, episode, request.instruction, self._labels_no_more)
        except EfmError as error:
            answer.reason, answer.message = int(reason_of(error)), str(error)
            return answer
        except Exception as error:  # noqa: BLE001 - one odd recording must not end the judging of robots
            self.get_logger().error(f"label_episode {request.path}: {traceback.format_exc()}")
            answer.reason, answer.message = int(Reason.INTERNAL), f"{type(error).__name__}: {error}"
            return answer
        answer.reason = int(Reason.OK)
        answer.stamps = [ns_to_stamp(stamp) for stamp in labels.stamps]
        answer.expectation = labels.expectation.tolist()
        answer.spread = labels.spread.tolist()
        answer.success_index = labels.success_index
        return answer

    def _labels_no_more(self) -> bool:
        return self.ending.is_set() or not self.is_active

    # Diagnostics

    def update_diagnostics(self) -> None:
        """Tells how the model and every robot are."""
        supply, live = self._supply, self._live
        if supply is None:
            return
        model = supply.current
        supply.diagnose(
            threshold=model.threshold if model is not None else "",
            hold=model.hold if model is not None else "",
        )
        for robot in live.robots if live is not None else ():
            self._diagnose_robot(live, robot)

    def _diagnose_robot(self, live: LiveJudge, robot: LiveRobot) -> None:
        course, stream = robot.stream.course, robot.stream
        quiet_s = time.monotonic() - robot.judged_s
        level, message = OK, "no episode runs" if course is None else "judges"
        if course is not None and quiet_s > QUIET_S:
            level, message = WARN, f"nothing judged for {quiet_s:.1f} s: {live.why_nothing_new(robot)}"
        if robot.new_complaint:
            level, message, robot.new_complaint = WARN, robot.complaint, False
        self.diagnose(
            f"judging {robot.name}".rstrip(),
            level,
            message,
            robot=robot.name,
            episode_id=course.episode_id if course is not None else "",
            steps_to_go=course.last if course is not None else "",
            held=course.detector.held if course is not None else "",
            success=course.detector.succeeded if course is not None else "",
            judged=robot.judged,
            missed=stream.missed,
            waiting=stream.waiting,
            latency_s=robot.latency_s,
        )
