"""The plain records that everything else passes around. Standard library only.

Every record is frozen, checks its own values, and travels as JSON: `to_json` gives plain dicts, lists, strings and
numbers, `from_json` takes them back, and `key_of` names a record by the hash of that JSON.
"""

import base64
import hashlib
import json
import math
import struct
import types
import typing
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any, Self, cast

__all__ = [
    "DENSE",
    "OBJECTIVES",
    "Cost",
    "Environment",
    "FinetuneConfig",
    "LayerChoice",
    "LayerRecord",
    "MeasureConfig",
    "Measurement",
    "Option",
    "Plan",
    "Proposal",
    "Recipe",
    "Record",
    "Samples",
    "Score",
    "SeedPlan",
    "StudyRecord",
    "TrialRecord",
    "TrialResult",
    "TrialSpec",
    "TrialState",
    "key_of",
    "nearest",
]

# objective -> is a smaller value better?
OBJECTIVES: Mapping[str, bool] = types.MappingProxyType(
    {"latency": True, "accuracy": False, "parameters": True, "bytes": True, "macs": True}
)


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The allowed word that `word` probably meant, as a hint to append to an error: ` (did you mean 'x'?)` or ''."""
    import difflib

    found = difflib.get_close_matches(word, list(allowed), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


class Record:
    """A frozen dataclass that travels as JSON."""

    __slots__ = ()
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - where pydantic checks a record, as a table of settings

    def to_json(self) -> dict[str, Any]:
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError on an unknown key, TypeError on a missing one."""
        hints = typing.get_type_hints(cls)
        if unknown := [k for k in data if k not in hints]:
            raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}{nearest(unknown[0], hints)}")
        return cls(**{name: _typed(hints[name], value) for name, value in data.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in cast("list[Any]", value)]
    return value.value if isinstance(value, StrEnum) else value


def _typed(hint: Any, value: Any) -> Any:
    """`value`, read from JSON, as the type that `hint` names."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint) or hint
    if value is None or origin is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        (hint, *others) = (a for a in arguments if a is not type(None))
        return value if others else _typed(hint, value)
    if origin is tuple:
        return tuple(_typed(arguments[0], v) for v in value)
    if origin is Mapping:
        return {k: _typed(arguments[1], v) for k, v in value.items()}
    if issubclass(origin, Record):
        return origin.from_json(value)
    return origin(value) if issubclass(origin, StrEnum | float) else value


def key_of(record: "Record | Mapping[str, Any]") -> str:
    """Sixteen hex digits naming a record's content; equal records have equal keys in every process."""
    plain = record.to_json() if is_dataclass(record) else _plain(record)  # type: ignore[union-attr]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _require(condition: bool, what: str, got: object, rule: str) -> None:
    if not condition:
        raise ValueError(f"{what} is {got!r}; it must be {rule}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerChoice(Record):
    """What becomes of one layer: a method and its ranks, or `dense`, which is the absence of one.

    Written as text: `dense`, `spatial_svd:16`, `tucker2:16x32`.
    """

    method: str
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require(bool(self.method), "method", self.method, "a name")
        _require(all(type(r) is int and r >= 1 for r in self.ranks), "ranks", self.ranks, "integers of at least 1")
        _require(not (self.is_dense and self.ranks), "ranks", self.ranks, "empty for a dense layer")

    @property
    def is_dense(self) -> bool:
        return self.method == "dense"

    def __str__(self) -> str:
        return f"{self.method}:{'x'.join(map(str, self.ranks))}" if self.ranks else self.method

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError on text that is not `method` or `method:R` or `method:RxR…`."""
        method, _, ranks = text.partition(":")
        try:
            return cls(method=method, ranks=tuple(int(r) for r in ranks.split("x")) if ranks else ())
        except ValueError as error:
            raise ValueError(f"layer choice is {text!r}; write method:rank, like 'tucker2:16x32'") from error


DENSE = LayerChoice(method="dense")


@dataclass(frozen=True, slots=True)
class Plan(Mapping[str, LayerChoice], Record):  # type: ignore[misc]
    """Layer name -> LayerChoice, for the layers that change. A layer that is not named stays dense."""

    choices: tuple[tuple[str, LayerChoice], ...] = ()

    def __init__(self, choices: Mapping[str, LayerChoice] | Iterable[tuple[str, LayerChoice]] = ()) -> None:
        named: dict[str, LayerChoice] = dict(choices)
        kept = [(name, named[name]) for name in sorted(named) if not named[name].is_dense]
        object.__setattr__(self, "choices", tuple(kept))

    def __getitem__(self, layer: str) -> LayerChoice:
        return dict(self.choices)[layer]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.choices)

    def __len__(self) -> int:
        return len(self.choices)

    def to_json(self) -> dict[str, Any]:
        return {name: str(choice) for name, choice in self.choices}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls({name: LayerChoice.parse(text) for name, text in data.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost(Record):
    """What one layer costs for one example: `parameters` (count), `macs` (multiply-accumulates)."""

    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Option(Record):
    """One thing that may become of a layer, and its cost."""

    choice: LayerChoice
    cost: Cost


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(Record):
    """How a trial trains, until the first of `steps`, `epochs`, `seconds` that is not 0 is reached; all 0: not at all.

    `precision` and `layout` "auto" and 0 `threads` are resolved once for a study, by a probe on its own device before
    the first trial, so that the same spec gives the same accuracy. A bound in `seconds` gives that up.
    """

    steps: int = 20
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
    init: str = "decompose"  # decompose | random: from scratch, all layers of the net
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
        _require(self.threads >= 0, "threads", self.threads, "0 (choose) or more")
        _require(self.steps >= 0, "steps", self.steps, "0 or more")
        _require(0 <= self.epochs < math.inf, "epochs", self.epochs, "0 (no bound) or more")
        _require(0 <= self.seconds < math.inf, "seconds", self.seconds, "0 (no bound) or more")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _one_of("augmentation", self.augmentation, ("data", "none", "contrast"))
        _one_of("optimizer", self.optimizer, ("sgd", "adam", "adamw"))
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "more than 0")
        _one_of("schedule", self.schedule, ("linear", "cosine", "step", "constant"))
        _require(0 < self.decay_every <= 1, "decay_every", self.decay_every, "more than 0 and at most 1")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _require(self.temperature > 0, "temperature", self.temperature, "more than 0")
        _require(0 <= self.distillation <= 1, "distillation", self.distillation, "in [0, 1]")
        _require(0 <= self.block_distillation < math.inf, "block_distillation", self.block_distillation, "0 or more")
        _one_of("init", self.init, ("decompose", "random"))
        _require(self.reconstruction_steps >= 0, "reconstruction_steps", self.reconstruction_steps, "0 or more")
        _one_of("atcd", self.atcd, ("none", "autograd", "project"))
        _require(self.atcd_period >= 1, "atcd_period", self.atcd_period, "1 or more")
        _require(self.correlation_weight >= 0, "correlation_weight", self.correlation_weight, "0 or more")
        _require(
            self.correlation_weight == 0 or self.atcd != "project",
            "correlation_weight",
            self.correlation_weight,
            "0 where atcd is 'project': the composed weight has no primary filters",
        )
        _require(self.correlation_period >= 1, "correlation_period", self.correlation_period, "1 or more")
        _require(0 <= self.sparsity_until <= 1, "sparsity_until", self.sparsity_until, "in [0, 1]")
        _require(
            self.sparsity_until == 0 or self.atcd != "project",
            "sparsity_until",
            self.sparsity_until,
            "0 where atcd is 'project': the composed weight has no coefficients",
        )
        _require(0 <= self.ema < 1, "ema", self.ema, "in [0, 1)")
        _require(self.calibration_examples >= 1, "calibration_examples", self.calibration_examples, "1 or more")
        _one_of("precision", self.precision, ("auto", "float32", "bfloat16"))
        _one_of("layout", self.layout, ("auto", "contiguous", "channels_last"))

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
    threads: int = 1
    dtype: str = "float32"  # float32 | bfloat16 | float16
    layout: str = "contiguous"  # contiguous | channels_last
    half_width: float = 0.01  # stop when the 95 % interval of the ratio is this narrow on either side …
    max_seconds: float = 1.5  # … or after this long
    min_blocks: int = 10
    iterations_per_block: int = 10  # of each arm

    def __post_init__(self) -> None:
        _one_of("backend", self.backend, ("eager", "onnxruntime", "cuda-graph", "compile"))
        _require(self.batch_size >= 0, "batch_size", self.batch_size, "0 (choose for the device) or more")
        _require(self.threads >= 1, "threads", self.threads, "1 or more")
        _one_of("dtype", self.dtype, ("float32", "bfloat16", "float16"))
        _one_of("layout", self.layout, ("contiguous", "channels_last"))
        _require(self.half_width > 0, "half_width", self.half_width, "more than 0")
        _require(self.max_seconds > 0, "max_seconds", self.max_seconds, "more than 0")
        _require(self.min_blocks >= 2, "min_blocks", self.min_blocks, "2 or more")
        _require(
            self.iterations_per_block >= 2 and self.iterations_per_block % 2 == 0,
            "iterations_per_block",
            self.iterations_per_block,
            "an even number of at least 2",
        )


def _one_of(what: str, got: str, allowed: tuple[str, ...]) -> None:
    _require(got in allowed, what, got, f"one of {', '.join(allowed)}{nearest(got, allowed)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment(Record):
    """Where a measurement was made. `device_model` and what makes up a latency's identity decide whether two
    measurements may stand in one front; the rest is recorded beside it and decides nothing."""

    device: str  # cpu | cuda
    device_model: str
    host: str
    python: str
    torch: str
    ranksearch: str
    cores: int
    driver: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples(Record):
    """Raw times of both arms of a measurement: milliseconds of one forward pass, block by block, equally many in each.

    They are stored and sent packed: float32, the lowest bytes of all numbers first and the highest, which are much
    alike, last; then zlib.
    """

    dense_ms: tuple[tuple[float, ...], ...]
    candidate_ms: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        sizes = {len(block) for block in (*self.dense_ms, *self.candidate_ms)}
        _require(len(sizes) == 1, "samples in a block", sorted(sizes), "as many in every block of both arms")
        blocks = (len(self.dense_ms), len(self.candidate_ms))
        _require(blocks[0] == blocks[1], "blocks of dense and candidate", blocks, "as many of both")

    @classmethod
    def of(cls, dense_ms: Sequence[float], candidate_ms: Sequence[float], num_blocks: int) -> Self:
        """From the samples of all blocks one after the other. Raises ValueError where blocks would be unequal."""
        return cls(dense_ms=_cut(dense_ms, num_blocks), candidate_ms=_cut(candidate_ms, num_blocks))

    def pack(self) -> bytes:
        values = [ms for arm in (self.dense_ms, self.candidate_ms) for block in arm for ms in block]
        raw = struct.pack(f"<{len(values)}f", *values)
        return zlib.compress(b"".join(raw[byte::4] for byte in range(4)), 9)

    @classmethod
    def unpack(cls, packed: bytes, num_blocks: int) -> Self:
        planes = zlib.decompress(packed)
        size = len(planes) // 4
        raw = bytes(planes[byte * size + i] for i in range(size) for byte in range(4))
        values = struct.unpack(f"<{size}f", raw)
        return cls.of(values[: size // 2], values[size // 2 :], num_blocks)

    def to_json(self) -> dict[str, Any]:
        return {"num_blocks": len(self.dense_ms), "packed": base64.b64encode(self.pack()).decode()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls.unpack(base64.b64decode(data["packed"]), data["num_blocks"])


def _cut(values: Sequence[float], num_blocks: int) -> tuple[tuple[float, ...], ...]:
    size, rest = divmod(len(values), num_blocks)
    _require(rest == 0, "number of samples", len(values), f"a multiple of the {num_blocks} blocks")
    return tuple(tuple(values[block * size : (block + 1) * size]) for block in range(num_blocks))


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement(Record):
    """Latency of a candidate beside the dense model, interleaved in one window.

    `ratio` is the median over blocks of candidate/dense, `ratio_low`, `ratio_high` its 95 % bootstrap interval.
    Percentiles are of one forward pass in milliseconds; None where too few samples were taken to know them.
    """

    protocol: int  # the protocol's version
    identity: Mapping[str, str]  # device model, backend, versions, threads, dtype, layout, batch size
    conditions: Mapping[str, float | str | None]  # host, clocks, load, temperature: recorded, decide nothing
    batch_size: int
    ratio: float
    ratio_low: float
    ratio_high: float
    dense_p50_ms: float
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    num_blocks: int
    num_samples: int  # of each arm
    num_dropped_blocks: int
    warmup_seconds: float
    seconds: float
    flags: tuple[str, ...] = ()  # noisy, contended, unstable, launch_bound, throttled
    samples: Samples | None = field(default=None, compare=False, repr=False)  # None where read from a database

    def __post_init__(self) -> None:
        _require(math.isfinite(self.ratio) and self.ratio > 0, "ratio", self.ratio, "a finite number above 0")
        _require(self.ratio_low <= self.ratio <= self.ratio_high, "ratio", self.ratio, "inside its interval")
        if self.samples is not None:
            num_blocks = len(self.samples.dense_ms)
            _require(num_blocks == self.num_blocks, "blocks of samples", num_blocks, f"num_blocks, {self.num_blocks}")

    def to_json(self) -> dict[str, Any]:
        found = Record.to_json(self)
        return found if self.samples else {name: value for name, value in found.items() if name != "samples"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Score(Record):
    """A metric's value on one split, higher is better, with its 95 % interval."""

    value: float
    low: float
    high: float
    num_examples: int

    def __post_init__(self) -> None:
        _require(all(map(math.isfinite, (self.value, self.low, self.high))), "score", self.value, "finite")


class TrialState(StrEnum):
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec(Record):
    """All that decides a trial's outcome. `study` is the key of the study's fingerprint.

    `parent` is the key of the spec whose trained model this one goes on from; None for one that starts from the dense
    model, as those of a search do.
    """

    study: str
    plan: Plan
    seed: int
    finetune: FinetuneConfig
    measure: MeasureConfig
    parent: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult(Record):
    """What came of a trial. `state` is complete or failed; a failed one has a `reason` and may lack the rest."""

    key: str  # key_of(spec)
    state: TrialState
    reason: str | None = None
    details: str | None = None  # a traceback, kept for people
    score: Score | None = None
    oneshot: Score | None = None  # after BatchNorm re-estimation, before fine-tuning
    measurement: Measurement | None = None
    parameters: int | None = None
    macs: int | None = None
    bytes: int | None = None
    peak_memory_bytes: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])  # phase -> seconds
    environment: Environment | None = None
    retryable: bool = False  # the machine's fault (a killed worker), not the plan's

    def value_of(self, objective: str) -> float:
        """The value of an objective of OBJECTIVES. Raises ValueError when the trial has none."""
        found = {
            "latency": self.measurement and self.measurement.ratio,
            "accuracy": self.score and self.score.value,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "macs": self.macs,
        }[objective]
        _require(found is not None, objective, found, "measured")
        return float(found)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRecord(Record):
    """One layer of the dense model: what it is, what it costs, and what may become of it.

    `options` are ordered by cost, the dense one last; a layer with a `skipped` reason has none and stays dense.
    """

    name: str
    kind: str  # the module's class: Conv2d, Linear, …
    shape: str  # readable: 64→128 3×3/2
    cost: Cost
    skipped: str | None = None
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        if self.options:
            _require(self.options[-1].choice.is_dense, "the last option", str(self.options[-1].choice), "dense")


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal(Record):
    """What a search may choose for a trial: a plan, and the name of a recipe to train it by."""

    plan: Plan
    recipe: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedPlan(Record):
    """A plan to try before the sampler takes over. `origin` is `dense` or `seed:NAME`."""

    origin: str
    plan: Plan
    recipe: str | None = None  # None: the study's first


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRecord(Record):
    """What a study fixes when it is created; read back on resume and never derived again."""

    name: str
    created: str  # ISO 8601, UTC
    fingerprint: Mapping[str, str]  # what must be equal for a run to resume this study
    objectives: tuple[str, ...]
    layers: tuple[LayerRecord, ...]
    seeds: tuple[SeedPlan, ...]
    recipes: tuple[Recipe, ...]  # the first is that of the dense model and the seeds; more than one are searched
    measure: MeasureConfig
    seed: int
    environment: Environment
    settings: Mapping[str, str]  # how the model and data were named, for people and for `export`; no password

    @property
    def key(self) -> str:
        return key_of(dict(self.fingerprint))

    @property
    def identity(self) -> dict[str, str]:
        """Of its latency measurements; the fingerprint has each part as `latency PART`."""
        mark = "latency "
        return {part.removeprefix(mark): value for part, value in self.fingerprint.items() if part.startswith(mark)}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord(Record):
    """A trial as it stands in the database. A retry is a new row that names the row it replaces."""

    number: int
    origin: str  # dense | seed:NAME | sampler | finetune:TRIAL, a longer training of that trial's model
    spec: TrialSpec
    recipe: str | None  # which of its study's recipes the spec has; None where it has its own
    state: TrialState = TrialState.RUNNING
    attempt: int = 0
    retry_of: int | None = None
    started: str  # ISO 8601, UTC
    finished: str | None = None
    result: TrialResult | None = None
