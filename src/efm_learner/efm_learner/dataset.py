"""Recorded episodes -> tables of training samples.

Which episodes teach what is decided by what their demonstrators said: collected episodes marked as success or
failure are used; discarded ones, and those of practice and evaluation, never. Frames come memory-mapped from
`frame_cache.py`, targets from `samples.py`.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from efm_core.bundle import embodiment_differences
from efm_core.embodiment import Embodiment
from efm_core.episode import (
    Actor,
    EndReason,
    Episode,
    Mode,
    Outcome,
    Summary,
    list_episodes,
    read_episode,
    read_summary,
)
from efm_core.episode_file import bag_file, incomplete_episodes
from efm_core.errors import EfmError, EmbodimentMismatch, EpisodeInvalid
from efm_core.files import sha256_of
from efm_learner.frame_cache import FrameCache, Wanted
from efm_learner.samples import EpisodeArrays, Frames, Labelling, StepTable, make_table

# Who must have decided a step for it to be imitated; EXTERNAL is whoever commanded a foreign recording.
DEMONSTRATORS = (Actor.EXPERT, Actor.HUMAN, Actor.EXTERNAL)

# Gives camera -> frames of all rows of some episodes.
FramesOf = Callable[[Sequence[EpisodeArrays]], dict[str, Frames]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tables:
    """What a folder of episodes gives.

    Attributes:
        training: To train on.
        held_out: To choose weights and the success detector; None where no successful episode is held out.
        skipped: Why episodes were left out -> how many.
    """

    training: StepTable
    held_out: StepTable | None
    skipped: dict[str, int]

    def description(self) -> str:
        """Returns one line for people."""
        parts = [f"{_counted(self.training)} to train on"]
        parts.append("none held out" if self.held_out is None else f"{_counted(self.held_out)} held out")
        parts += [f"{count} left out: {reason}" for reason, count in sorted(self.skipped.items())]
        return "; ".join(parts)


def load_tables(
    folder: Path,
    embodiment: Embodiment,
    labelling: Labelling,
    validation_share: float = 0.1,
    seed: int = 0,
    cache: Path | None = None,
) -> Tables:
    """Reads a folder of episodes.

    Args:
        folder: Holds the episodes' folders.
        embodiment: What the network is for; the episodes must have been recorded with it.
        labelling: How targets are made.
        validation_share: Share of the episodes that is held out.
        seed: Of the split.
        cache: Folder of decoded frames; None: `<folder>/.cache`.

    Raises:
        EpisodeInvalid: No usable episode.
        EmbodimentMismatch: An episode was recorded with another embodiment.
    """
    episodes, frames, skipped = load_episodes(folder, embodiment, cache)
    training, held_out = split_episodes(episodes, validation_share, seed)
    return Tables(
        make_table(training, embodiment, labelling, frames(training)),
        make_table(held_out, embodiment, labelling, frames(held_out))
        if any(episode.success for episode in held_out)
        else None,
        dict(skipped),
    )


def load_episodes(
    folder: Path, embodiment: Embodiment, cache: Path | None = None, more: Sequence[Wanted] = ()
) -> tuple[list[EpisodeArrays], FramesOf, Counter[str]]:
    """Reads the demonstrations in a folder, through the cache.

    Args:
        folder: Holds the episodes' folders.
        embodiment: They must have been recorded with it.
        cache: Folder of decoded frames; None: `<folder>/.cache`.
        more: Other episodes to load with them.

    Returns:
        The episodes in order of their ids, without images; a function that gives the frames of any of them;
        and why episodes were left out.

    Raises:
        EpisodeInvalid: No usable episode.
        EmbodimentMismatch: An episode was recorded with another embodiment.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise EpisodeInvalid(
            f"{folder}: expected a folder of recorded episodes, found {found}; record some with efm collect"
        )
    skipped: Counter[str] = Counter()
    wanted = list(more)
    frame_cache = FrameCache((cache or folder / ".cache") / embodiment.digest, embodiment)
    known = frame_cache.digests()
    for path in [*list_episodes(folder), *incomplete_episodes(folder)]:
        try:
            digest = sha256_of(bag_file(path))
            # What is in the cache was found fit to teach when it was decoded.
            reason = "" if digest in known else why_left_out(read_summary(path))
            if reason:
                skipped[reason] += 1
            else:
                wanted.append(Wanted(digest, _Decoder(path, embodiment)))
        except EfmError as error:
            _log.warning("%s", error)
            skipped["unreadable"] += 1
    bar = tqdm(total=len(wanted), desc="decoding", unit="episode", disable=not sys.stderr.isatty())
    episodes, frames, errors = frame_cache.load(wanted, bar.update)
    bar.close()
    for fault in errors:
        if isinstance(fault, EmbodimentMismatch):
            raise fault
        _log.warning("%s", fault)
        skipped["unreadable"] += 1
    if not episodes:
        found = (
            "; ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "no episode at all"
        )
        raise EpisodeInvalid(
            f"{folder}: expected collected episodes that were marked as success or failure, found {found}; "
            "record some with efm collect, or see efm episodes list"
        )
    return sorted(episodes, key=lambda episode: episode.id), frames, skipped


def why_left_out(summary: Summary) -> str:
    """Returns why an episode teaches nothing in stage 1; empty where it does."""
    if summary.mode != Mode.COLLECT:
        return f"mode {summary.mode.name.lower()}"
    if summary.outcome not in (Outcome.SUCCESS, Outcome.FAILURE):
        return f"outcome {summary.outcome.name.lower()}"
    if summary.end_reason == EndReason.FAULT:
        return "ended by a fault"
    if summary.steps < 1:
        return "no step"
    return ""


def episode_arrays(episode: Episode) -> EpisodeArrays:
    """Returns a recorded episode as training needs it, its images decoded."""
    return EpisodeArrays(
        id=episode.id,
        instruction=episode.instruction,
        images={camera: episode.images[camera] for camera in episode.images},
        state=episode.state,
        actions=episode.actions,
        imitate=np.isin(episode.actors, DEMONSTRATORS) & np.isfinite(episode.actions).all(axis=1),
        success=episode.summary.outcome == Outcome.SUCCESS,
    )


def split_episodes(
    episodes: Sequence[EpisodeArrays], share: float, seed: int
) -> tuple[list[EpisodeArrays], list[EpisodeArrays]]:
    """Splits episodes into (training, held out), successful and unsuccessful ones alike.

    An episode's side depends on its id and the seed, so that new episodes move few of the old ones. Of five
    or more episodes of a kind at least one is held out, where any share is asked for.
    """
    held_out: set[str] = set()
    for kind in (True, False):
        ids = [episode.id for episode in episodes if episode.success == kind]
        ids.sort(key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        count = round(share * len(ids))
        if share > 0 and len(ids) >= 5:
            count = max(1, count)
        held_out.update(ids[:count])
    return (
        [episode for episode in episodes if episode.id not in held_out],
        [episode for episode in episodes if episode.id in held_out],
    )


@dataclass(frozen=True)
class _Decoder:
    """Decodes one episode when the cache asks for it."""

    path: Path
    embodiment: Embodiment

    def __call__(self) -> EpisodeArrays:
        episode = read_episode(self.path)
        if episode.embodiment.digest != self.embodiment.digest:
            differences = embodiment_differences(episode.embodiment, self.embodiment)
            raise EmbodimentMismatch(
                f"{self.path}: recorded with embodiment '{episode.embodiment.name}', training is for "
                f"'{self.embodiment.name}': {'; '.join(differences)}; train with that of the recording"
            )
        return episode_arrays(episode)


def _counted(table: StepTable) -> str:
    return f"{len(table.first)} episodes ({int(table.success.sum())} successful, {len(table)} steps)"
