"""The training loop: a step a batch, until the steps, epochs or seconds of the config are over."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ranksearch.finetune.atcd import Composed
from ranksearch.finetune.average import Average
from ranksearch.finetune.batches import Batch, autocast
from ranksearch.finetune.checkpoint import load_checkpoint, save_checkpoint
from ranksearch.finetune.correlation import primary_correlation
from ranksearch.finetune.divergence import Watch
from ranksearch.finetune.loss import batch_loss
from ranksearch.finetune.schedule import learning_rate, make_optimizer
from ranksearch.inputs import forward, in_float32
from ranksearch.layers import FoundLayer
from ranksearch.records import FinetuneConfig, Plan, key_of
from ranksearch.tasks import Task

__all__ = ["finetune"]

SAVE_SECONDS = 60.0  # between two checkpoints


def finetune(
    model: nn.Module,
    batches: Sequence[Batch] | Iterator[Batch],
    task: Task,
    config: FinetuneConfig,
    device: torch.device,
    *,
    plan: Plan | None = None,
    layers: Iterable[FoundLayer] = (),
    checkpoint: Path | None = None,
) -> float:
    """Train `model` in place, for one step a batch at most. Returns the last loss.

    plan, layers: what was compressed, and the dense model's layers; ATCD by projection needs them.
    checkpoint: a file that takes the state every minute. Where it is there, training goes on from it, and ends
    with the weights that it would have had uninterrupted (seconds as a bound apart); `batches` are then all of them
    again. It stays when training is over: remove it when the result is kept.

    Raises NonFiniteError at the first loss that is NaN or infinite, DivergedError where it stays worse than at the
    start for long, ConfigError where the checkpoint is another's.
    """
    composed = Composed(model, plan, layers) if plan and config.atcd == "project" else None
    training = _Training(composed.dense if composed else model, task, config, device)
    key = key_of({"finetune": config, "plan": plan or Plan()})
    if checkpoint and (state := load_checkpoint(checkpoint, key)):
        training.load_state(state)
    saved = perf_counter()
    start = saved - training.seconds
    training.model.train()
    for batch in islice(batches, training.step, None):
        if training.progress >= 1:
            break
        training.take(batch)
        if composed and training.step % config.atcd_period == 0:
            composed.project()
        training.seconds = perf_counter() - start
        if checkpoint and perf_counter() - saved >= SAVE_SECONDS:
            save_checkpoint(checkpoint, key, training.state())
            saved = perf_counter()
    training.average.write()
    if composed:
        composed.write()
    model.eval()
    return training.loss


class _Training:
    """All that changes from step to step."""

    def __init__(self, model: nn.Module, task: Task, config: FinetuneConfig, device: torch.device) -> None:
        self.model, self.config, self.device = model, config, device
        self.num_steps = config.num_steps(len(task.train))
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(parameters, config)
        self.average = Average(parameters, config.ema)
        self.watch = Watch()
        self.step, self.seconds, self.loss = 0, 0.0, float("nan")
        self._loss_of = batch_loss(task, config)

    @property
    def progress(self) -> float:
        """The part that is done: 1 when the first of the bounds is reached."""
        of_steps = 0.0 if self.num_steps is None else self.step / self.num_steps
        return max(of_steps, self.seconds / self.config.seconds if self.config.seconds else 0.0)

    def take(self, batch: Batch) -> None:
        """One step of the optimizer."""
        config = self.config
        self.optimizer.param_groups[0]["lr"] = learning_rate(config, self.progress)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(config.precision, self.device):
            outputs = in_float32(forward(self.model, batch.inputs))
        loss = self._loss_of(outputs, batch)
        self.loss = float(loss.detach())
        self.watch.look(self.loss, self.progress)
        if config.correlation_weight and self.step % config.correlation_period == 0:
            loss = loss + config.correlation_weight * primary_correlation(self.model)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        if config.ema:
            self.average.update()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values,
            "watch": dataclasses.asdict(self.watch),
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
            "random": _random_states(self.device),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values = [value.to(self.device) for value in state["average"]]
        self.watch = Watch(**state["watch"])
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]
        torch.set_rng_state(state["random"][0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"][1], self.device)


def _random_states(device: torch.device) -> list[torch.Tensor]:
    """Dropout and its like draw from these."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
