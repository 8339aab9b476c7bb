"""A practice run learns from what it may learn from, once, and ends when it should."""

from __future__ import annotations

import json
from dataclasses import replace

import dots
import numpy as np
import practised
import pytest
from practised import PRACTICE, TWO_EPISODES, journal, record, take

from efm_core.bundle import load_bundle
from efm_core.episode import EndReason, Mode, Outcome
from efm_core.errors import (
    BadRequest,
    BundleInvalid,
    EmbodimentMismatch,
    EpisodeDuplicate,
    EpisodeInvalid,
    EpisodeStale,
    EpisodeTruncated,
    LearnerPaused,
    Reason,
    SpoolLocked,
)
from efm_learner.export import recalibrated
from efm_learner.guard import BLIND, GuardSettings
from efm_learner.practice_run import KEPT_BUNDLES, PracticeRun, RunSettings
from efm_learner.random_bundle import write_random_bundle

# Learning


def test_episodes_become_an_iteration_and_a_bundle_that_names_its_parent(start, bundles):
    run = start()
    assert run.bundle.id == bundles["policy"].id
    take(run, [1])
    assert (run.buffered, run.ready) == (12, False)
    take(run, [2])
    assert run.ready
    step = run.advance()
    assert (step.report.iteration, step.report.updates, step.report.decisions) == (1, 2, 24)
    assert step.control_steps == 12
    assert step.report.log_prob_gap < 1e-5
    assert not run.ready
    first = load_bundle(run.folder.bundles / step.bundle.id)
    assert (first.manifest.kind, first.manifest.version) == ("policy", 1)
    assert first.manifest.parent_id == bundles["policy"].id
    assert first.manifest.data_ids == [practised.episode_name(1), practised.episode_name(2)]
    assert first.manifest.training["practice"]["gamma"] == 0.9
    assert first.manifest.training["reward"] == bundles["reward"].id
    take(run, [3, 4])
    second = run.advance().bundle
    assert (second.manifest.parent_id, second.manifest.version) == (first.id, 2)
    lines = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["bundle"] for line in lines] == [first.id, second.id]
    assert [line["total_episodes"] for line in lines] == [2, 4]
    assert all(line["verified"] == 0.0 and line["update_s"] > 0 for line in lines)


def test_the_new_bundle_acts_as_the_learner_s_weights_do(start):
    run = start()
    take(run, [1, 2])
    acted_with = run.advance().bundle
    take(run, [3, 4], policy=acted_with)
    assert run.advance().report.log_prob_gap < 1e-5


def test_a_policy_that_also_judges_gives_bundles_that_only_act(tmp_path, bundles, start):
    both = write_random_bundle(practised.pointmass(), tmp_path, "both", settings=practised.SMALL)
    run = start(folder="both", policy=both)
    take(run, [1, 2])
    assert run.advance().bundle.manifest.kind == "policy"


# What is taken


def test_an_episode_is_taken_once(start):
    run = start()
    path = record(run, 1)
    assert run.unseen() == [path]
    run.ingest(path)
    assert run.unseen() == []
    with pytest.raises(EpisodeDuplicate, match="was offered before"):
        run.ingest(path)
    run = start()
    with pytest.raises(EpisodeDuplicate):
        run.ingest(path)
    assert (run.episodes_taken, run.buffered, len(journal(run))) == (1, 12, 1)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"mode": Mode.EVALUATE}, EpisodeInvalid, "expected mode PRACTICE, found EVALUATE"),
        ({"mode": Mode.COLLECT}, EpisodeInvalid, "expected mode PRACTICE, found COLLECT"),
        ({"outcome": Outcome.DISCARDED}, EpisodeInvalid, "found DISCARDED"),
        ({"end_reason": EndReason.FAULT}, EpisodeInvalid, "after FAULT"),
        ({"truth": b"0"}, EpisodeInvalid, "ground truth"),
        ({"temperature": 0.0}, EpisodeInvalid, "acted greedily"),
        ({"human": range(12)}, EpisodeInvalid, "expected steps of one policy"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_once_and_for_all(start, changes, error, words):
    run = start()
    path = record(run, 1, **changes)
    with pytest.raises(error, match=words):
        run.ingest(path)
    assert (run.episodes_taken, run.episodes_refused, run.buffered) == (0, 1, 0)
    assert journal(run)[0]["reason"] == error.reason
    assert words in journal(run)[0]["message"]
    run = start()
    assert run.unseen() == []
    assert run.episodes_refused == 1


def test_another_robot_s_episode_is_refused(start):
    run = start()
    path = dots.record(run.folder.episodes, dots.episode(0), mode=Mode.PRACTICE)
    with pytest.raises(EmbodimentMismatch, match="this run is for 'pointmass'"):
        run.ingest(path)


def test_a_file_that_was_cut_off_is_refused(start):
    run = start()
    path = record(run, 1)
    file = path / f"{path.name}.mcap"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(EpisodeTruncated):
        run.ingest(path)
    assert journal(run)[0]["reason"] == Reason.EPISODE_TRUNCATED


def test_a_policy_of_another_run_is_stale(start, bundles, tmp_path):
    run = start()
    other = write_random_bundle(practised.pointmass(), tmp_path, "policy", 7, settings=practised.SMALL)
    with pytest.raises(EpisodeStale, match="is not of this run"):
        run.ingest(record(run, 1, policy=other))
    assert journal(run)[0]["reason"] == Reason.EPISODE_STALE


def test_a_policy_that_is_too_many_versions_old_is_stale(start, bundles):
    run = start(RunSettings(replace(PRACTICE, max_staleness=1)))
    take(run, [1, 2])
    run.advance()
    take(run, [3, 4], policy=bundles["policy"])  # One version old: still fine.
    run.advance()
    with pytest.raises(EpisodeStale, match="version 0, the newest is 2, and max_staleness is 1"):
        run.ingest(record(run, 5, policy=bundles["policy"]))
    assert run.episodes_refused == 1


def test_whatever_an_odd_episode_raises_is_a_refusal_and_not_the_end_of_the_run(start, monkeypatch):
    run = start()
    path = record(run, 1)

    def odd(*_):
        raise ZeroDivisionError("odd")

    monkeypatch.setattr("efm_learner.practice_run.rollout_of", odd)
    with pytest.raises(EpisodeInvalid, match="ZeroDivisionError: odd"):
        run.ingest(path)
    assert journal(run)[0]["reason"] == Reason.INTERNAL
    assert run.unseen() == []


def test_a_verifier_that_is_part_of_the_reward_is_refused(start, bundles, tmp_path):
    joined = recalibrated(bundles["reward"], tmp_path, training={"members": [bundles["verifier"].id]})
    for reward, verifier in ((bundles["reward"], bundles["reward"]), (joined, bundles["verifier"])):
        with pytest.raises(BadRequest, match="train one apart"):
            start(reward=reward, verifier=verifier)


def test_the_verifier_is_asked_about_detected_successes_only(start, bundles):
    run = start()
    assert run.ingest(record(run, 1, detected=True)).rollout.verified is True  # Its threshold is 1000 steps.
    assert run.ingest(record(run, 2)).rollout.verified is False
    blind = start(folder="blind", verifier=None)
    assert blind.ingest(record(blind, 1, detected=True)).rollout.verified is None
    assert blind.alarm == BLIND and not blind.message
    assert run.message == ""


# The end


def test_the_budget_ends_a_run_and_a_greater_one_goes_on(start):
    run = start(replace(TWO_EPISODES, iterations=1))
    take(run, [1, 2])
    newest = run.advance().bundle
    assert run.stopped
    assert run.message == "the run's budget is spent"
    assert run.bundle.id == newest.id
    late = record(run, 3)
    with pytest.raises(LearnerPaused, match="this run is over"):
        run.ingest(late)
    run = start(replace(TWO_EPISODES, iterations=2))
    assert not run.stopped
    assert run.unseen() == [late]
    run.ingest(late)
    take(run, [4])
    run.advance()
    assert run.stopped
    settings = json.loads((run.folder.path / "settings.json").read_text())
    assert settings["iterations"] == 2


def test_the_number_of_episodes_is_a_budget_too(start):
    run = start(replace(TWO_EPISODES, episodes=1))
    take(run, [1])
    assert run.stopped
    assert start(replace(TWO_EPISODES, episodes=1)).stopped


def test_instant_detections_stop_the_run_before_it_learns_from_them(start, bundles):
    run = start()
    first = None
    for number in range(10):
        first = run.ingest(record(run, number, steps=1, detected=True))
    assert first is not None
    assert run.stopped
    assert run.trainer.updates == 0
    assert "the detector fires on the start state" in run.message
    assert run.bundle.id == bundles["policy"].id
    run = start()
    assert run.stopped
    assert "the detector fires on the start state" in run.alarm


def test_practice_past_the_peak_ends_with_the_best_version(start):
    run = start(RunSettings(PRACTICE, GuardSettings(window=8, significance=3.0)))
    number, kept = 0, {}
    while not run.stopped:
        for _ in range(4):
            rising = run.version < 6
            run.ingest(record(run, number, detected=rising or number % 4 == 0))
            number += 1
        kept[run.version] = run.bundle.id
        run.advance()
        assert run.version < 20
    assert "good episodes fell from 8 of 8" in run.message
    assert run.bundle.id == run.best_id == kept[1]  # The first full window of nothing but good episodes.
    again = start(RunSettings(PRACTICE, GuardSettings(window=8, significance=3.0)))
    assert again.stopped
    assert again.bundle.id == kept[1]


def test_a_guard_that_is_off_lets_the_run_go_on(start):
    run = start(RunSettings(PRACTICE, GuardSettings(enabled=False)))
    for number in range(12):
        run.ingest(record(run, number, steps=2, detected=True))
    assert not run.stopped
    run.advance()
    assert "the detector fires on the start state" in run.alarm


def test_what_a_person_or_a_safety_stop_cut_short_says_nothing_about_the_policy(start):
    run = start()
    take(run, [1], end_reason=EndReason.PERSON)
    take(run, [2], end_reason=EndReason.SAFETY)
    assert run.guard.state()["tallies"] == {}
    assert run.buffered == 24


# Bundles


def test_no_bundle_that_may_still_be_asked_for_is_ever_removed(start, bundles):
    run = start(RunSettings(replace(PRACTICE, max_staleness=1)))
    rng = np.random.default_rng(0)
    number = 0
    for _ in range(20):
        for _ in range(2):
            run.ingest(record(run, number, detected=bool(rng.random() < 0.5)))
            number += 1
        run.advance()
        there = {path.name for path in run.folder.bundles.iterdir()}
        newest = [run._versions[v] for v in sorted(run._versions)[-KEPT_BUNDLES:]]
        assert {bundles["policy"].id, run.bundle.id, run.best_id, *newest} <= there
        assert len(there) <= 2 * KEPT_BUNDLES + 1
    for path in run.folder.bundles.iterdir():
        load_bundle(path)


def test_with_much_staleness_allowed_more_bundles_stay(start):
    run = start(RunSettings(replace(PRACTICE, max_staleness=8)))
    for number in range(0, 24, 2):
        take(run, [number, number + 1])
        run.advance()
    newest = {run._versions[v] for v in sorted(run._versions)[-9:]}
    assert newest <= {path.name for path in run.folder.bundles.iterdir()}


# Opening a run


def test_a_run_has_one_owner(start, tmp_path, bundles):
    start()
    with pytest.raises(SpoolLocked, match="owned by process .*; wait for it or stop it"):
        PracticeRun(tmp_path / "run", **bundles, settings=TWO_EPISODES)


def test_other_settings_or_bundles_are_refused_by_name(start, bundles, tmp_path):
    start()
    with pytest.raises(BadRequest, match=r"begun with other settings: practice\.gamma was 0\.9, is 0\.5; go"):
        start(RunSettings(replace(PRACTICE, gamma=0.5)))
    other = write_random_bundle(
        practised.pointmass(), tmp_path, "reward", 9, settings=practised.SMALL, success_threshold=1.0
    )
    with pytest.raises(BadRequest, match=f"reward was '{bundles['reward'].id}', is '{other.id}'"):
        start(reward=other)
    with pytest.raises(BadRequest, match="verifier was"):
        start(verifier=None)
    start()


def test_a_run_of_a_version_that_lacked_a_setting_is_refused_with_its_name(start):
    run = start()
    settings = run.folder.path / "settings.json"
    run.close()
    found = json.loads(settings.read_text())
    del found["practice"]["cap_at_start"]
    settings.write_text(json.dumps(found))
    told = r"other settings: practice\.cap_at_start was unknown, is False; go on with the same version of EFM"
    with pytest.raises(BadRequest, match=told):
        start()


def test_settings_are_written_as_a_whole(start, tmp_path):
    run = start()
    text = (run.folder.path / "settings.json").read_text()
    run.close()
    (run.folder.path / ".settings.json.partial").write_text('{"half')
    (run.folder.path / "settings.json").unlink()
    run = start()
    assert (run.folder.path / "settings.json").read_text() == text
    assert not (run.folder.path / ".settings.json.partial").exists()


def test_damaged_settings_are_an_error_and_not_a_new_run(start):
    run = start()
    (run.folder.path / "settings.json").write_text('{"half')
    with pytest.raises(BadRequest, match="expected settings in JSON"):
        start()


def test_bundles_of_the_wrong_kind_or_robot_are_refused(start, bundles, tmp_path):
    with pytest.raises(BundleInvalid, match="expected a policy to practise with"):
        start(policy=bundles["reward"])
    with pytest.raises(BundleInvalid, match="expected a calibrated reward"):
        start(reward=bundles["policy"])
    foreign = write_random_bundle(dots.embodiment(), tmp_path, "reward", settings=practised.SMALL)
    with pytest.raises(EmbodimentMismatch):
        start(reward=foreign)
