"""The training loop: a step a batch, until the steps, epochs or seconds of the config are over."""

import copy
import dataclasses
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ranksearch.finetune.atcd import Composed
from ranksearch.finetune.average import Average
from ranksearch.finetune.batches import Batch, autocast
from ranksearch.finetune.blocks import BlockTeacher, outputs_of
from ranksearch.finetune.checkpoint import load_checkpoint, save_checkpoint
from ranksearch.finetune.correlation import primary_correlation
from ranksearch.finetune.divergence import Watch
from ranksearch.finetune.loss import batch_loss
from ranksearch.finetune.schedule import learning_rate, make_optimizer
from ranksearch.finetune.sparsity import Thinning
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
    dense: nn.Module | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[float, float], None] | None = None,
    looks: Mapping[float, Callable[[nn.Module], None]] = types.MappingProxyType({}),
) -> float:
    """Train `model` in place, for one step a batch at most. Returns the last loss.

    plan, layers, dense: what was compressed, the dense model's layers and itself, which is left as it is. ATCD by
    projection needs the first two, the sparsity schedule and the distillation of blocks all three.
    checkpoint: a file that takes the state every minute. Where it is there, training goes on from it, and ends
    with the weights that it would have had uninterrupted (seconds as a bound apart); `batches` are then all of them
    again. It stays when training is over: remove it when the result is kept.
    on_step: hears after every step which part of the training is done, 0 to 1, and the loss.
    looks: part of the training -> what takes a copy of the model then, as it would be if training were over. What it
    raises ends the training.

    Raises NonFiniteError at the first loss that is NaN or infinite, DivergedError where it stays worse than at the
    start for long, ConfigError where the checkpoint is another's.
    """
    composed = Composed(model, plan, layers) if plan and config.atcd == "project" else None
    thinning = _thinning(model, task, config, plan, layers, dense)
    trained = composed.dense if composed else thinning.model if thinning else model
    training = _Training(trained, task, config, device, _teacher(config, plan, dense, device))
    key = key_of({"finetune": config, "plan": plan or Plan()})
    if checkpoint and (state := load_checkpoint(checkpoint, key)):
        training.load_state(state)
    saved = perf_counter()
    start = saved - training.seconds
    training.model.train()
    training.looks = [(part, look) for part, look in sorted(looks.items()) if part > training.progress]
    for batch in islice(batches, training.step, None):
        if training.progress >= 1:
            break
        training.take(batch)
        if composed and training.step % config.atcd_period == 0:
            composed.project()
        training.seconds = perf_counter() - start
        if thinning and thinning.drop(training.progress):
            training.watch.begin_again()
        if on_step:
            on_step(training.progress, training.loss)
        training.be_looked_at()
        if checkpoint and perf_counter() - saved >= SAVE_SECONDS:
            save_checkpoint(checkpoint, key, training.state())
            saved = perf_counter()
    training.average.write()
    if composed:
        composed.write()
    if thinning:
        thinning.write()
    model.eval()
    return training.loss


def _thinning(
    model: nn.Module,
    task: Task,
    config: FinetuneConfig,
    plan: Plan | None,
    layers: Iterable[FoundLayer],
    dense: nn.Module | None,
) -> Thinning | None:
    """None where no steps come that could make up for what goes."""
    if not plan or dense is None or not config.sparsity_until or config.num_steps(len(task.train)) == 0:
        return None
    return Thinning(model, plan, layers, dense, until=config.sparsity_until, init=config.init)


def _teacher(
    config: FinetuneConfig, plan: Plan | None, dense: nn.Module | None, device: torch.device
) -> BlockTeacher | None:
    if not plan or dense is None or not config.block_distillation:
        return None
    return BlockTeacher(dense, plan, config.precision, device)


class _Training:
    """All that changes from step to step."""

    def __init__(
        self, model: nn.Module, task: Task, config: FinetuneConfig, device: torch.device, teacher: BlockTeacher | None
    ) -> None:
        self.model, self.config, self.device, self.teacher = model, config, device, teacher
        self.num_steps = config.num_steps(len(task.train))
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(parameters, config)
        self.average = Average(parameters, config.ema)
        self.watch = Watch()
        self.looks: list[tuple[float, Callable[[nn.Module], None]]] = []  # those to come
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
        blocks = self.teacher.blocks if self.teacher else ()
        with autocast(config.precision, self.device), outputs_of(self.model, blocks) as of_blocks:
            outputs = in_float32(forward(self.model, batch.inputs))
        loss = self._loss_of(outputs, batch)
        if self.teacher:
            loss = loss + config.block_distillation * self.teacher.distance(of_blocks, batch.inputs)
        self.loss = float(loss.detach())
        self.watch.look(self.loss, self.progress)
        if config.correlation_weight and self.step % config.correlation_period == 0:
            loss = loss + config.correlation_weight * primary_correlation(self.model)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        if config.ema:
            self.average.update()

    def be_looked_at(self) -> None:
        """When it is time, by the next of `looks`."""
        if self.looks and self.progress >= self.looks[0][0]:
            _, look = self.looks.pop(0)
            look(self._copied())

    def _copied(self) -> nn.Module:
        """The model as it would be if training were over; nothing of it is shared."""
        twin = copy.deepcopy(self.model)
        trained = [p for p in twin.parameters() if p.requires_grad]
        for value, parameter in zip(self.average.values, trained, strict=False):
            parameter.data.copy_(value)
        return twin.eval()

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
