"""One reward made of several that have seen different demonstrations: the most pessimistic head counts.

Practice finds what a reward takes for success though it is none, and makes more of it. Rewards of the same
demonstrations share such mistakes, those of different ones seldom do: what fools all of them is rare. Nothing
is trained here: the graphs are put side by side, and the success detector is chosen anew on episodes that
none of them was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efm_core.bundle import Bundle
from efm_core.errors import BadRequest, EpisodeInvalid
from efm_core.files import replace_json
from efm_learner.calibrate import calibrate
from efm_learner.dataset import load_episodes
from efm_learner.export import export_bundle, load_network
from efm_learner.network import RewardEnsemble
from efm_learner.samples import make_table
from efm_learner.sft import parity_frames
from efm_learner.sft_config import config_of
from efm_learner.training import REWARD

COMBINE = "max"


def ensemble(rewards: Sequence[Bundle], episodes: Path, out: Path) -> tuple[Bundle, dict[str, Any]]:
    """Writes a reward bundle made of several into `<out>/bundles/`; `result.json` names it.

    Args:
        rewards: Two or more, made by `efm sft` or `efm refit`, each of other demonstrations; labels and
            calibration follow the settings of the first.
        episodes: Folder of demonstrations; those that no reward was trained on choose the detector. Best a
            folder with many failures.
        out: Folder of what is made.

    Returns:
        The bundle, and the report of its calibration.

    Raises:
        BadRequest: Too few rewards, the same one twice, or one that something else made.
        EmbodimentMismatch: The rewards or the episodes are of different robots.
        EpisodeInvalid: No successful episode in the folder that all rewards have left out.
    """
    ids = [reward.id for reward in rewards]
    if len(set(ids)) < 2 or len(set(ids)) < len(ids):
        raise BadRequest(f"ensemble: expected 2 or more different rewards, found {', '.join(ids) or 'none'}")
    config, embodiment = config_of(rewards[0]), rewards[0].embodiment
    for reward in rewards[1:]:
        reward.check_embodiment(embodiment)
    network = RewardEnsemble([load_network(reward) for reward in rewards])
    seen = {name for reward in rewards for name in reward.manifest.data_ids}
    loaded, frames, _ = load_episodes(episodes, embodiment)
    held_out = [episode for episode in loaded if episode.id not in seen]
    if not any(episode.success for episode in held_out):
        raise EpisodeInvalid(
            f"{episodes}: expected successful demonstrations that no reward was trained on, found 0 "
            f"of {len(loaded)}; record some more, or train with --validation-share above 0"
        )
    table = make_table(held_out, embodiment, config.labelling, frames(held_out))
    report = calibrate(network, table, COMBINE, config.calibration)
    bundle = export_bundle(
        network,
        embodiment,
        out / "bundles",
        REWARD,
        parity_batch=parity_frames(network, table),
        training={"stage": "ensemble", "members": ids},
        data_ids=sorted(seen),
        parent_id=ids[0],
        combine=COMBINE,
        validation={"calibration": report},
        success_threshold=report["detector"]["threshold"],
        success_hold=int(report["detector"]["hold"]),
    )
    replace_json(out / "result.json", {"reward": bundle.id, "calibration": report})
    return bundle, report
