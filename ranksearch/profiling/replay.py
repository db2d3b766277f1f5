"""What follows a layer, run again and again while what comes before it is remembered.

One pass up to the layer writes down what every module call before it returned. A replay goes through the same forward
code: calls that were complete by then return what they returned, without running; the calls that the layer lies in run
their own code, and from the layer on everything runs, with another module in the layer's place. That is right for any
forward code whose calls do not depend on the numbers.

Values are remembered as copies, so that code which writes into them finds the same ones each time. Whether a replay
with the layer itself gives what the dense model gives is tried; where it does not, all of the model runs every time.

BatchNorm normalises by the statistics of the batch in all passes: it re-estimates as it goes, for a network with
another layer just as for the dense one, and keeps nothing.

The model itself is not touched: passes run on a twin that shares its parameters.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from ranksearch.attention import unpacked
from ranksearch.errors import ModelError
from ranksearch.inputs import Inputs, forward, tensors
from ranksearch.layers import evaluating

__all__ = ["Replay"]


@dataclass(slots=True)
class _Call:
    """A module call as the pass meets it: entered and still running when the layer is reached, or complete."""

    module: nn.Module
    is_complete: bool = False
    returned: Any = None


class _Reached(BaseException):  # so that a model's own `except Exception` lets it pass
    """The pass has come to the layer."""


class Replay:
    """Passes of one model over one batch. `layers` are those that will be replaced. The model is in eval mode.

    outputs: what the dense model returns. seconds_behind: layer -> seconds from its first call to the end of a pass.
    Raises ModelError where the model fails.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], inputs: Inputs) -> None:
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._twin = copy.deepcopy(unpacked(model, layers), shared)
        self._inputs = inputs
        self._log: list[_Call] = []
        self._known: Iterator[_Call] = iter(())
        self._running: list[_Call] = []
        self._layer = self._replacement = None
        self._act: Callable[..., Any] = self._run
        self.seconds_behind: dict[str, float] = {}
        self._layers = {layer: copy.copy(self._twin.get_submodule(layer)) for layer in layers}  # with their own forward
        self._intercept()
        self.outputs = self._timed_pass(layers)

    def dense_layer(self, name: str) -> nn.Module:
        """One of `layers` as a module of its own, also where attention holds it packed."""
        return self._layers[name]

    def reach(self, layer: str) -> None:
        """Remembers what comes before this layer, for `replaced`. Goes on from the layer reached before it: in the
        order of the forward pass all layers together cost about one pass, and a check for each."""
        self._layer = self._replacement = self._twin.get_submodule(layer)
        self._known, self._log, self._act = iter(self._log), [], self._record
        try:
            self._pass()
        except _Reached:
            self._running.clear()
        if not _alike(self.replaced(self._replacement), self.outputs):
            self._log.clear()

    def replaced(self, replacement: nn.Module) -> Any:
        """What the model returns with another module in place of the layer that was reached."""
        self._replacement, self._known, self._act = replacement, iter(self._log), self._replay
        return self._pass()

    def _intercept(self) -> None:
        for module in list(self._twin.modules()):
            if isinstance(module, _BatchNorm):
                module.running_mean = module.running_var = None
            if not isinstance(module, torch.jit.ScriptModule):
                module.forward = partial(self._visit, module, module.forward)

    def _pass(self) -> Any:
        try:
            with evaluating(self._twin):
                return forward(self._twin, self._inputs)
        except Exception as error:
            raise ModelError(f"the model fails on calibration data: {type(error).__name__}: {error}") from error

    def _timed_pass(self, layers: Sequence[str]) -> Any:
        starts: dict[str, float] = {}
        cuda = [x.device for x in tensors(self._inputs) if x.is_cuda]
        if cuda:
            self._pass()  # the first one loads the kernels, which can take longer than all passes after it

        def now() -> float:
            for device in cuda:
                torch.cuda.synchronize(device)
            return perf_counter()

        def start(layer: str) -> Callable[..., None]:
            return lambda *_: starts.update({layer: starts[layer] if layer in starts else now()})

        hooks = [self._twin.get_submodule(layer).register_forward_pre_hook(start(layer)) for layer in layers]
        outputs = self._pass()
        end = now()
        for hook in hooks:
            hook.remove()
        self.seconds_behind = {layer: end - start for layer, start in starts.items()}
        return outputs

    def _visit(self, module: nn.Module, own_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stands for the forward of every module."""
        return self._act(module, lambda: own_forward(*args, **kwargs), args, kwargs)

    def _run(self, _module: nn.Module, call: Callable[[], Any], _args: Any, _kwargs: Any) -> Any:
        return call()

    def _record(self, module: nn.Module, call: Callable[[], Any], _args: Any, _kwargs: Any) -> Any:
        if module is self._layer:
            raise _Reached
        start, known = len(self._log), next(self._known, None)
        if known is not None and known.is_complete:
            self._complete(known, start)
            return _copied(known.returned)
        self._log.append(_Call(module))
        self._running.append(self._log[-1])
        returned = call()
        self._running.pop()
        self._complete(_Call(module, is_complete=True, returned=_copied(returned)), start)
        return returned

    def _complete(self, call: _Call, start: int) -> None:
        """Takes the place of all that was logged since the call began. In an nn.Sequential nobody asks for what the
        call before returned any more."""
        self._log[start:] = [call]
        parent = self._running[-1] if self._running else None
        before = self._log[start - 1] if start else None
        if parent and type(parent.module) is nn.Sequential and before and before is not parent:
            before.returned = None

    def _replay(self, module: nn.Module, call: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        known = next(self._known, None)
        if known is not None:
            return _copied(known.returned) if known.is_complete else call()
        if module is self._layer and self._replacement is not module:
            assert self._replacement is not None
            return self._replacement(*args, **kwargs)
        return call()


def _copied(tree: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, tree)


def _alike(outputs: Any, others: Any) -> bool:
    pairs = zip(tensors(outputs), tensors(others), strict=True)
    return all(torch.allclose(x.double(), y.double(), rtol=1e-3, atol=1e-4, equal_nan=True) for x, y in pairs)
