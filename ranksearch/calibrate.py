"""What a few hundred examples tell: BatchNorm statistics after layers were replaced, metrics of layers before."""

import math
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm  # the common ancestor of BatchNorm1d, 2d, 3d and SyncBatchNorm

from ranksearch.attention import unpacked
from ranksearch.errors import ModelError
from ranksearch.factorize import METHODS, LayerShape, Method
from ranksearch.factorize.chain import Chain
from ranksearch.factorize.metric import Metric, Window, window_of
from ranksearch.inputs import Inputs, forward
from ranksearch.layers import FoundLayer, evaluating
from ranksearch.tasks import Task
from ranksearch.tasks.classification import cross_entropy

__all__ = ["Loss", "fisher_loss", "gather_metrics", "reestimate_batchnorm"]

Loss = Callable[[Any, Any], Tensor]  # (outputs, targets) -> scalar

LARGEST_SIDE = 10_000  # rows of a moment: one of more would take over 400 MB for a layer's one side


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Inputs]) -> int:
    """Replace every BatchNorm's running mean and variance by the average over `batches`, in place.

    The average is exact and cumulative (every batch weighs the same), so give batches of one size. Affine parameters,
    momenta and train or eval mode are left as they were. Returns how many layers were re-estimated; a model without
    BatchNorm costs nothing.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return 0
    training = model.training
    momenta = [layer.momentum for layer in layers]
    model.eval()  # dropout and their like stay off
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
            layer.train()
        for batch in batches:
            forward(model, batch)
    finally:
        model.train(training)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return len(layers)


def fisher_loss(task: Task, seed: int = 0) -> Loss:
    """The loss whose gradients' covariance is the Fisher information of a classifier; of another task, its own loss.

    With class probabilities p its gradient with respect to the logits is S ε, SSᵀ = diag(p) − ppᵀ, for random signs ε:
    its covariance is that of a cross entropy whose labels are drawn from p, which takes many more examples to show
    where p is nearly certain. Seeded; a new one for each pass.
    """
    if task.loss is not cross_entropy:
        return task.loss
    generator = torch.Generator().manual_seed(seed)

    def loss(logits: Tensor, _targets: Any) -> Tensor:
        roots = logits.detach().double().softmax(1).sqrt()
        signs = torch.randint(2, roots.shape, generator=generator).to(roots) * 2 - 1
        gradient = roots * (signs - roots * (roots * signs).sum(1, keepdim=True))
        return (logits * gradient.to(logits)).sum() / len(logits)

    return loss


def gather_metrics(
    model: nn.Module,
    layers: Iterable[FoundLayer],
    batches: Iterable[tuple[Inputs, Any]],
    loss: Loss,
    *,
    methods: Collection[Method] = tuple(METHODS.values()),
    max_positions: int = 64,
    damping: float = 1e-3,
    seed: int = 0,
) -> dict[str, Metric]:
    """The metric of every layer that one of the methods can use one for, from one pass, forwards and backwards.

    batches: (inputs, targets) on the model's device, of one size, for a loss that is a mean over examples. Of each
    example `max_positions` positions of every layer are read, drawn by `seed`. A side of more than 10 000 rows is left
    out. The model runs in eval mode and is left as it was; gradients that its parameters hold stay.

    Raises ModelError where the model fails, or a layer's inputs or gradients are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = {
        layer.name: _Moments(layer.shape, windows, max_positions, generator)
        for layer in layers
        if layer.shape is not None and layer.skipped is None and (windows := _windows(layer.shape, methods))
    }
    twin = unpacked(model, seen)
    with evaluating(twin), torch.enable_grad(), ExitStack() as hooks:
        anchor = torch.zeros((), requires_grad=True)  # added wherever a gradient is to be seen
        for name, moments in seen.items():
            hook = twin.get_submodule(name).register_forward_hook(moments.observer(anchor), with_kwargs=True)
            hooks.callback(hook.remove)
        for inputs, targets in batches if seen else ():
            _run_both_ways(twin, inputs, targets, loss, anchor)
    return {name: _metric(name, moments, damping) for name, moments in seen.items() if moments.any}


def _windows(shape: LayerShape, methods: Iterable[Method]) -> set[Window]:
    takers = [method for method in methods if method.takes_metric and method.refuses(shape) is None]
    return {window_of(cast("Chain", method), shape) for method in takers}


def _run_both_ways(model: nn.Module, inputs: Inputs, targets: Any, loss: Loss, anchor: Tensor) -> None:
    try:
        torch.autograd.grad(loss(forward(model, inputs), targets), anchor)
    except Exception as error:
        raise ModelError(f"the model fails on calibration data: {type(error).__name__}: {error}") from error


def _metric(name: str, moments: "_Moments", damping: float) -> Metric:
    inputs = {window: moment.cpu() for window, moment in moments.inputs.items()}
    outputs = None if moments.outputs is None else moments.outputs.cpu()
    try:
        return Metric(inputs=inputs, outputs=outputs, damping=damping)
    except ModelError as error:
        raise ModelError(f"layer {name!r}: {error}") from None


class _Moments:
    """Sums over what one layer sees: by window Σ x xᵀ (G, Q, Q), and Σ g gᵀ (G, O, O)."""

    def __init__(
        self, shape: LayerShape, windows: Iterable[Window], max_positions: int, generator: torch.Generator
    ) -> None:
        self.inputs: dict[Window, Tensor] = {}
        self.outputs: Tensor | None = None
        outputs, inputs = shape.group_channels
        self._shape, self._max_positions, self._generator = shape, max_positions, generator
        self._windows = [window for window in sorted(windows) if inputs * math.prod(window) <= LARGEST_SIDE]
        self._places: dict[tuple[Window, tuple[int, ...]], Tensor] = {}
        self._sees_outputs = outputs <= LARGEST_SIDE

    @property
    def any(self) -> bool:
        return bool(self.inputs) or self.outputs is not None

    def observer(self, anchor: Tensor) -> Callable[..., Tensor]:
        def observe(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            self._see_input((*args, *kwargs.values())[0])
            output = output + anchor
            if output.requires_grad:  # not so where the model itself says no_grad
                output.register_hook(self._see_gradient)  # what is written into the output later comes after it
            return output

        return observe

    @torch.no_grad()
    def _see_input(self, x: Tensor) -> None:
        x_BCP = functional.pad(_positions_last(x, self._shape), (1, 0))  # place 0 is where padding reads zero
        size = tuple(x.shape[x.dim() - len(self._shape.kernel_size) :]) or (x_BCP.shape[2] - 1,)
        for window in self._windows:
            if (window, size) not in self._places:
                self._places[window, size] = _places_read(self._shape, window, size)
            places_TP, weight = self._drawn(self._places[window, size])
            windows_BQP = x_BCP[:, :, places_TP.to(x.device)].flatten(1, 2)
            self.inputs[window] = self._added(self.inputs.get(window), windows_BQP, weight)

    @torch.no_grad()
    def _see_gradient(self, gradient: Tensor) -> None:
        if self._sees_outputs:
            self.outputs = self._added(self.outputs, *self._drawn(_positions_last(gradient, self._shape)))

    def _drawn(self, values: Tensor) -> tuple[Tensor, float]:
        """(…, P) with at most `max_positions` of P, and how many each of them stands for."""
        chosen = torch.randperm(values.shape[-1], generator=self._generator)[: self._max_positions]
        return values[..., chosen.to(values.device)], values.shape[-1] / len(chosen)

    def _added(self, total_GQQ: Tensor | None, values_BQP: Tensor, weight: float) -> Tensor:
        values_BQP = values_BQP.to(torch.promote_types(values_BQP.dtype, torch.float32))
        values_GQS = values_BQP.unflatten(1, (self._shape.groups, -1)).permute(1, 2, 0, 3).flatten(2)
        if total_GQQ is None:
            total_GQQ = values_GQS.new_zeros(*values_GQS.shape[:2], values_GQS.shape[1])
        return total_GQQ.baddbmm_(values_GQS, values_GQS.mT, alpha=weight)


def _positions_last(x: Tensor, shape: LayerShape) -> Tensor:
    """(examples, channels, positions) of what enters or leaves a layer."""
    if not shape.is_convolution:
        return x.reshape(-1, math.prod(x.shape[1:-1]), x.shape[-1]).mT
    return x.reshape(-1, *x.shape[-1 - len(shape.kernel_size) :]).flatten(2)


def _places_read(shape: LayerShape, window: Window, size: tuple[int, ...]) -> Tensor:
    """(positions in a window, windows): which place, counted from 1, of an input of this size each window reads there.

    0 where it reads padding. A convolution of the places themselves with one-hot kernels tells, whatever the kind,
    stride, dilation and padding.
    """
    places = torch.arange(1, 1 + math.prod(size), dtype=torch.float64).reshape(1, 1, *size)
    if not shape.is_convolution:
        return places[0].long()
    taps = math.prod(window)
    one_hot = torch.eye(taps, dtype=torch.float64).reshape(taps, 1, *window)
    return _reader(shape, window).apply(places, one_hot, None).flatten(2)[0].long()


def _reader(shape: LayerShape, window: Window) -> LayerShape:
    """A layer of one input channel that reads such windows. Stride, padding and dilation are those of the layer where
    the window has the whole kernel; where it has one tap of several they belong to another factor."""
    whole = [k == w for k, w in zip(shape.kernel_size, window, strict=True)]

    def only(numbers: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(number if kept else neutral for number, kept in zip(numbers, whole, strict=False))

    return replace(
        shape,
        in_channels=1,
        out_channels=math.prod(window),
        groups=1,
        kernel_size=window,
        stride=only(shape.stride, 1),
        padding=shape.padding if isinstance(shape.padding, str) else only(shape.padding, 0),
        dilation=only(shape.dilation, 1),
        output_padding=only(shape.output_padding, 0),
    )
