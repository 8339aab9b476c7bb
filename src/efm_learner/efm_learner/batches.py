"""What a training batch is made of: which rows, for which objective, under which instruction.

A batch is a function of (seed, step) alone, drawn for all processes together and then cut, so that a resumed
or a distributed training sees the very same batches. Half of the rows are for behaviour cloning and half for
steps-to-go (a third each with the instruction objective). Of the steps-to-go rows, chosen shares are

- censored: from unsuccessful episodes, "at least this many steps left";
- mismatched: a row of any episode under an instruction that means something else, censored likewise;
- rewound: frames of history in reverse order, censored at the steps that the oldest frame had left.

Of the rows of both, a share can be told in hindsight: their goal is a state that the same episode reached
later, successful or not. That needs a state vector which names the goal (`Labelling.hindsight_goals`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest, nearest
from efm_core.steps_to_go import StepsToGoBins
from efm_learner.backbones import INSTRUCTION, STATE
from efm_learner.network import EfmNetwork, input_specs
from efm_learner.objectives import HORIZONS, Targets, head_weights
from efm_learner.samples import IntArray, Labelling, StepTable

# Words that do not tell one goal from another; the others decide whether two sentences mean the same.
FILLER_WORDS = frozenset(
    re.findall(
        r"\w+", "a an and at by close in into move near next of on onto place push put slide the to towards"
    )
)

# Of a batch; more than any machine has memory for.
MOST_ROWS = 2**20

# An entry of the state that deviates less never changes, but for rounding.
LEAST_DEVIATION = 1e-6

# Rows of unsuccessful episodes are drawn at most so many times as often as others.
MOST_OFTEN = 3


@dataclass(frozen=True)
class Mixture:
    """Composition of the batches.

    Attributes:
        batch_size: Rows of a batch over all processes, first and last observations of the instruction
            objective not counted twice.
        censored: Share of the steps-to-go rows from unsuccessful episodes; less where there are few.
        mismatched: Share of the steps-to-go rows under a foreign instruction.
        rewound: Share of the steps-to-go rows with reversed history; needs cameras with 2 frames or more.
        hindsight: Share of the cloning and of the steps-to-go rows whose goal is a state that the episode
            reached later; needs `labelling.hindsight_goals`.
        head_share: Share of the episodes that each head of an ensemble is trained on.
        instruction: Whether a third of the rows is for the instruction objective.
        shift_pixels: Greatest random shift of images, in pixels of the model's image; 0 means none.
    """

    batch_size: int = 128
    censored: float = 0.25
    mismatched: float = 0.0
    rewound: float = 0.0
    hindsight: float = 0.0
    head_share: float = 0.8
    instruction: bool = False
    shift_pixels: int = 4

    def __post_init__(self) -> None:
        for name in ("censored", "mismatched", "rewound", "hindsight"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise BadRequest(f"mixture.{name}: expected a share in [0, 1), found {getattr(self, name)}")
        if self.censored + self.mismatched + self.rewound + self.hindsight >= 1.0:
            raise BadRequest("mixture: censored, mismatched, rewound and hindsight must sum to less than 1")
        if not 0.0 < self.head_share <= 1.0:
            raise BadRequest(f"mixture.head_share: expected a share in (0, 1], found {self.head_share}")
        if not 4 <= self.batch_size <= MOST_ROWS or self.shift_pixels < 0:
            raise BadRequest(
                f"mixture: expected batch_size from 4 to {MOST_ROWS} and shift_pixels of 0 or more, found "
                f"{self.batch_size} and {self.shift_pixels}"
            )


@dataclass(frozen=True)
class Plan:
    """Rows of one batch, each array for one objective; see `Mixture` and `Targets`.

    Attributes:
        clone: int64 [b], rows to imitate.
        judge: int64 [s], rows to judge.
        bound: float32 [s], steps left or least steps left.
        censored: bool [s].
        instruction: int64 [s], number of the instruction shown.
        backwards: bool [s], whether the history is reversed.
        goal: int64 [b + s], row whose state is the goal in hindsight; -1: the episode's own goal.
        tell: int64 [w], episodes whose instruction is to be told.
        shifts: int64 [b + s + w, 2], shift of the images in pixels, down and to the right.
    """

    clone: IntArray
    judge: IntArray
    bound: npt.NDArray[np.float32]
    censored: npt.NDArray[np.bool_]
    instruction: IntArray
    backwards: npt.NDArray[np.bool_]
    goal: IntArray
    tell: IntArray
    shifts: IntArray

    def part(self, index: int, parts: int) -> Plan:
        """Returns every `parts`-th row, beginning at `index`: the batch of one process."""
        if parts == 1:
            return self
        b, s = len(self.clone), len(self.judge)
        values = {item.name: getattr(self, item.name)[index::parts] for item in fields(self)}
        for name in ("goal", "shifts"):
            of_objectives = np.split(getattr(self, name), [b, b + s])
            values[name] = np.concatenate([item[index::parts] for item in of_objectives])
        return replace(self, **values)


class BatchMaker:
    """Draws plans and makes tensors of them.

    Args:
        table: Training data.
        network: Decides the inputs.
        mixture: Composition.
        labelling: Margin of the bounds.
        seed: Of everything drawn.
        processes: That share a batch.
        foresight: Whether the targets include later states.

    Raises:
        BadRequest: The mixture asks for rows that the data do not have.
    """

    def __init__(
        self,
        table: StepTable,
        network: EfmNetwork,
        mixture: Mixture,
        labelling: Labelling,
        seed: int,
        processes: int = 1,
        foresight: bool = False,
    ) -> None:
        self.table, self.mixture, self.seed = table, mixture, seed
        self.foreseen = table.state if foresight else None
        self.embodiment: Embodiment = network.embodiment
        self.margin = labelling.censored_margin
        self.names = tuple(input_specs(network))
        self.spec = network.instruction
        self.heads = network.heads
        self.bins = StepsToGoBins(self.embodiment.steps_to_go.bins, self.embodiment.steps_to_go.width)
        self.history = max([1, *(self.embodiment.camera(name).frames for name in network.trunk.cameras)])

        self.clone_rows = np.flatnonzero(table.imitate)
        self.goal_rows = np.flatnonzero(~table.censored & np.isfinite(table.steps_to_go))
        self.censored_rows = np.flatnonzero(table.censored)
        self.moving_rows = self.goal_rows[table.steps_to_go[self.goal_rows] > 0]
        self.reaching_rows = np.setdiff1d(np.arange(len(table)), table.last)
        self.told = np.flatnonzero(table.success)
        self.others = foreign_instructions(table.instructions)
        meant = np.array([len(item) > 0 for item in self.others])
        self.swappable = np.flatnonzero(meant[table.episode_instruction[table.episode]])
        # A handful of unsuccessful episodes would only be learnt by heart.
        natural = len(self.censored_rows) / max(1, len(self.censored_rows) + len(self.goal_rows))
        self.censored_share = min(mixture.censored, MOST_OFTEN * natural)
        self.goal_columns, self.reached_columns = _hindsight_columns(labelling, self.embodiment)
        if self.foreseen is not None:
            self.state_mean = self.foreseen.mean(axis=0, dtype=np.float64)
            deviation = self.foreseen.std(axis=0, dtype=np.float64)
            self.state_deviation = np.where(deviation < LEAST_DEVIATION, 1.0, deviation)
        self._check()

        parts = 3 if mixture.instruction else 2
        share = max(1, mixture.batch_size // (parts * processes)) * processes
        self.counts = (share, share, share if mixture.instruction else 0)

    def plan(self, step: int) -> Plan:
        """Returns the rows of one step's batch, over all processes."""
        rng = np.random.default_rng([self.seed, step])
        table, mixture = self.table, self.mixture
        cloned, judged, told = self.counts
        censored = round(judged * self.censored_share)
        mismatched = round(judged * mixture.mismatched)
        rewound = round(judged * mixture.rewound)
        hindsight = round(judged * mixture.hindsight)
        exact = judged - censored - mismatched - rewound - hindsight
        pools = (
            (self.goal_rows, exact),
            (self.censored_rows, censored),
            (self.swappable, mismatched),
            (self.moving_rows, rewound),
            (self.reaching_rows, hindsight),
        )
        judge = np.concatenate([rng.choice(pool, count) for pool, count in pools if count])
        kind = np.repeat(np.arange(len(pools)), [count for _, count in pools])
        instruction = table.episode_instruction[table.episode[judge]]
        for index in np.flatnonzero(kind == 2):
            instruction[index] = rng.choice(self.others[instruction[index]])
        bound = table.steps_to_go[judge].copy()
        bound[kind == 2] = self.margin
        bound[kind == 3] += self.history - 1
        goal = np.full(judged, -1)
        goal[kind == 4] = self._reached_later(judge[kind == 4], rng)
        bound[kind == 4] = (goal - judge)[kind == 4]
        # Mixed, so that every process gets its share of each kind.
        order = rng.permutation(judged)
        shift = mixture.shift_pixels
        clone = rng.choice(self.clone_rows, cloned)
        told_later = np.arange(cloned) < round(cloned * mixture.hindsight)
        clone_goal = np.full(cloned, -1)
        clone_goal[told_later] = self._reached_later(clone[told_later], rng)
        return Plan(
            clone=clone,
            judge=judge[order],
            bound=bound[order],
            censored=((kind > 0) & (kind < 4))[order],
            instruction=instruction[order],
            backwards=(kind == 3)[order],
            goal=np.concatenate([clone_goal, goal[order]]),
            tell=rng.choice(self.told, told) if told else np.zeros(0, np.int64),
            shifts=rng.integers(-shift, shift + 1, (cloned + judged + told, 2)),
        )

    def tensors(self, plan: Plan) -> tuple[dict[str, torch.Tensor], Targets]:
        """Returns inputs and targets of a plan."""
        table = self.table
        first, last = table.first[plan.tell], table.last[plan.tell]
        rows = np.concatenate([plan.clone, plan.judge, first, last])
        instruction = table.episode_instruction[table.episode[rows]]
        b, s, w = len(plan.clone), len(plan.judge), len(plan.tell)
        instruction[b : b + s] = plan.instruction
        backwards = np.zeros(len(rows), bool)
        backwards[b : b + s] = plan.backwards
        inputs = table.inputs(
            rows, self.embodiment, self.names, self.spec, instruction, backwards if backwards.any() else None
        )
        later = np.flatnonzero(plan.goal >= 0)
        if len(later) and table.state is not None:
            reached = table.state[plan.goal[later]][:, self.reached_columns]
            inputs[STATE][later[:, None], self.goal_columns] = torch.from_numpy(reached)
        words = torch.zeros(0, 0, dtype=torch.int64)
        if w:
            words = inputs[INSTRUCTION][b + s : b + s + w].clone()
            inputs[INSTRUCTION][b + s :] = 0  # Not to be read off the input.
        if self.mixture.shift_pixels:
            shifts = np.concatenate([plan.shifts, plan.shifts[b + s :]])
            for name, value in inputs.items():
                if value.dtype == torch.uint8:
                    inputs[name] = shifted(value, shifts)
        targets = Targets(
            tokens=torch.from_numpy(table.tokens[plan.clone]),
            bins=torch.from_numpy(self.bins.bin_of(plan.bound)),
            censored=torch.from_numpy(plan.censored),
            heads=head_weights(
                torch.from_numpy(table.episode[plan.judge]), self.heads, self.mixture.head_share, self.seed
            ),
            words=words,
            later=torch.from_numpy(self._later_states(plan.clone)),
        )
        return inputs, targets

    def _later_states(self, rows: IntArray) -> npt.NDArray[np.float32]:
        """Returns the states that `Targets.later` has for these rows, [b, H, S]."""
        if self.foreseen is None:
            return np.zeros((len(rows), 0, 0), np.float32)
        last = self.table.last[self.table.episode[rows]]
        later = self.foreseen[np.minimum(rows[:, None] + np.array(HORIZONS), last[:, None])]
        return ((later - self.state_mean) / self.state_deviation).astype(np.float32)

    def _reached_later(self, rows: IntArray, rng: np.random.Generator) -> IntArray:
        """Returns for each row one of the later rows of its episode, any as likely; the last: itself."""
        left = self.table.last[self.table.episode[rows]] - rows
        return rows + np.minimum(rng.integers(1, np.maximum(left, 1) + 1), left)

    def _check(self) -> None:
        mixture = self.mixture
        needs = {
            "behaviour cloning needs successful demonstrations": len(self.clone_rows) > 0,
            "steps-to-go needs successful demonstrations": len(self.goal_rows) > 0,
            "labelling.rest_steps must be shorter than the demonstrations": len(self.goal_rows) == 0
            or len(self.moving_rows) > 0,
            "mixture.mismatched needs a backbone with instructions and two meanings": not mixture.mismatched
            or (len(self.swappable) > 0 and INSTRUCTION in self.names),
            "mixture.rewound needs a backbone with a camera of 2 frames or more": not mixture.rewound
            or (self.history > 1 and len(self.moving_rows) > 0),
            "mixture.hindsight needs labelling.hindsight_goals and a state": not mixture.hindsight
            or (len(self.goal_columns) > 0 and STATE in self.names),
            "mixture.instruction needs a backbone with instructions": not mixture.instruction
            or INSTRUCTION in self.names,
        }
        missing = [text for text, fine in needs.items() if not fine]
        if missing:
            raise BadRequest(
                f"training data: {'; '.join(missing)}; found {len(self.table.first)} episodes, "
                f"{int(self.table.success.sum())} of them successful, and {len(self.table.instructions)} "
                "instructions"
            )


def _hindsight_columns(labelling: Labelling, embodiment: Embodiment) -> tuple[list[int], list[int]]:
    """Returns the columns of the state that name the goal, and those that show what was reached."""
    entries = [entry.name for entry in embodiment.state.entries] if embodiment.state else []
    for name in (*labelling.hindsight_goals, *labelling.hindsight_goals.values()):
        if name not in entries:
            raise BadRequest(
                f"labelling.hindsight_goals: expected entries of the state ({', '.join(entries) or 'none'}), "
                f"found {name!r}{nearest(name, entries)}"
            )
    pairs = labelling.hindsight_goals.items()
    return [entries.index(goal) for goal, _ in pairs], [entries.index(reached) for _, reached in pairs]


def shifted(images: torch.Tensor, shifts: IntArray) -> torch.Tensor:
    """Returns images uint8 [B, T, H, W, 3], moved by [B, 2] pixels down and right, edges repeated."""
    height, width = images.shape[2:4]
    largest = int(np.abs(shifts).max(initial=0))
    if largest == 0:
        return images
    if images.device.type != "cpu":
        return shifted_on_device(images, torch.from_numpy(shifts).to(images.device))
    edges = ((0, 0), (0, 0), (largest, largest), (largest, largest), (0, 0))
    padded = np.pad(images.numpy(), edges, mode="edge")
    moved = np.empty(tuple(images.shape), np.uint8)
    for index, (down, right) in enumerate(shifts):
        top, left = largest - down, largest - right
        moved[index] = padded[index, :, top : top + height, left : left + width]
    return torch.from_numpy(moved)


def shifted_on_device(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Does what `shifted` does, in one gather that suits an accelerator; shifts int64 [B, 2]."""
    batch, frames, height, width = images.shape[:4]
    device = images.device
    rows = (torch.arange(height, device=device) - shifts[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) - shifts[:, 1:]).clamp(0, width - 1)
    return images[
        torch.arange(batch, device=device).view(-1, 1, 1, 1),
        torch.arange(frames, device=device).view(1, -1, 1, 1),
        rows.view(batch, 1, height, 1),
        columns.view(batch, 1, 1, width),
    ]


def foreign_instructions(instructions: list[str]) -> list[IntArray]:
    """Returns for every instruction the numbers of those that mean something else.

    Two instructions mean the same when they hold the same words, in any order, verbs and prepositions aside:
    "push the red moon to the blue cube" is done when "put the blue cube next to the red moon" is.
    """
    meanings = [frozenset(re.findall(r"\w+", text.lower())) - FILLER_WORDS for text in instructions]
    return [
        np.array([number for number, other in enumerate(meanings) if other != meaning], np.int64)
        for meaning in meanings
    ]
