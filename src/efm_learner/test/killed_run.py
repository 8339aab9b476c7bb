"""Run by test_practice_run.py: works on a practice run in child processes that are killed again and again.

    killed_run.py RUN POLICY REWARD VERIFIER KILLS

Every other child is killed (SIGKILL) at a random one of its writes (before or after fsync, rename, unlink and
others), the rest at a random time. The last child may finish. Prints {"killed": number} as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time

import torch
from practised import TWO_EPISODES

from efm_core.bundle import load_bundle
from efm_learner.export import OnnxExporter, load_network
from efm_learner.practice_run import PracticeRun

WRITES = 60  # Roughly those of two iterations.
LONGEST_S = 0.6


def work(folder: str, bundles: list, exporter: OnnxExporter) -> None:
    """Takes everything that arrived, as the learner node does."""
    run = PracticeRun(folder, *bundles, settings=TWO_EPISODES, exporter=exporter)
    for path in run.unseen():
        if run.ready:
            run.advance()
        run.ingest(path)
    if run.ready:
        run.advance()


def die_at_write(number: int) -> None:
    """Makes this process die at one of its next writes, before or after it."""
    left = [number]

    def deadly(function):
        def wrapped(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))


def main() -> None:
    folder, *paths, kills = sys.argv[1:]
    torch.set_num_threads(1)
    bundles = [load_bundle(path) for path in paths]
    exporter = OnnxExporter("policy")
    exporter.prepare(load_network(bundles[0]))
    rng = random.Random(0)
    killed, kept = 0, f"{folder}.before"
    while True:
        last = killed >= int(kills)
        if not last:  # So that there is always work left to be killed in.
            shutil.copytree(folder, kept, dirs_exist_ok=True)
        child = os.fork()
        if child == 0:
            try:
                if not last and killed % 2 == 0:
                    die_at_write(rng.randrange(1, WRITES))
                work(folder, bundles, exporter)
                os._exit(0)
            except BaseException as error:  # noqa: BLE001 - the parent tells it
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        if not last and killed % 2:
            time.sleep(rng.uniform(0.0, LONGEST_S))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        rng.random()
        if os.WIFSIGNALED(status):
            killed += 1
        elif os.WEXITSTATUS(status):
            sys.exit("a child failed")
        elif last:
            break
        else:  # It was faster than its death: that work is done again.
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
    print(json.dumps({"killed": killed}))


if __name__ == "__main__":
    main()
