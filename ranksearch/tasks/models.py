"""Models by name: `example`, `torchvision:NAME`, `module:function`, `file.py:function`; and weights from a file."""

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ranksearch.errors import ModelError
from ranksearch.records import nearest
from ranksearch.tasks.resolve import call, is_reference, one_line, resolve
from ranksearch.tasks.task import Task

__all__ = ["load_weights", "model_of_factory", "torchvision_model"]

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys beneath which training scripts put the state dict
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
AUXILIARY = ("googlenet", "inception_v3")  # have further outputs while training unless told not to


def model_of_factory(text: str, *, num_classes: int | None, in_channels: int | None = None) -> nn.Module | Task:
    """The model (or whole Task) that `module:function` builds, called with those of `num_classes` and `in_channels`
    that it takes and the data tell.

    Raises ModelError when it is not found, fails, wants other arguments or gives something else.
    """
    if not is_reference(text):
        allowed = "example, torchvision:NAME, module:function or file.py:function"
        raise ModelError(f"model is {text!r}{nearest(text, ['example'])}; it must be {allowed}")
    factory = resolve(text, error=ModelError)
    told = {"num_classes": num_classes, "in_channels": in_channels}
    model = call(text, factory, _arguments(text, factory, told), error=ModelError)
    if not isinstance(model, nn.Module | Task):
        raise ModelError(f"{text} gave a {type(model).__name__}; it must return a torch.nn.Module or a ranksearch.Task")
    return model


def _arguments(text: str, factory: Callable[..., Any], told: Mapping[str, int | None]) -> dict[str, int]:
    if isinstance(factory, nn.Module):
        return {}
    parameters = inspect.signature(factory).parameters
    given = {name: number for name, number in told.items() if name in parameters and number is not None}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in variable]
    if lacking := [name for name in required if name not in given]:
        raise ModelError(
            f"{text} needs the argument {lacking[0]!r}; it gets num_classes and in_channels where the data tell them"
        )
    return given


def torchvision_model(name: str, *, num_classes: int | None, in_channels: int, pretrained: bool) -> nn.Module:
    """`torchvision.models` NAME with `num_classes` outputs and `in_channels` inputs.

    Where `pretrained` and the published weights fit the data, these are fetched; else the weights are random.
    Raises ModelError for an unknown name, a model that cannot be adapted, and weights that cannot be fetched.
    """
    from torchvision import models

    allowed = models.list_models(module=models)
    if name not in allowed:
        raise ModelError(f"torchvision has no classification model {name!r}{nearest(name, allowed)}")
    if num_classes is None:
        raise ModelError(
            f"torchvision:{name} needs the number of classes; give the training data a `targets` attribute"
        )
    weights = models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    if pretrained and in_channels == 3 and num_classes == len(weights.meta["categories"]):
        return _published(name, weights)
    if pretrained:
        log.warning("torchvision:%s has no published weights for these data and starts from random ones", name)
    model = models.get_model(name, num_classes=num_classes, **({"aux_logits": False} if name in AUXILIARY else {}))
    if in_channels != 3:
        _adapt_input(model, name, in_channels)
    return model


def _published(name: str, weights: Any) -> nn.Module:
    from torchvision import models

    try:
        return models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:  # no network, or a download that was cut off
        place = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        advice = f"put them at {place} or give --weights"
        raise ModelError(f"the weights of torchvision:{name} were not fetched: {one_line(error)}; {advice}") from error


def _adapt_input(model: nn.Module, name: str, in_channels: int) -> None:
    """A new first convolution, with random weights, for images that are not RGB."""
    place, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    if old.in_channels != 3:
        raise ModelError(f"torchvision:{name} cannot be adapted to {in_channels} input channels")
    parent, _, attribute = place.rpartition(".")
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    setattr(model.get_submodule(parent), attribute, new)


def load_weights(model: nn.Module, file: Path | str) -> None:
    """Put the weights of a safetensors file, or of a state dict saved by `torch.save`, into `model`.

    The state dict may lie beneath `state_dict`, and its keys may begin with `module.`.
    Raises ModelError when the file cannot be read, or its keys or shapes are not the model's.
    """
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"no weights file {str(path)!r}")
    state = _without_prefix(_unwrapped(_read(path), path))
    _check_keys(model, state, path)
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read as safetensors: {one_line(error)}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        rule = "save model.state_dict() with torch.save or safetensors"
        raise ModelError(f"{path} is not a plain state dict (it is damaged or would run code); {rule}") from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError) as error:  # damaged in any way
        raise ModelError(f"{path} cannot be read as weights: {one_line(error)}") from error


def _unwrapped(state: Any, path: Path) -> Mapping[str, Any]:
    for key in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ModelError(f"{path} holds a {type(state).__name__}; it must hold a state dict (name -> tensor)")
    return state


def _without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _check_keys(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    own = model.state_dict()
    loaded = {_place(own[key]) for key in state if key in own}
    missing = [key for key, value in own.items() if key not in state and _place(value) not in loaded]
    foreign = [key for key in state if key not in own]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and getattr(state[key], "shape", None) != getattr(value, "shape", None)
    ]
    found = {"missing": missing, "foreign": foreign, "misshapen": misshapen}
    if faults := [f"{len(keys)} {what} ({_first(keys)})" for what, keys in found.items() if keys]:
        raise ModelError(f"{path} does not fit the model: {', '.join(faults)}; give the weights of this very model")


def _place(value: Any) -> Any:
    """Equal for tied weights, of which a file may hold one only."""
    return (value.data_ptr(), tuple(value.shape)) if isinstance(value, torch.Tensor) and value.numel() else id(value)


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
