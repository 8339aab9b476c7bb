"""What one can ask of the table: LanguageTable's block-to-block sentences, and a body to a place.

Every sentence stands for a `Task`: which body has to come near what. Nothing here knows positions of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from efm_sim.table_scene import BANANA

VERBS = ("push", "move", "slide", "put")
PREPOSITIONS = ("to", "towards", "close to", "next to")
PLACE_PREPOSITIONS = ("to", "towards")

# (x, y) in metres in the board's frame: x up in the picture, y left.
PLACES: Mapping[str, tuple[float, float]] = {
    "center": (0.0, 0.0),
    "top left corner": (0.14, 0.14),
    "top right corner": (0.14, -0.14),
    "bottom left corner": (-0.14, 0.14),
    "bottom right corner": (-0.14, -0.14),
    "left side": (0.0, 0.14),
    "right side": (0.0, -0.14),
    "top side": (0.14, 0.0),
    "bottom side": (-0.14, 0.0),
}

FAMILIES = ("block_to_block", "block_to_place", "banana_to_place")


@dataclass(frozen=True)
class Task:
    """Bring `body` near `goal`, which is the name of another body or of a place."""

    body: str
    goal: str


def table_tasks(families: Sequence[str], blocks: Sequence[str]) -> dict[str, Task]:
    """Returns sentence -> task for every sentence of the families about these blocks.

    Raises:
        ValueError: A family is unknown, or there are too few blocks for it; the message says which.
    """
    tasks: dict[str, Task] = {}
    for family in families:
        if family == "block_to_block":
            if len(blocks) < 2:
                raise ValueError(f"table: family 'block_to_block' needs at least 2 blocks, got {len(blocks)}")
            pairs = [Task(body, goal) for body in blocks for goal in blocks if body != goal]
            tasks.update(_sentences(pairs, PREPOSITIONS))
        elif family == "block_to_place":
            pairs = [Task(body, place) for body in blocks for place in PLACES]
            tasks.update(_sentences(pairs, PLACE_PREPOSITIONS))
        elif family == "banana_to_place":
            tasks.update(_sentences([Task(BANANA, place) for place in PLACES], PLACE_PREPOSITIONS))
        else:
            raise ValueError(f"table: unknown instruction family {family!r}; choices: {', '.join(FAMILIES)}")
    return tasks


def _sentences(pairs: Sequence[Task], prepositions: Sequence[str]) -> dict[str, Task]:
    return {
        f"{verb} the {task.body} {preposition} the {task.goal}": task
        for verb in VERBS
        for preposition in prepositions
        for task in pairs
    }
