"""BatchNorm folded into the layer before it, as a deployment does.

    γ (W x + b − μ) / √(σ² + ε) + β  =  (s W) x + s (b − μ) + β,    s = γ / √(σ² + ε)

Only where the numbers are those of a convolution or linear layer and nobody else sees them: the model is run once, and
every operation is asked what it takes. So any model that runs can be folded, whatever its forward pass is written
like. Source: Jacob et al., "Quantization and Training of Neural Networks", 2018, section 3.2.
"""

import copy
from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ranksearch.inputs import Inputs, forward, tensors

__all__ = ["fold_batchnorm"]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def fold_batchnorm(model: nn.Module, inputs: Inputs) -> nn.Module:
    """A copy of `model`, in eval mode, without the BatchNorms that can be folded; it computes the same function."""
    folded = copy.deepcopy(model)
    pairs = _pairs(folded, inputs)
    for norm, layer in pairs.items():
        _fold(norm, layer)
    for name, module in list(folded.named_modules(remove_duplicate=False)):
        if module in pairs:
            folded.set_submodule(name, nn.Identity())
    return folded


def _fold(norm: Any, layer: Any) -> None:
    """In double precision: a half-precision layer is rounded once."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    bias = bias * scale + (norm.bias.double() if norm.affine else 0.0)
    layer.weight.copy_(layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)


def _pairs(model: nn.Module, inputs: Inputs) -> dict[nn.Module, nn.Module]:
    """BatchNorm -> the layer whose output it alone takes. Both run once, and with numbers of their own."""
    layers = {m for m in model.modules() if type(m) in LAYERS}
    norms = {m for m in model.modules() if type(m) in NORMS and m.running_mean is not None}
    flow = _Flow(model, layers, norms, inputs)
    shared = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {
        norm: layer
        for norm, (layer, output) in flow.entered.items()
        if flow.runs[norm] == flow.runs[layer] == 1
        and flow.uses[id(output)] == 1
        and all(shared[id(p)] == 1 for p in layer.parameters())
        and (type(layer) is not nn.Linear or output.dim() == 2)  # else its features are not what is normalised
    }


class _Flow(TorchDispatchMode):
    """What becomes of the layers' outputs in one pass.

    `entered` norm -> the layer whose output went in, and that output; `runs` how often each ran; `uses` how often a
    norm, or an operation outside the norms, took a layer's output, by the output's id, or the model returned it.
    """

    def __init__(self, model: nn.Module, layers: set[nn.Module], norms: set[nn.Module], inputs: Inputs) -> None:
        super().__init__()
        self.entered: dict[nn.Module, tuple[nn.Module, Tensor]] = {}
        self.runs: Counter[nn.Module] = Counter()
        self.uses: Counter[int] = Counter()
        self._made: dict[int, tuple[nn.Module, Tensor]] = {}  # kept, so that no other tensor gets an output's id
        self._in_norm = False
        with ExitStack() as hooks:
            for layer in layers:
                hooks.callback(layer.register_forward_hook(self._leave_layer).remove)
            for norm in norms:
                hooks.callback(norm.register_forward_pre_hook(self._enter_norm).remove)
                hooks.callback(norm.register_forward_hook(self._leave_norm).remove)
            with self:
                outputs = forward(model, inputs)
        self._use(outputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._in_norm:
            self._use((args, kwargs))
        return func(*args, **(kwargs or {}))

    def _use(self, tree: Any) -> None:
        self.uses.update(id(tensor) for tensor in tensors(tree) if id(tensor) in self._made)

    def _leave_layer(self, layer: nn.Module, args: Any, output: Tensor) -> None:  # noqa: ARG002
        self.runs[layer] += 1
        self._made[id(output)] = (layer, output)

    def _enter_norm(self, norm: nn.Module, args: Any) -> None:
        self.runs[norm] += 1
        self._in_norm = True
        self._use(args)
        for x in args:
            if id(x) in self._made:
                self.entered[norm] = self._made[id(x)]

    def _leave_norm(self, norm: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        self._in_norm = False
