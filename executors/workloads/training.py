"""Train a network on selfplay data: ``python -m executors.workloads.training --config KEY --data SHARD``."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from executors.workloads import games, net, players
from executors.workloads.contract import (
    EXIT_OK,
    EXIT_STOPPED,
    Arguments,
    Job,
    StopSignal,
    WorkloadError,
    real,
    run,
    whole,
    write_atomically,
)
from executors.workloads.optimizer import AdamW
from executors.workloads.window import Window

CHECKPOINT = "training.pt"
GRADIENT_CLIP = 4.0
MAX_SHARDS = 4096
VALIDATION_CHUNK = 1024
LAST_RATE = 0.1  # of the learning rate, at the end of the cosine


class Trainer:
    """A network, its optimiser, and where in the schedule they are."""

    def __init__(self, network: net.Net, window: Window, chosen: argparse.Namespace, steps: int) -> None:
        self.network = network
        self.window = window
        self.chosen = chosen
        self.steps = steps
        self.step = 0
        self.samples = 0
        self.optimizer = AdamW(list(network.parameters()), weight_decay=chosen.weight_decay)
        self.recent = torch.zeros(2)

    def advance(self) -> None:
        """Do one step: gradient of the policy's and the scores' cross entropy on one batch."""
        batch = self.window.batch(self.chosen.seed, self.step, self.chosen.batch_size)
        policy_loss, value_loss = losses(self.network, *batch)
        torch.autograd.backward(policy_loss + self.chosen.value_weight * value_loss)
        done = self.step / self.steps
        rate = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2
        self.optimizer.step(self.chosen.learning_rate * rate, GRADIENT_CLIP)
        found = torch.stack([policy_loss.detach(), value_loss.detach()]).cpu()
        self.recent = found if self.step == 0 else 0.9 * self.recent + 0.1 * found
        if not bool(torch.isfinite(found).all()):
            raise WorkloadError(
                f"The loss became {found.tolist()} at step {self.step}; lower --learning-rate and train again."
            )
        self.step += 1
        self.samples += len(batch[0])

    @property
    def counts(self) -> dict[str, int]:
        return {"steps": self.step, "samples": self.samples}

    @property
    def metrics(self) -> dict[str, str]:
        policy_loss, value_loss = self.recent.tolist()
        return {
            "loss": f"{policy_loss + self.chosen.value_weight * value_loss:.4f}",
            "policy_loss": f"{policy_loss:.4f}",
            "value_loss": f"{value_loss:.4f}",
        }

    def checkpoint(self, path: Path, purpose: str) -> None:
        """Write everything needed to go on; ``purpose`` names the arguments it is good for."""
        buffer = io.BytesIO()
        state = {
            "purpose": purpose,
            "step": self.step,
            "samples": self.samples,
            "recent": self.recent,
            "optimizer": self.optimizer.state(),
            "weights": self.network.state_dict(),
        }
        torch.save(state, buffer)
        write_atomically(path, buffer.getvalue())

    def resume(self, state: dict[str, Any]) -> None:
        self.step, self.samples = state["step"], state["samples"]
        self.recent = state["recent"]
        self.optimizer.restore(state["optimizer"])
        self.network.load_state_dict(state["weights"])


def losses(network: net.Net, observation: Tensor, policy: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropies of policy and scores over the batch, in nats."""
    logits, log_scores = network(observation)
    log_policy = torch.log_softmax(logits, 1)
    return -(policy * log_policy).sum(1).mean(), -(score * log_scores).sum(1).mean()


def validate(network: net.Net, window: Window) -> dict[str, str]:
    """Losses on the positions held back; no entry when there are none."""
    rows = len(window.validation[0])
    if rows == 0:
        return {}
    sums = torch.zeros(2)
    network.eval()
    with torch.inference_mode():
        for start in range(0, rows, VALIDATION_CHUNK):
            part = [tensor[start : start + VALIDATION_CHUNK] for tensor in window.validation]
            sums += torch.stack(losses(network, part[0], part[1], part[2])).cpu() * len(part[0])
    policy_loss, value_loss = (sums / rows).tolist()
    return {"validation_policy_loss": f"{policy_loss:.4f}", "validation_value_loss": f"{value_loss:.4f}"}


def parser() -> Arguments:
    """The arguments of this program."""
    found = Arguments("training", "Train a network on selfplay data.")
    found.add_argument("--config", required=True, help="such as connect4_2p")
    found.add_argument("--data", type=Path, action="append", default=[], help="a shard; may be repeated")
    found.add_argument("--data-list", type=Path, help="a file with the path of one shard a line")
    found.add_argument("--init", type=Path, help="the model to continue from; default: untrained")
    found.add_argument("--channels", type=whole(1, net.MAX_CHANNELS), default=32, help="without --init")
    found.add_argument("--blocks", type=whole(0, net.MAX_BLOCKS), default=1, help="without --init")
    amount = found.add_mutually_exclusive_group()
    amount.add_argument("--steps", type=whole(1, 100_000_000))
    amount.add_argument("--epochs", type=whole(1, 100_000), help="default: 2 epochs")
    found.add_argument("--batch-size", type=whole(1, 65536), default=256)
    found.add_argument("--learning-rate", type=real(1e-8, 1), default=2e-3)
    found.add_argument("--weight-decay", type=real(0, 1), default=1e-2)
    found.add_argument("--value-weight", type=real(0, 100), default=1.0)
    found.add_argument("--validation-share", type=real(0, 0.9), default=0.05)
    found.add_argument("--checkpoint-steps", type=whole(1), default=500)
    return found


def main(arguments: Sequence[str], stop: StopSignal) -> int:
    """Write ``out/model.pt``; on SIGTERM a checkpoint, from which the next attempt goes on exactly."""
    words = parser()
    chosen = words.parse_args(arguments)
    paths = [*chosen.data, *(_listed(chosen.data_list) if chosen.data_list else [])]
    if not 0 < len(paths) <= MAX_SHARDS:
        words.error(f"{len(paths)} data files are given; 1 to {MAX_SHARDS} are possible")
    device = players.prepare(chosen.threads, chosen.device)
    game = games.load(chosen.config, device)
    if chosen.init:
        network, before = net.load(chosen.init, game)
    else:
        spec = net.NetSpec(game.key, chosen.channels, chosen.blocks)
        network, before = net.untrained(game, spec, chosen.seed), 0
    window = Window.load(game, paths, chosen.validation_share, device)
    steps = chosen.steps or (chosen.epochs or 2) * window.steps_per_epoch(chosen.batch_size)
    trainer = Trainer(network.to(device).train(), window, chosen, steps)
    job = Job.open(chosen.job_dir)
    job.total = {"steps": steps, "samples": steps * min(chosen.batch_size, len(window))}
    saved = job.checkpoint / CHECKPOINT
    purpose = _purpose(chosen, net.encode(network, before), len(window))
    if saved.exists():
        state = net.read(saved)
        # A checkpoint of other arguments or data would give a model that nobody asked for.
        if state.get("purpose") == purpose:
            trainer.resume(state)
    job.progress(trainer.counts, trainer.metrics, force=True)
    while trainer.step < steps:
        if stop.requested:
            trainer.checkpoint(saved, purpose)
            job.progress(trainer.counts, trainer.metrics, force=True)
            return EXIT_STOPPED
        trainer.advance()
        job.progress(trainer.counts, trainer.metrics)
        if trainer.step % chosen.checkpoint_steps == 0:
            trainer.checkpoint(saved, purpose)
    net.save(job.out / "model.pt", network, before + steps)
    metrics = {**trainer.metrics, **validate(network, window), "positions": str(len(window))}
    job.progress(trainer.counts, metrics, force=True)
    output = {"path": "model.pt", "kind": "model", "counts": {"steps": before + steps}}
    job.finish({"counts": trainer.counts, "metrics": metrics, "outputs": [output]})
    return EXIT_OK


def _purpose(chosen: argparse.Namespace, beginning: bytes, rows: int) -> str:
    where = {"job_dir", "threads", "device", "checkpoint_steps", "data", "data_list", "init"}
    words = {name: str(value) for name, value in sorted(vars(chosen).items()) if name not in where}
    return hashlib.sha256(json.dumps([words, rows]).encode() + beginning).hexdigest()


def _listed(path: Path) -> list[Path]:
    try:
        return [Path(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"The list of data files {path} cannot be read: {error}.") from error


if __name__ == "__main__":
    run(main)
