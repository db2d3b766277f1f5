"""What a model is on a device, option by option: the table that seeds a search; and what of it other models share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ranksearch.records.plan import Cost, LayerChoice
from ranksearch.records.record import Record, require

__all__ = ["LayerLatency", "OptionProfile", "Profile", "Staircase", "Timings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerLatency(Record):
    """How long a layer of one shape takes by itself with one choice, beside the dense layer: their ratio holds on the
    same device at another moment, and in another net."""

    shape: str  # the layer and what enters it, all that decides its time
    choice: LayerChoice
    latency_ms: float
    dense_ms: float  # of the dense layer, timed in the same rounds
    ratio_deviation: float  # standard error of latency_ms / dense_ms

    def __post_init__(self) -> None:
        for name in ("latency_ms", "dense_ms"):
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "more than 0 and finite")

    @property
    def ratio(self) -> float:
        return self.latency_ms / self.dense_ms


@dataclass(frozen=True, kw_only=True, slots=True)
class Staircase(Record):
    """How the latency of one layer rises with the rank of one method."""

    shape: str  # as that of a LayerLatency
    method: str
    ranks: tuple[int, ...]
    latency_ms: tuple[float, ...]  # of the layer by itself, at these ranks
    step: int  # so many ranks in a row cost the same, and the next one more; 1: no steps were found

    def __post_init__(self) -> None:
        require(len(self.ranks) == len(self.latency_ms), "latency_ms", self.latency_ms, "one for each rank")
        require(self.step >= 1, "step", self.step, "1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings(Record):
    """What is known under one identity of layers by themselves, whatever nets they are in."""

    identity: Mapping[str, str]
    layers: tuple[LayerLatency, ...] = ()
    staircase: Staircase | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionProfile(Record):
    """What one option of a layer does to the whole network while every other layer stays dense.

    Of a dense option latency, error and loss are 0. Latencies and losses of several layers add up, nearly.
    """

    layer: str
    choice: LayerChoice
    cost: Cost  # of the layer
    latency: float  # latency ratio of the network, less 1: below 0 where it saves time
    latency_deviation: float = 0.0  # standard error of that
    layer_ms: float | None = None  # of the layer by itself; None in studies of before it was kept
    is_latency_measured: bool = True  # otherwise told by an earlier LayerLatency and the dense layer's time now
    error: float  # of the weight, squared, weighted by what the loss asks of the layer (`Metric`), 0 to 1
    loss: float | None = None  # mean KL(dense ‖ network) of the outputs, nats, after BatchNorm re-estimation
    is_loss_measured: bool = True  # otherwise interpolated between options of the layer that were

    def __post_init__(self) -> None:
        require(math.isfinite(self.latency) and self.latency > -1, "latency", self.latency, "a finite number above -1")
        require(math.isfinite(self.error) and self.error >= 0, "error", self.error, "a finite number of at least 0")
        require(self.loss is None or math.isfinite(self.loss), "loss", self.loss, "finite")


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile(Record):
    """The options of every layer that is searched, as measured on one device under one identity."""

    identity: Mapping[str, str]
    dense_ms: float
    options: tuple[OptionProfile, ...]  # by layer in the order of the forward pass, then as the layer's options
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])  # phase -> seconds
    shapes: Mapping[str, str] = field(default_factory=dict[str, str])  # layer -> the `shape` of its LayerLatency
    staircase: Staircase | None = None

    @property
    def layer_ms(self) -> dict[str, float]:
        """Layer -> milliseconds of the dense layer by itself, where they are known."""
        dense = [option for option in self.options if option.choice.is_dense]
        return {option.layer: option.layer_ms for option in dense if option.layer_ms is not None}

    @property
    def timings(self) -> Timings:
        """What was timed for it that other nets can use."""
        dense_ms = self.layer_ms
        found = {
            (self.shapes[option.layer], option.choice): LayerLatency(
                shape=self.shapes[option.layer],
                choice=option.choice,
                latency_ms=option.layer_ms,
                dense_ms=dense_ms[option.layer],
                ratio_deviation=option.latency_deviation * self.dense_ms / dense_ms[option.layer],
            )
            for option in self.options
            if option.layer_ms is not None and option.is_latency_measured and not option.choice.is_dense
        }
        return Timings(identity=self.identity, layers=tuple(found.values()), staircase=self.staircase)
