"""Training data in one table: a row per control step, with what to imitate and how many steps were left.

`StepTable` is made from episodes in memory or in the cache (`dataset.py`) alike, so an experiment without a
single bag trains by the same code. The honesty of the targets is decided here, once:

- Only successful demonstrations are imitated, and only steps that an expert or a person decided.
- A successful demonstration ends `rest_steps` steps of rest after its end; the target is the number of steps
  to the beginning of that rest, and 0 within it.
- An unsuccessful episode says that at least so many steps were left as it still had, plus a margin: a lower
  bound ("censored"), never a target. A discarded episode teaches nothing and must not be handed in.

A goal is a sentence about the whole episode, and a state on the way has no sentence of its own. Where the
state itself names the goal, `Labelling.hindsight_goals` says so, and batches can show goals in hindsight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from efm_core.action_tokens import ActionTokenizer
from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest, EpisodeInvalid
from efm_core.instruction import encode_instruction
from efm_learner.backbones import INSTRUCTION, STATE, image_input

IntArray = npt.NDArray[np.int64]

# Rows that are copied to a device together.
ROWS_AT_ONCE = 4096

# Share of a device's free memory that frames may take.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class EpisodeArrays:
    """One episode of N observations, the last of which ended it.

    Attributes:
        id: Name that is recorded in bundles; decides the side of the validation split.
        instruction: What the robot was asked to do.
        images: Camera name -> uint8 [N, H, W, 3] in the size that the model sees.
        state: float32 [N, S], or None.
        actions: float32 [N, D], action t was taken at observation t; NaN where there was none.
        imitate: bool [N], steps whose action an expert or a person decided.
        success: Whether the episode was marked successful by its demonstrator.
        digest: Hash of the content that it was made from.
    """

    id: str
    instruction: str
    images: Mapping[str, npt.NDArray[np.uint8]]
    state: npt.NDArray[np.float32] | None
    actions: npt.NDArray[np.float32]
    imitate: npt.NDArray[np.bool_]
    success: bool
    digest: str = ""

    def __len__(self) -> int:
        return len(self.actions)


class Frames:
    """Frames of one camera, from several blocks of memory (arrays or memory maps), by row number.

    Args:
        blocks: uint8 [n, H, W, 3] each.
        order: int64 [N], which frame of all blocks, counted through, each row shows; None: all in order.
    """

    def __init__(self, blocks: Sequence[npt.NDArray[np.uint8]], order: IntArray | None = None) -> None:
        self._blocks = list(blocks)
        self._starts = np.cumsum([0, *(len(block) for block in self._blocks)])
        self._order = np.arange(self._starts[-1]) if order is None else order

    def __len__(self) -> int:
        return len(self._order)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        return len(self), *self._blocks[0].shape[1:]

    def take(self, rows: IntArray) -> npt.NDArray[np.uint8]:
        """Returns uint8 [n, H, W, 3] for row numbers [n]."""
        places = self._order[rows]
        if len(self._blocks) == 1:
            return np.take(self._blocks[0], places, axis=0)
        found = np.empty((len(places), *self._blocks[0].shape[1:]), np.uint8)
        of_block = np.searchsorted(self._starts, places, side="right") - 1
        order = np.argsort(of_block, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(of_block[order])) + 1):
            index = of_block[mine[0]]
            found[mine] = self._blocks[index][places[mine] - self._starts[index]]
        return found


class DeviceFrames:
    """The same frames in the memory of an accelerator, where batches are then put together.

    Args:
        frames: To be copied.
        device: Where to.
    """

    def __init__(self, frames: Frames, device: torch.device) -> None:
        self._frames = torch.empty(frames.shape, dtype=torch.uint8, device=device)
        for rows in np.array_split(np.arange(len(frames)), len(frames) // ROWS_AT_ONCE + 1):
            self._frames[rows[0] : rows[-1] + 1] = torch.from_numpy(frames.take(rows)).to(device)

    def __len__(self) -> int:
        return len(self._frames)

    def take(self, rows: IntArray) -> torch.Tensor:
        """Returns uint8 [n, H, W, 3] on the device for row numbers [n]."""
        return self._frames[torch.from_numpy(rows).to(self._frames.device)]


@dataclass(frozen=True)
class Labelling:
    """How episodes become targets.

    Attributes:
        rest_steps: Steps of rest at the end of successful demonstrations, at least [control steps].
        imitate_rest: Whether the steps of rest are imitated as well.
        censored_margin: An unsuccessful episode counts as at least this many steps from success when it
            ends [control steps].
        hindsight_goals: State entry that names the goal -> entry that shows what was reached, for
            `mixture.hindsight`.
    """

    rest_steps: int = 0
    imitate_rest: bool = True
    censored_margin: int = 10
    hindsight_goals: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rest_steps < 0 or self.censored_margin < 0:
            raise BadRequest(
                "labelling: expected rest_steps and censored_margin of 0 or more, found "
                f"{self.rest_steps} and {self.censored_margin}"
            )


@dataclass
class StepTable:
    """N rows of E episodes, in order.

    Attributes:
        frames: Camera name -> frames of all rows.
        state: float32 [N, S], or None.
        tokens: int64 [N, C, D], the bins of the next C actions; -1 where there is none.
        imitate: bool [N], rows for behaviour cloning.
        steps_to_go: float32 [N], steps that are left, or a lower bound where `censored`.
        censored: bool [N].
        episode: int64 [N], number of the row's episode.
        first: int64 [E], row of each episode's first observation.
        success: bool [E].
        episode_ids: Names of the episodes.
        episode_instruction: int64 [E], number of each episode's instruction.
        instructions: The different instructions.
    """

    frames: Mapping[str, Frames | DeviceFrames]
    state: npt.NDArray[np.float32] | None
    tokens: IntArray
    imitate: npt.NDArray[np.bool_]
    steps_to_go: npt.NDArray[np.float32]
    censored: npt.NDArray[np.bool_]
    episode: IntArray
    first: IntArray
    success: npt.NDArray[np.bool_]
    episode_ids: list[str]
    episode_instruction: IntArray
    instructions: list[str]
    _encoded: dict[str, IntArray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def last(self) -> IntArray:
        """Row of each episode's last observation, int64 [E]."""
        return np.append(self.first[1:], len(self)) - 1

    def inputs(
        self,
        rows: IntArray,
        embodiment: Embodiment,
        names: Sequence[str],
        instruction_spec: Mapping[str, object],
        instruction: IntArray | None = None,
        backwards: npt.NDArray[np.bool_] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Returns network inputs for rows [n].

        Args:
            rows: Row numbers.
            embodiment: Decides the frames of history.
            names: Inputs that the network has.
            instruction_spec: How the network encodes instructions.
            instruction: Numbers of instructions to use instead of the episodes' own, [n].
            backwards: bool [n], rows whose frames of history are shown in reverse order.
        """
        batch: dict[str, torch.Tensor] = {}
        for camera in embodiment.cameras:
            name = image_input(camera.name)
            if name not in names:
                continue
            offsets = np.arange(1 - camera.frames, 1)
            # As the observation assembler does: before the first frame there is the first frame.
            wanted = np.maximum(rows[:, None] + offsets, self.first[self.episode[rows]][:, None])
            if backwards is not None:
                wanted = np.where(backwards[:, None], wanted[:, ::-1], wanted)
            images = self.frames[camera.name].take(wanted.reshape(-1))
            batch[name] = torch.as_tensor(images).reshape(*wanted.shape, *images.shape[1:])
        if STATE in names and self.state is not None:
            batch[STATE] = torch.from_numpy(self.state[rows])
        if INSTRUCTION in names:
            chosen = self.episode_instruction[self.episode[rows]] if instruction is None else instruction
            batch[INSTRUCTION] = torch.from_numpy(self.encoded(instruction_spec)[chosen])
        return batch

    def encoded(self, spec: Mapping[str, object]) -> IntArray:
        """Returns the encoded instructions, int64 [number of instructions, L]."""
        key = repr(sorted(spec.items()))
        if key not in self._encoded:
            self._encoded[key] = np.stack(
                [encode_instruction(text, dict(spec)) for text in self.instructions]
            )
        return self._encoded[key]

    def relabelled(self, steps_to_go: npt.NDArray[np.float32], censored: npt.NDArray[np.bool_]) -> StepTable:
        """Returns a table with other steps-to-go targets and the same memory otherwise."""
        return replace(self, steps_to_go=steps_to_go, censored=censored)

    def on(self, device: torch.device) -> StepTable:
        """Returns a table whose frames lie on a CUDA device, if they leave room there; this one otherwise."""
        frames = {name: value for name, value in self.frames.items() if isinstance(value, Frames)}
        size = sum(math.prod(value.shape) for value in frames.values())
        if device.type != "cuda" or not frames or size > MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, frames={name: DeviceFrames(value, device) for name, value in frames.items()})


def steps_left(length: int, success: bool, labelling: Labelling) -> tuple[npt.NDArray[np.float32], bool]:
    """Returns the targets [N] of an episode of N observations, and whether they are lower bounds."""
    to_the_end = np.arange(length - 1, -1, -1, dtype=np.float32)
    if success:
        return np.maximum(to_the_end - labelling.rest_steps, 0), False
    return to_the_end + labelling.censored_margin, True


def make_table(
    episodes: Sequence[EpisodeArrays],
    embodiment: Embodiment,
    labelling: Labelling,
    frames: Mapping[str, Frames] | None = None,
) -> StepTable:
    """Makes a table.

    Args:
        episodes: In the order of the rows.
        embodiment: Cameras, state and action bins.
        labelling: How targets are made.
        frames: Camera name -> the frames of all rows in the same order, where they do not come from
            `episodes[i].images`.

    Raises:
        EpisodeInvalid: No episodes, or arrays of the wrong length.
    """
    if not episodes:
        raise EpisodeInvalid("training data: expected at least one episode, found none")
    tokenizer = ActionTokenizer(embodiment.action)
    chunk = embodiment.action.chunk
    tokens, imitate, targets, censored = [], [], [], []
    for episode in episodes:
        check_arrays(episode, embodiment, frames is None)
        left, bound = steps_left(len(episode), episode.success, labelling)
        mine = episode.imitate & np.isfinite(episode.actions).all(axis=1) & episode.success
        if not labelling.imitate_rest and labelling.rest_steps:
            mine[-labelling.rest_steps - 1 :] = False
        tokens.append(_chunks(tokenizer, episode.actions, mine, chunk))
        imitate.append(mine)
        targets.append(left)
        censored.append(np.full(len(episode), bound))
    lengths = np.array([len(episode) for episode in episodes])
    instructions = sorted({episode.instruction for episode in episodes})
    numbers = {text: number for number, text in enumerate(instructions)}
    if frames is None:
        frames = {
            camera.name: Frames([episode.images[camera.name] for episode in episodes])
            for camera in embodiment.cameras
        }
    states = [episode.state for episode in episodes if episode.state is not None]
    return StepTable(
        frames=dict(frames),
        state=None if embodiment.state is None else np.concatenate(states).astype(np.float32, copy=False),
        tokens=np.concatenate(tokens),
        imitate=np.concatenate(imitate),
        steps_to_go=np.concatenate(targets),
        censored=np.concatenate(censored),
        episode=np.repeat(np.arange(len(episodes)), lengths),
        first=np.cumsum(lengths) - lengths,
        success=np.array([episode.success for episode in episodes]),
        episode_ids=[episode.id for episode in episodes],
        episode_instruction=np.array([numbers[episode.instruction] for episode in episodes]),
        instructions=instructions,
    )


def _chunks(
    tokenizer: ActionTokenizer,
    actions: npt.NDArray[np.float32],
    imitate: npt.NDArray[np.bool_],
    chunk: int,
) -> IntArray:
    """Returns the tokens of the next `chunk` actions [N, C, D]; -1 where there is nothing to imitate."""
    single = np.full(actions.shape, -1, np.int64)
    if imitate.any():
        single[imitate] = tokenizer.encode(actions[imitate])
    padded = np.concatenate([single, np.full((chunk - 1, actions.shape[1]), -1, np.int64)])
    return np.stack([padded[offset : offset + len(actions)] for offset in range(chunk)], axis=1)


def check_arrays(episode: EpisodeArrays, embodiment: Embodiment, images: bool = True) -> None:
    """Does nothing where an episode can be learned from; `images`: whether it holds its own.

    Raises:
        EpisodeInvalid: Arrays of the wrong length, or a state that is not finite.
    """
    length = len(episode)
    arrays: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "actions": (episode.actions.shape, (length, embodiment.action_size)),
        "imitate": (episode.imitate.shape, (length,)),
    }
    if embodiment.state is not None:
        found = () if episode.state is None else episode.state.shape
        arrays["state"] = (found, (length, embodiment.state_size))
    for camera in embodiment.cameras if images else ():
        shape = episode.images[camera.name].shape if camera.name in episode.images else ()
        arrays[f"images of '{camera.name}'"] = (shape, (length, camera.height, camera.width, 3))
    wrong = [
        f"{name}: expected {want}, found {found}" for name, (found, want) in arrays.items() if found != want
    ]
    if length < 2:
        wrong.append(f"expected 2 observations or more, found {length}")
    if not wrong and episode.state is not None and not np.isfinite(episode.state).all():
        row, column = np.argwhere(~np.isfinite(episode.state))[0]
        name = embodiment.state.entries[column].name if embodiment.state else column
        wrong.append(
            f"state: expected finite numbers, found '{name}' = {episode.state[row, column]} at {row}"
        )
    if wrong:
        raise EpisodeInvalid(f"episode {episode.id}: {'; '.join(wrong)}")
