"""A task: a trained model, the data it is judged on, and how it is judged."""

import copy
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ranksearch.errors import DataError, ModelError
from ranksearch.inputs import Inputs, forward, tensors
from ranksearch.tasks.metrics import Metric
from ranksearch.tasks.resolve import one_line
from ranksearch.tasks.split import Split

__all__ = ["Task"]

SAMPLE_SIZE = 32  # examples of a split that go into the fingerprint


@dataclass(kw_only=True)
class Task:
    """All that a search needs to know of a model. It travels to the workers, so all of it must pickle (cloudpickle).

    model: trained and dense; it is moved to the CPU and put into eval mode.
    train, calibration, validation, test: the search sees all but test, which only final tables and exports touch.
    loss: (outputs, targets) -> scalar tensor, what fine-tuning minimises.
    metric: (outputs, targets) -> one score an example, (N,), or one number for all; higher is better.
    example_input: what the model takes, batch dimension 1: a tensor, a tuple (positional) or a dict (keywords) of them.
    augment: (inputs, generator) -> inputs, a random view of a training batch, or None.
    distillation: (student outputs, teacher outputs, temperature) -> scalar tensor, or None for the loss alone.
    Raises ModelError or DataError when the parts do not work together.
    """

    model: nn.Module
    train: Split
    calibration: Split
    validation: Split
    test: Split | None = None
    loss: Callable[[Any, Any], torch.Tensor]
    metric: Metric
    metric_name: str
    example_input: Inputs
    augment: Callable[[Any, torch.Generator], Any] | None = None
    distillation: Callable[[Any, Any, float], torch.Tensor] | None = None
    model_name: str
    data_name: str

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise ModelError(f"the model is a {type(self.model).__name__}; it must be a torch.nn.Module")
        self.model = self.model.cpu().eval()
        for name, split in self.splits.items():
            _check_split(name, split)
        self._check_model()
        self._check_judgement()

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        named = {"train": self.train, "calibration": self.calibration, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def fingerprint(self) -> dict[str, str]:
        """What makes two tasks the same, by part: `model` (architecture), `weights`, `data`, `metric`."""
        return {
            "model": _hash_architecture(self.model),
            "weights": _hash_weights(self.model),
            "data": _hash_data(self.splits),
            "metric": self.metric_name,
        }

    def _check_model(self) -> None:
        try:
            with torch.inference_mode():
                outputs = forward(self.model, self.example_input)
        except Exception as error:
            raise ModelError(f"the model does not run on its example input: {one_line(error)}") from error
        if not all(leaf.isfinite().all() for leaf in tensors(outputs)):
            raise ModelError("the model's output for its example input is NaN or infinite; give trained weights")

    def _check_judgement(self) -> None:
        """Loss and metric on two validation examples, each on the outputs that it will see."""
        inputs, targets = _read(self.validation)
        try:
            with torch.no_grad():
                outputs, training_outputs = forward(self.model, inputs), _training_outputs(self.model, inputs)
        except Exception as error:
            raise ModelError(f"the model does not run on two validation examples: {one_line(error)}") from error
        _check_judge(
            f"metric {self.metric_name}",
            self.metric,
            outputs,
            targets,
            {(): "one number", (2,): "one score an example"},
        )
        _check_judge("loss", self.loss, training_outputs, targets, {(): "a scalar"})


def _read(split: Split) -> tuple[Any, Any]:
    try:
        return split.batch([0, len(split) - 1])
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"validation examples cannot be read: {one_line(error)}") from error


def _training_outputs(model: nn.Module, inputs: Inputs) -> Any:
    """What the model gives in training mode, its buffers (running statistics) and the random state left as they are."""
    copied = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices=[]):
        return forward(copied, inputs)


def _check_judge(
    name: str, judge: Callable[[Any, Any], Any], outputs: Any, targets: Any, allowed: Mapping[tuple[int, ...], str]
) -> None:
    try:
        shape = tuple(torch.as_tensor(judge(outputs, targets)).shape)
    except Exception as error:
        raise DataError(f"the {name} fails on two validation examples: {one_line(error)}") from error
    if shape not in allowed:
        raise DataError(
            f"the {name} gives shape {shape} for two examples; it must give {' or '.join(allowed.values())}"
        )


def _check_split(name: str, split: Split) -> None:
    if not isinstance(split, Split):
        raise DataError(f"the {name} split is a {type(split).__name__}; it must have __len__ and batch(indices)")
    if len(split) == 0:
        raise DataError(f"the {name} split has no examples; at least 1 is needed")


def _hash_architecture(model: nn.Module) -> str:
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # addresses differ from process to process
    shapes = [(name, tuple(getattr(value, "shape", ()))) for name, value in model.state_dict().items()]
    return hashlib.sha256(f"{text}\n{shapes}".encode()).hexdigest()


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        _update(digest, value)
    return digest.hexdigest()


def _hash_data(splits: dict[str, Split]) -> str:
    """Sizes, targets and inputs of some examples of each split. Training inputs that may be drawn anew each time
    (random augmentation in a user's data set) are left out."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(f"{name} {len(split)}".encode())
        indices = torch.linspace(0, len(split) - 1, min(SAMPLE_SIZE, len(split))).long()
        inputs, targets = split.batch(indices)
        is_random = name in ("train", "calibration") and not getattr(split, "fixed", False)
        for leaf in tree_leaves((targets,) if is_random else (inputs, targets)):
            _update(digest, leaf)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        digest.update(repr(value).encode())
        return
    digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
