"""One robot as people see it: what it was told, who has control, how far it believes to be; plain values.

Views (markers, annotated images) draw a `Look` and nothing else, so that all of them say the same. Left out:
where the values come from, which `robot_feed` knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from efm_core.summary import Actor, Mode, Outcome

Colour = tuple[int, int, int]  # RGB, 0 to 255

GREY: Colour = (150, 150, 150)
GREEN: Colour = (60, 200, 90)
YELLOW: Colour = (240, 200, 40)
RED: Colour = (230, 60, 50)
WHITE: Colour = (240, 240, 240)
ACTOR_COLOURS: dict[Actor, Colour] = {
    Actor.POLICY: (70, 140, 255),
    Actor.EXPERT: (180, 110, 240),
    Actor.HUMAN: (255, 150, 40),
    Actor.EXTERNAL: (40, 200, 200),
}
ACTOR_WORDS: dict[Actor, str] = {
    Actor.POLICY: "policy acts",
    Actor.EXPERT: "expert acts",
    Actor.HUMAN: "a person acts",
    Actor.EXTERNAL: "somebody outside acts",
    Actor.HOLD: "holds still",
}


@dataclass(frozen=True)
class Look:
    """See the module. Numbers that are not known are NaN, texts empty.

    Attributes:
        robot: Name; empty: none.
        instruction: Of the running episode, or of the last one.
        episode_id: Of the running episode; empty: none runs.
        step: Control steps in it.
        actor: Who decided last; UNSET: nobody yet.
        takeover: A person has control.
        estop: The e-stop is pressed.
        steps_to_go: Newest prediction d, in control steps.
        spread: Its standard deviation.
        threshold: At or below it an observation counts as fulfilled.
        reward: Fall of d at the last step.
        held: Observations in a row at or below the threshold.
        success: The detector saw success in this episode.
        curve: Predictions of this episode, oldest first.
        greatest: Greatest d that a prediction can have; 0: unknown.
        bundle_id: Policy bundle that acted last.
        outcome: Of the last finished episode, while none runs.
        mode: What the robot is there for.
        message: What the episode node wants people to know.
    """

    robot: str = ""
    instruction: str = ""
    episode_id: str = ""
    step: int = 0
    actor: Actor = Actor.UNSET
    takeover: bool = False
    estop: bool = False
    steps_to_go: float = math.nan
    spread: float = math.nan
    threshold: float = math.nan
    reward: float = math.nan
    held: int = 0
    success: bool = False
    curve: Sequence[float] = field(default=())
    greatest: float = 0.0
    bundle_id: str = ""
    outcome: Outcome = Outcome.UNSET
    mode: Mode = Mode.UNSET
    message: str = ""

    @property
    def running(self) -> bool:
        """Whether an episode runs."""
        return bool(self.episode_id)

    @property
    def judged(self) -> bool:
        """Whether there is a prediction."""
        return math.isfinite(self.steps_to_go)

    @property
    def control(self) -> str:
        """Who has control, in words."""
        if self.estop:
            return "E-STOP"
        if self.takeover:
            return "a person has control"
        return ACTOR_WORDS.get(self.actor, "") if self.running else "idle"

    @property
    def control_colour(self) -> Colour:
        """Colour of who has control."""
        if self.estop:
            return RED
        if self.takeover:
            return ACTOR_COLOURS[Actor.HUMAN]
        return ACTOR_COLOURS.get(self.actor, GREY) if self.running else GREY

    @property
    def success_colour(self) -> Colour:
        """Green: success; yellow: below the threshold, not yet for long enough; red: failed; white: open."""
        if self.success or (not self.running and self.outcome is Outcome.SUCCESS):
            return GREEN
        if not self.running:
            return RED if self.outcome is Outcome.FAILURE else GREY
        return YELLOW if self.held > 0 else WHITE

    @property
    def verdict(self) -> str:
        """How far it is, in words."""
        if self.success:
            return "success"
        if not self.running:
            return self.outcome.name.lower() if self.outcome else ""
        return f"{self.held} in a row" if self.held else ""

    @property
    def distance(self) -> str:
        """The prediction, in words; empty without one."""
        if not self.judged:
            return ""
        spread = f" +- {self.spread:.0f}" if math.isfinite(self.spread) else ""
        return f"{self.steps_to_go:.1f}{spread} steps to go"
