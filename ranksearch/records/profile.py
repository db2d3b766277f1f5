"""What a model is on a device, option by option: the table that seeds a search."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ranksearch.records.plan import Cost, LayerChoice
from ranksearch.records.record import Record, require

__all__ = ["OptionProfile", "Profile"]


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
