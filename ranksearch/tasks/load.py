"""A task from what a user named (`build_task`) or has in hand (`task_from`)."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.errors import ConfigError, DataError, ModelError
from ranksearch.tasks.classification import classification_task
from ranksearch.tasks.data import Data
from ranksearch.tasks.example import ExampleNet, example_model
from ranksearch.tasks.metrics import Metric, find_metric
from ranksearch.tasks.models import load_weights, model_of_factory, torchvision_model
from ranksearch.tasks.resolve import resolve
from ranksearch.tasks.sources import load_data
from ranksearch.tasks.task import Task
from ranksearch.tasks.trained import TrainRecipe, trained

__all__ = ["build_task", "resolve", "task_from"]

EXAMPLE_MODEL, EXAMPLE_DATA = "example", "digits"
TORCHVISION = "torchvision"


def build_task(
    *,
    model: str | None = None,
    weights: str | None = None,
    data: str | None = None,
    metric: str | None = None,
    normalize: str = "dataset",
    seed: int = 0,
    train: str | None = None,
    cache_dir: Path | None = None,
) -> Task:
    """The task that texts name; no model means the built-in example.

    model: `example`, `torchvision:NAME`, `module:function`, `file.py:function` (a model, or a whole Task).
    weights: a safetensors file or a saved state dict. metric: `module:function`.
    data, normalize, seed: see `load_data`; `seed` also decides random weights.
    train: for how long, or how, to train the model first: see `TrainRecipe.parse`.
    cache_dir: where models that were trained here, the example among them, are kept.
    Raises ModelError, DataError or ConfigError.
    """
    if model is None or model == EXAMPLE_MODEL:
        if train is not None:
            raise ConfigError(f"train is {train!r}; the example comes trained: leave it out, or name a model")
        return _example(weights, data, metric, normalize, cache_dir)
    if train is not None and weights is not None:
        raise ConfigError(f"train is {train!r} and weights are {weights!r}; give one of them")
    recipe = None if train is None else TrainRecipe.parse(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        task = _task(model, weights, data, metric, normalize, seed)
    return task if recipe is None else trained(task, recipe, seed=seed, cache_dir=cache_dir)


def _task(model: str, weights: str | None, data: str | None, metric: str | None, normalize: str, seed: int) -> Task:
    if data is None:
        return _whole_task(model, weights, metric)
    score, metric_name = find_metric(metric)
    found = load_data(data, normalize=normalize, seed=seed)
    net = _model(model, found, has_weights=weights is not None)
    if isinstance(net, Task):
        raise DataError(f"{model} returns a Task, which brings its own data; leave out data {data!r}")
    if weights is not None:
        load_weights(net, weights)
    return classification_task(net, found, score, metric_name=metric_name, model_name=_name(model))


def task_from(
    model: nn.Module | Task,
    data: Any = None,
    metric: str | Metric | None = None,
    *,
    normalize: str = "dataset",
    seed: int = 0,
) -> Task:
    """The task of a model in hand, which is copied and stays as it is.

    data: text as for `load_data`, or (train, validation[, test]); None only where `model` is a Task already.
    Raises ModelError, DataError or ConfigError.
    """
    if isinstance(model, Task):
        if data is not None:
            raise DataError("a Task brings its own data; leave data out")
        return _with_metric(model, metric)
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module or a ranksearch.Task")
    if data is None:
        raise DataError("no data given; give text such as 'cifar10:./data', or (train, validation)")
    score, metric_name = find_metric(metric)
    found = load_data(data, normalize=normalize, seed=seed)
    copied = copy.deepcopy(model)
    return classification_task(copied, found, score, metric_name=metric_name, model_name=type(model).__name__)


def _example(weights: str | None, data: str | None, metric: str | None, normalize: str, cache: Path | None) -> Task:
    if data not in (None, EXAMPLE_DATA):
        raise ModelError(f"the example model knows only {EXAMPLE_DATA!r}, not data {data!r}; name your model with it")
    score, metric_name = find_metric(metric)
    found = load_data(EXAMPLE_DATA, normalize=normalize)
    if normalize != "dataset":
        raise DataError(f"normalize is {normalize!r}; the example model was trained with 'dataset': leave it out")
    net = example_model(cache) if weights is None else ExampleNet()
    if weights is not None:
        load_weights(net, weights)
    return classification_task(net, found, score, metric_name=metric_name, model_name=EXAMPLE_MODEL)


def _whole_task(model: str, weights: str | None, metric: str | None) -> Task:
    """The Task that a factory returns; without data a model alone is not enough."""
    task = None if model.startswith(f"{TORCHVISION}:") else model_of_factory(model, num_classes=None)
    if not isinstance(task, Task):
        raise DataError(f"no data given for model {model!r}; name data such as cifar10:./data or module:function")
    if weights is not None:
        load_weights(task.model, weights)
        task = replace(task)  # checks that the model still runs
    return _with_metric(task, metric)


def _with_metric(task: Task, metric: str | Metric | None) -> Task:
    if metric is None:
        return task
    score, metric_name = find_metric(metric)
    return replace(task, metric=score, metric_name=metric_name)


def _model(text: str, data: Data, *, has_weights: bool) -> nn.Module | Task:
    kind, _, name = text.partition(":")
    if kind != TORCHVISION:
        return model_of_factory(text, num_classes=data.num_classes, in_channels=_channels(data))
    channels = _channels(data)
    if channels is None:
        shape = data.input_shape or "no single tensor"
        raise ModelError(f"{text} takes images (C, H, W); the data's examples are {shape}")
    return torchvision_model(name, num_classes=data.num_classes, in_channels=channels, pretrained=not has_weights)


def _channels(data: Data) -> int | None:
    """Of images (C, H, W)."""
    shape = data.input_shape
    return shape[0] if shape is not None and len(shape) == 3 else None


def _name(text: str) -> str:
    """The part of a reference that names the model in a study's name."""
    return text.rpartition(":")[2]
