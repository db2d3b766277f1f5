"""How a trial trains and how its latency is measured."""

import math
from dataclasses import dataclass, replace
from typing import Any

from ranksearch.records.record import Record, one_of, require

__all__ = ["FinetuneConfig", "MeasureConfig", "Recipe"]

# Share of the accuracy that one shot loses, from … on → how many times as long a training `by_loss` is.
EFFORTS = ((-math.inf, 0), (0.02, 1), (0.06, 2), (0.25, 4))


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(Record):
    """How a trial trains, until the first of `steps`, `epochs`, `seconds` that is not 0 is reached; all 0: not at all.

    `precision` and `layout` "auto" and 0 `threads` are resolved once for a study, by a probe on its own device before
    the first trial, so that the same spec gives the same accuracy. A bound in `seconds` gives that up.
    """

    steps: int = 20
    allocation: str = "fixed"  # fixed | by_loss: 0, 1, 2 or 4 times as long, as one shot loses more (EFFORTS)
    epochs: float = 0.0  # passes over the training data
    seconds: float = 0.0
    batch_size: int = 64
    augmentation: str = "data"  # data (the data set's own) | none | contrast (its own, then random contrast)
    optimizer: str = "sgd"  # sgd | adam | adamw
    learning_rate: float = 0.02
    schedule: str = "linear"  # linear | cosine (both to 0) | step | constant
    decay_every: float = 0.3  # schedule step: × 0.1 each time this part of the training is over
    momentum: float = 0.9  # of SGD; β₁ of Adam
    weight_decay: float = 0.0
    temperature: float = 3.0
    distillation: float = 1.0  # share of the distillation loss; the rest is the task's own loss
    block_distillation: float = 0.0  # weight, beside that, of how far each block's outputs are from the dense model's
    factors: str = "plain"  # plain | fisher: of weights as they are, or weighted by what the loss asks of each layer
    init: str = "decompose"  # decompose | random: from scratch, all layers of the net
    inherit: bool = False  # start from the trained weights of a similar plan's trial, where layers are the same
    reconstruction_steps: int = 0  # of each replaced layer by itself, before all train together
    atcd: str = "none"  # none | autograd (both train the factors) | project: train the composed weight, decompose again
    atcd_period: int = 1  # steps between two projections
    correlation_weight: float = 0.0  # of the correlation between primary filters of linearconv; 0.01 in its source
    correlation_period: int = 10  # steps between two that feel it
    sparsity_until: float = 0.0  # part of the training in which linearconv_sparse loses coefficients; 0: all before it
    ema: float = 0.0  # decay of the moving average of the weights that is evaluated instead of them; 0: none
    calibration_examples: int = 512
    precision: str = "auto"  # auto | float32 | bfloat16
    layout: str = "auto"  # auto | contiguous | channels_last
    threads: int = 0  # 0: what is faster of one and all the trial's cores

    def __post_init__(self) -> None:
        require(self.threads >= 0, "threads", self.threads, "0 (choose) or more")
        require(self.steps >= 0, "steps", self.steps, "0 or more")
        one_of("allocation", self.allocation, ("fixed", "by_loss"))
        require(0 <= self.epochs < math.inf, "epochs", self.epochs, "0 (no bound) or more")
        require(0 <= self.seconds < math.inf, "seconds", self.seconds, "0 (no bound) or more")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        one_of("augmentation", self.augmentation, ("data", "none", "contrast"))
        one_of("optimizer", self.optimizer, ("sgd", "adam", "adamw"))
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "more than 0")
        one_of("schedule", self.schedule, ("linear", "cosine", "step", "constant"))
        require(0 < self.decay_every <= 1, "decay_every", self.decay_every, "more than 0 and at most 1")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(self.temperature > 0, "temperature", self.temperature, "more than 0")
        require(0 <= self.distillation <= 1, "distillation", self.distillation, "in [0, 1]")
        require(0 <= self.block_distillation < math.inf, "block_distillation", self.block_distillation, "0 or more")
        one_of("factors", self.factors, ("plain", "fisher"))
        one_of("init", self.init, ("decompose", "random"))
        require(not self.inherit or self.init == "decompose", "inherit", self.inherit, "false where init is 'random'")
        require(self.reconstruction_steps >= 0, "reconstruction_steps", self.reconstruction_steps, "0 or more")
        one_of("atcd", self.atcd, ("none", "autograd", "project"))
        require(self.atcd_period >= 1, "atcd_period", self.atcd_period, "1 or more")
        require(self.correlation_weight >= 0, "correlation_weight", self.correlation_weight, "0 or more")
        require(
            self.correlation_weight == 0 or self.atcd != "project",
            "correlation_weight",
            self.correlation_weight,
            "0 where atcd is 'project': the composed weight has no primary filters",
        )
        require(self.correlation_period >= 1, "correlation_period", self.correlation_period, "1 or more")
        require(0 <= self.sparsity_until <= 1, "sparsity_until", self.sparsity_until, "in [0, 1]")
        require(
            self.sparsity_until == 0 or self.atcd != "project",
            "sparsity_until",
            self.sparsity_until,
            "0 where atcd is 'project': the composed weight has no coefficients",
        )
        require(0 <= self.ema < 1, "ema", self.ema, "in [0, 1)")
        require(self.calibration_examples >= 1, "calibration_examples", self.calibration_examples, "1 or more")
        one_of("precision", self.precision, ("auto", "float32", "bfloat16"))
        one_of("layout", self.layout, ("auto", "contiguous", "channels_last"))

    def allocated(self, lost: float) -> "FinetuneConfig":
        """As long as a plan is trained of whose accuracy one shot loses the share `lost`."""
        if self.allocation == "fixed":
            return self
        return self._times(max(times for least, times in EFFORTS if lost >= least))

    @property
    def longest(self) -> "FinetuneConfig":
        """As long as any plan is trained."""
        return self if self.allocation == "fixed" else self._times(EFFORTS[-1][1])

    def _times(self, times: int) -> "FinetuneConfig":
        return replace(
            self,
            allocation="fixed",
            steps=times * self.steps,
            epochs=times * self.epochs,
            seconds=times * self.seconds,
            reconstruction_steps=self.reconstruction_steps if times else 0,
        )

    def to_json(self) -> dict[str, Any]:
        """Without what a study of before these choices lacks, so that its name by hash is still its name."""
        later = {"allocation": "fixed", "inherit": False}
        return {key: value for key, value in Record.to_json(self).items() if key not in later or value != later[key]}

    def num_steps(self, num_examples: int) -> int | None:
        """As many as `steps` and `epochs` of so many examples allow; None where only `seconds` end the training."""
        per_epoch = num_examples // min(self.batch_size, num_examples)
        bounds = [bound for bound in (self.steps, math.ceil(self.epochs * per_epoch)) if bound]
        return min(bounds, default=None if self.seconds else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(Record):
    """A way of training that a study's trials may take, and its name."""

    name: str
    finetune: FinetuneConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureConfig(Record):
    """How latency is measured (../docs/latency.md has the protocol). `batch_size` 0 means 8 on a CPU, 32 on a GPU."""

    backend: str = "eager"  # eager | onnxruntime | cuda-graph | compile
    fold_batchnorm: bool = False  # into the layer before it, in both models
    batch_size: int = 0
    also_batch_sizes: tuple[int, ...] = ()  # of the front, measured again at the end: stored, no objective
    threads: int = 1
    dtype: str = "float32"  # float32 | bfloat16 | float16
    layout: str = "contiguous"  # contiguous | channels_last
    half_width: float = 0.01  # stop when the 95 % interval of the ratio is this narrow on either side …
    max_seconds: float = 0.5  # … or after this long
    min_blocks: int = 10
    iterations_per_block: int = 4  # of each arm: short blocks, for whatever lasts longer than one cancels

    def __post_init__(self) -> None:
        one_of("backend", self.backend, ("eager", "onnxruntime", "cuda-graph", "compile"))
        require(self.batch_size >= 0, "batch_size", self.batch_size, "0 (choose for the device) or more")
        sizes = self.also_batch_sizes
        require(all(size >= 1 for size in sizes), "also_batch_sizes", sizes, "numbers of at least 1")
        require(self.threads >= 1, "threads", self.threads, "1 or more")
        one_of("dtype", self.dtype, ("float32", "bfloat16", "float16"))
        one_of("layout", self.layout, ("contiguous", "channels_last"))
        require(self.half_width > 0, "half_width", self.half_width, "more than 0")
        require(self.max_seconds > 0, "max_seconds", self.max_seconds, "more than 0")
        require(self.min_blocks >= 2, "min_blocks", self.min_blocks, "2 or more")
        require(
            self.iterations_per_block >= 2 and self.iterations_per_block % 2 == 0,
            "iterations_per_block",
            self.iterations_per_block,
            "an even number of at least 2",
        )

    def to_json(self) -> dict[str, Any]:
        """Without what a study of before `also_batch_sizes` lacks, so that its name by hash is still its name."""
        found = Record.to_json(self)
        return found if self.also_batch_sizes else {k: v for k, v in found.items() if k != "also_batch_sizes"}
