"""What may become of the layers of a model, and what becomes of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from ranksearch.records.record import Record, require

__all__ = ["DENSE", "Cost", "LayerChoice", "LayerRecord", "Option", "Plan", "Proposal", "SeedPlan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerChoice(Record):
    """What becomes of one layer: a method and its ranks, or `dense`, which is the absence of one.

    Written as text: `dense`, `spatial_svd:16`, `tucker2:16x32`.
    """

    method: str
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.method), "method", self.method, "a name")
        require(all(type(r) is int and r >= 1 for r in self.ranks), "ranks", self.ranks, "integers of at least 1")
        require(not (self.is_dense and self.ranks), "ranks", self.ranks, "empty for a dense layer")

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
            require(self.options[-1].choice.is_dense, "the last option", str(self.options[-1].choice), "dense")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedPlan(Record):
    """A plan to try before the sampler takes over. `origin` is `dense` or `seed:NAME`."""

    origin: str
    plan: Plan
    recipe: str | None = None  # None: the study's first


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal(Record):
    """What a search may choose for a trial: a plan, and the name of a recipe to train it by."""

    plan: Plan
    recipe: str
