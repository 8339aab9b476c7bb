"""How the demo treats each world: how many demonstrations of what quality, which network, how much practice.

Every number was chosen by experiment (`docs/log.md`) so that the whole fits into about a quarter of an hour
on two cores. A world without a recipe of its own gets `DEFAULT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Recipe:
    """Settings of the demo for one world.

    Attributes:
        demonstrations: Episodes of the scripted expert; as many again for the verifier.
        expert: Changes to the style "imperfect", see `efm_sim.expert.ExpertStyle`.
        others: Further changes for the verifier's own demonstrations, so that it knows other mistakes.
        world_options: Options of the world.
        training: Settings of `efm sft --set`.
        learning: Settings of the learner.
        evaluation: Episodes before and after practice, at the policy's own sampling.
        greedy: Episodes of the greedy policy beside them.
    """

    demonstrations: int
    expert: Mapping[str, object] = field(default_factory=dict)
    others: Mapping[str, object] = field(default_factory=lambda: {"fail": 0.4})
    world_options: Mapping[str, object] = field(default_factory=dict)
    training: Mapping[str, object] = field(default_factory=dict)
    learning: Mapping[str, object] = field(default_factory=dict)
    evaluation: int = 100
    greedy: int = 50


DEFAULT = Recipe(
    demonstrations=150,
    training={"backbone": {"name": "small"}, "heads": 3, "steps": 4000, "labelling.rest_steps": 5},
)

# Cameras, and a state that says where the robot is.
SEEING = replace(DEFAULT, training={**DEFAULT.training, "foresight_weight": 1.0})

RECIPES: Mapping[str, Recipe] = {
    "pointmass": Recipe(
        demonstrations=300,
        expert={"wander": 5},
        training={
            "backbone": {"name": "state", "shared_trunk": False},
            "heads": 3,
            "steps": 2500,
            "learning_rate": 1e-3,
            "labelling.rest_steps": 5,
            "calibration.holds": [1, 2, 3],
        },
        learning={"learning_rate": 3e-4, "iterations": 60},
    ),
    "table": SEEING,
    "metaworld": SEEING,
    "aloha": SEEING,
}


def recipe_of(world: str) -> Recipe:
    """Returns the recipe of a world by its full name, its family, or the default one."""
    return RECIPES.get(world) or RECIPES.get(world.partition(":")[0]) or DEFAULT
