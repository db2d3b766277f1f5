"""A task's dense model trained on the task's own train split, once: the start for whoever has no trained weights.

    ranksearch run --model ranksearch.nets:vgg11 --data cifar10:./data --train 5
    ranksearch run … --train epochs=100,learning_rate=0.1,schedule=step,batch_size=100,weight_decay=0

What is trained is kept in the user's cache folder, named by everything that decides it: the model with its initial
weights, the data, the metric's name, the recipe, the seed. A change of code alone (of a forward function, a loss, an
augmentation) is not seen.
"""

import copy
import dataclasses
import logging
import math
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Self, TypeVar

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR

from ranksearch.errors import ConfigError, ModelError
from ranksearch.inputs import forward, in_float32, to_device
from ranksearch.records import Record, key_of, nearest
from ranksearch.tasks.data import Augment
from ranksearch.tasks.split import Split
from ranksearch.tasks.task import Task

__all__ = ["TrainRecipe", "cached", "fit", "trained"]

log = logging.getLogger(__name__)

# optimizer -> its learning rate where the recipe gives none
LEARNING_RATES: Mapping[str, float] = types.MappingProxyType({"sgd": 0.05, "adam": 1e-3})
SCHEDULES = ("onecycle", "step", "constant")
TOLD_SECONDS = 10  # between two lines of progress, at least
STEP = 0.3  # of the training: the "step" schedule divides the learning rate by ten after each

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRecipe(Record):
    """How a dense model is trained. SGD has Nesterov momentum of 0.9.

    schedule: "onecycle" (Smith and Topin 2018), "step" (a tenth after every 30 % of the training) or "constant".
    learning_rate: at its highest; None is 0.05 for SGD, 0.001 for Adam.
    """

    epochs: int
    optimizer: str = "sgd"
    learning_rate: float | None = None
    batch_size: int = 128
    weight_decay: float = 5e-4
    schedule: str = "onecycle"

    def __post_init__(self) -> None:
        rules = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "optimizer": (self.optimizer in LEARNING_RATES, f"one of {', '.join(LEARNING_RATES)}"),
            "learning_rate": (self.learning_rate is None or self.learning_rate > 0, "more than 0"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "schedule": (self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"train: {name} is {getattr(self, name)!r}; it must be {rule}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `5` (epochs) or `epochs=5,optimizer=adam,…`. Raises ConfigError."""
        pairs = [part.partition("=") for part in (text if "=" in text else f"epochs={text}").split(",")]
        given = {name.strip(): value.strip() for name, _, value in pairs}
        allowed = {field.name: _reader(field) for field in dataclasses.fields(cls)}
        for name in given:
            if name not in allowed:
                raise ConfigError(f"train: no key {name!r}{nearest(name, allowed)}; allowed are {', '.join(allowed)}")
        if "epochs" not in given:
            raise ConfigError(f"train is {text!r}; say how long: epochs=N, or N alone")
        return cls(**{name: _read(name, value, allowed[name]) for name, value in given.items()})


def _reader(field: "dataclasses.Field[Any]") -> type:
    return field.type if field.type in (int, str) else float  # type: ignore[return-value]


def _read(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "an integer" if kind is int else "a number"
        raise ConfigError(f"train: {name} is {text!r}; it must be {what}") from None


def trained(task: Task, recipe: TrainRecipe, *, seed: int = 0, cache_dir: Path | None = None) -> Task:
    """The task with its model trained further on its train split, from the cache where it was trained before.

    On a GPU where there is one, in bfloat16 where the device multiplies it. Raises ModelError where the loss is not
    finite.
    """
    key = key_of({**task.fingerprint(), **recipe.to_json(), "seed": seed})
    file = (cache_dir or user_cache_path("ranksearch")) / f"trained-{key}.safetensors"
    return dataclasses.replace(
        task, model=cached(file, lambda: copy.deepcopy(task.model), lambda: _train(task, recipe, seed))
    )


def cached(file: Path, untrained: Callable[[], Model], train: Callable[[], Model]) -> Model:
    """The model whose weights lie in `file`; trained and put there where it is missing or damaged. In eval mode.

    Of several processes at once one trains and the others wait. A cache that cannot be written is done without.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            return _loaded(file, untrained()) or _stored(file, train())
    except OSError as error:
        log.warning("trained weights cannot be cached in %s (%s): training", file.parent, error)
        return train().eval()


def _loaded(file: Path, model: Model) -> Model | None:
    try:
        load_model(model, file)
    except (FileNotFoundError, SafetensorError, RuntimeError):  # none yet, or one that was damaged
        return None
    return model.eval()


def _stored(file: Path, model: Model) -> Model:
    unfinished = file.with_suffix(f".{os.getpid()}")
    save_model(model, str(unfinished))
    unfinished.replace(file)
    return model.eval()


def _train(task: Task, recipe: TrainRecipe, seed: int) -> nn.Module:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    log.info("training %s on %s: %d epochs (once; it is cached)", task.model_name, task.data_name, recipe.epochs)
    model = copy.deepcopy(task.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fit(
            model,
            task.train,
            recipe,
            loss=task.loss,
            augment=task.augment,
            seed=seed,
            device=device,
            bfloat16=_multiplies_bfloat16(device),
        )
    return model


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fit(
    model: nn.Module,
    split: Split,
    recipe: TrainRecipe,
    *,
    loss: Callable[[Any, Any], torch.Tensor],
    augment: Augment | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    bfloat16: bool = False,
) -> None:
    """Train in place, in channels-last layout on `device`; the model comes back to the CPU, contiguous.

    `seed` decides order and augmentation. What is left of an epoch after its last whole batch is not seen.
    Raises ModelError at the end of an epoch whose last loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(recipe.batch_size, len(split))
    model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = _optimizer(model, recipe)
    schedule = _schedule(optimizer, recipe, recipe.epochs * (len(split) // size))
    last_told = perf_counter()
    for epoch in range(1, recipe.epochs + 1):
        value = torch.tensor(math.nan)
        for indices in torch.randperm(len(split), generator=generator).split(size)[: len(split) // size]:
            inputs, targets = split.batch(indices)
            inputs = inputs if augment is None else augment(inputs, generator)
            inputs, targets = to_device(inputs, device, layout="channels_last"), to_device(targets, device)
            optimizer.zero_grad()
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
                outputs = forward(model, inputs)
            value = loss(in_float32(outputs), targets)
            value.backward()
            optimizer.step()
            schedule.step()
        if perf_counter() - last_told > TOLD_SECONDS:
            last_told = perf_counter()
            log.info("epoch %d of %d: loss %.3f", epoch, recipe.epochs, value.item())
        if not value.isfinite():
            raise ModelError(f"the loss was {value.item()} in epoch {epoch} of training; give a smaller learning_rate")
    model.cpu().to(memory_format=torch.contiguous_format)


def _optimizer(model: nn.Module, recipe: TrainRecipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate = recipe.learning_rate or LEARNING_RATES[recipe.optimizer]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=recipe.weight_decay, nesterov=True)


def _schedule(optimizer: torch.optim.Optimizer, recipe: TrainRecipe, steps: int) -> LRScheduler:
    if recipe.schedule == "onecycle":
        return OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=steps)
    if recipe.schedule == "step":
        return StepLR(optimizer, max(1, round(STEP * steps)))
    return LambdaLR(optimizer, lambda _: 1.0)
