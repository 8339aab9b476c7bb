"""The training loop of stage 1: tables of samples in, two sets of weights out.

It runs on one process or on several (`torchrun` or `accelerate launch`), which then share each batch; resumes
from its last checkpoint; and saves one when it is told to stop. Where the tables come from is not its
business, nor what becomes of the weights: that is `sft.py`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import accelerate
import numpy as np
import torch
from tqdm import tqdm

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest
from efm_core.files import replace_file
from efm_learner.batches import BatchMaker
from efm_learner.checkpoint import TrainingState, load_best, load_checkpoint, save_best, save_checkpoint
from efm_learner.metrics import MetricsWriter
from efm_learner.network import EfmNetwork, build_network
from efm_learner.objectives import SftObjective, Targets
from efm_learner.samples import StepTable
from efm_learner.sft_config import SftConfig
from efm_learner.validation import validate
from efm_learner.words import with_word_table

POLICY, REWARD = "policy", "reward"

_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM or SIGINT) and has saved a checkpoint."""


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Attributes:
        policy: Network with the weights chosen for the policy.
        reward: Network with the weights chosen for the reward.
        state: Steps and losses of the choices.
        samples_per_second: Rows of batches per second of wall time, all processes together.
    """

    policy: EfmNetwork
    reward: EfmNetwork
    state: TrainingState
    samples_per_second: float


def train(
    config: SftConfig,
    embodiment: Embodiment,
    table: StepTable,
    held_out: StepTable | None,
    out: Path,
    on_step: Callable[[int, float], None] | None = None,
) -> Trained:
    """Trains one network for both objectives.

    Args:
        config: Settings; its paths are not used.
        embodiment: Decides inputs and outputs of the network.
        table: Training data.
        held_out: Data that choose the weights; None takes the last weights.
        out: Folder of the run: checkpoints, best weights, metrics.
        on_step: Called with step and loss after each step.

    Raises:
        Interrupted: SIGTERM or SIGINT came; the next call with the same arguments goes on.
        BadRequest: The data lack what the settings ask for, or `out` holds another training.
    """
    torch.set_num_threads(config.threads)
    # Of a pretrained model some weights are of no use here, such as layers behind the one that is read.
    unused = accelerate.DistributedDataParallelKwargs(find_unused_parameters=config.backbone["name"] == "vlm")
    accelerator = accelerate.Accelerator(
        cpu=config.device == "cpu", mixed_precision=config.precision, kwargs_handlers=[unused]
    )
    torch.manual_seed(config.seed)
    instructions = [*table.instructions, *(held_out.instructions if held_out else [])]
    network = build_network(embodiment, with_word_table(config.backbone, instructions), config.heads)
    objective = SftObjective(network, config.instruction_weight, config.foresight_weight)
    optimizer = torch.optim.AdamW(
        [p for p in objective.parameters() if p.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    batches = BatchMaker(
        table.on(accelerator.device),
        network,
        config.mixture,
        config.labelling,
        config.seed,
        accelerator.num_processes,
        config.foresight_weight > 0,
    )
    lasting = {**config.lasting(), "data": data_digest(table)}
    state = load_checkpoint(out, objective, optimizer, lasting)
    held_out = held_out and held_out.on(accelerator.device)
    chooser = _Chooser(config, objective, held_out, batches.censored_share, state, out)
    report = _Report(config, out, state.step, accelerator.is_main_process)
    wrapped, prepared = accelerator.prepare(objective, optimizer)
    started, first_step = time.monotonic(), state.step

    def batch(step: int) -> tuple[dict[str, torch.Tensor], Targets]:
        plan = batches.plan(step).part(accelerator.process_index, accelerator.num_processes)
        inputs, targets = batches.tensors(plan)
        if accelerator.device.type == "cuda":
            inputs = {name: v if v.is_cuda else v.pin_memory() for name, v in inputs.items()}
        return inputs, targets

    with _stop_signals() as stop_asked, closing(_one_ahead(batch, state.step, config.steps)) as made:
        for inputs, targets in made:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(state.step)
            wrapped.train()
            losses = wrapped(
                {name: value.to(accelerator.device, non_blocking=True) for name, value in inputs.items()},
                targets.to(accelerator.device),
            )
            prepared.zero_grad(set_to_none=True)
            accelerator.backward(losses["loss"])
            if config.gradient_norm:
                accelerator.clip_grad_norm_(wrapped.parameters(), config.gradient_norm)
            prepared.step()
            state.step += 1

            done = state.step == config.steps
            stopping = _any_process(accelerator, stop_asked())
            validating = done or state.step % config.validate_every == 0
            if validating or on_step is not None:
                means = {
                    name: float(accelerator.reduce(loss.detach(), "mean")) for name, loss in losses.items()
                }
                if not np.isfinite(means["loss"]):
                    raise BadRequest(
                        f"training: the loss of step {state.step} is {means['loss']}; lower the learning rate"
                    )
                if on_step is not None:
                    on_step(state.step, means["loss"])
            if validating and accelerator.is_main_process:
                report.tell(state.step, {**means, **chooser.choose(done)})
            report.advance()
            if accelerator.is_main_process and (
                stopping or done or state.step % config.checkpoint_every == 0
            ):
                save_checkpoint(out, state, objective, optimizer)
            if stopping and not done:
                report.close()
                raise Interrupted(f"stopped after step {state.step} of {config.steps}; run again to go on")
    report.close()
    # Only the main process chose; the others read its files.
    (state.best,) = accelerate.utils.broadcast_object_list([state.best])
    seconds = max(time.monotonic() - started, 1e-9)
    rate = (state.step - first_step) * sum(batches.counts) / seconds
    return Trained(chooser.network(POLICY), chooser.network(REWARD), state, rate)


def data_digest(table: StepTable) -> str:
    """Returns 16 hex digits that change with the episodes that a table was made of."""
    text = json.dumps([table.episode_ids, len(table), table.instructions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Chooser:
    """Validates, and keeps the best weights for the policy and for the reward."""

    def __init__(
        self,
        config: SftConfig,
        objective: SftObjective,
        held_out: StepTable | None,
        censored_share: float,
        state: TrainingState,
        out: Path,
    ) -> None:
        self._config, self._objective, self._held_out = config, objective, held_out
        self._state, self._out, self._censored_share = state, out, censored_share

    def choose(self, last: bool) -> dict[str, float]:
        """Returns the validation losses of the current weights, and keeps the weights where they are best."""
        losses: dict[str, float] = {}
        candidates = {POLICY: float("nan"), REWARD: float("nan")}
        if self._held_out is not None:
            found = validate(self._objective.network, self._held_out, self._censored_share)
            losses = {f"validation_{name}": value for name, value in asdict(found).items()}
            candidates = {POLICY: found.cloning, REWARD: found.steps_to_go}
        for choice, loss in candidates.items():
            best = self._state.best.get(choice)
            newest = np.isnan(loss) or (choice == POLICY and self._config.policy_weights == "last")
            if (newest and last) or (not newest and (best is None or loss < best["loss"])):
                self._state.best[choice] = {
                    "step": self._state.step,
                    "loss": None if np.isnan(loss) else loss,
                    "file": save_best(self._out, choice, self._state.step, self._objective),
                }
        return losses

    def network(self, choice: str) -> EfmNetwork:
        """Returns a copy of the network with the weights of a choice."""
        best = copy.deepcopy(self._objective).cpu()
        load_best(self._out, self._state, choice, best)
        return best.network.eval()


class _Report:
    """Progress bar or log lines, metrics.jsonl and TensorBoard; silent in all processes but the main one."""

    def __init__(self, config: SftConfig, out: Path, step: int, main_process: bool) -> None:
        self._steps = config.steps
        self._metrics: MetricsWriter | None = None
        if main_process:
            self._metrics = MetricsWriter(out, step)
            text = json.dumps(config.to_dict(), indent=2, default=list)
            replace_file(out / "config.json", f"{text}\n".encode())
        shown = main_process and sys.stderr.isatty()
        self._bar = tqdm(total=config.steps, initial=step, unit="step", disable=not shown)

    def advance(self) -> None:
        self._bar.update()

    def tell(self, step: int, values: dict[str, float]) -> None:
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        text = ", ".join(f"{name} {value:.3f}" for name, value in finite.items())
        if self._bar.disable:
            _log.info("step %d of %d: %s", step, self._steps, text)
        self._bar.set_postfix_str(text)
        if self._metrics is not None:
            self._metrics.write(step, {f"sft/{name}": value for name, value in finite.items()})

    def close(self) -> None:
        self._bar.close()
        if self._metrics is not None:
            self._metrics.close()


def _one_ahead(
    make: Callable[[int], tuple[dict[str, torch.Tensor], Targets]], first: int, stop: int
) -> Generator[tuple[dict[str, torch.Tensor], Targets], None, None]:
    """Yields the batches of steps `first` to `stop`; each is made while the one before is trained on."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, first)
        for step in range(first, stop):
            batch = ahead.result()
            if step + 1 < stop:
                ahead = pool.submit(make, step + 1)
            yield batch


def _any_process(accelerator: accelerate.Accelerator, asked: bool) -> bool:
    """Returns whether any process was asked to stop, so that all stop after the same step."""
    if accelerator.num_processes == 1:
        return asked
    flag = torch.tensor([float(asked)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item() > 0)


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and SIGINT into a flag while it lasts; a second one acts as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
