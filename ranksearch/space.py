"""What may be tried: a YAML file and the model's layers → per layer an ordered list of options → a plan.

The YAML's format is `SpaceConfig`; search_spaces/README.md shows it by example and search_spaces/schema.json is made
from it. Options are derived once, when a study is created, and stored with it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from ranksearch.data_folder import data_folder
from ranksearch.errors import SpaceError
from ranksearch.factorize import METHODS, LayerShape, Method
from ranksearch.layers import FoundLayer
from ranksearch.recipes import DEFAULT, FinetuneTable
from ranksearch.records import (
    DENSE,
    OBJECTIVES,
    Cost,
    FinetuneConfig,
    LayerChoice,
    LayerRecord,
    Option,
    Plan,
    Proposal,
    StudyRecord,
    nearest,
)

__all__ = ["LayerRule", "RankRule", "SearchSpace", "SpaceConfig", "layer_records", "load_space"]

FIRST, LAST = "@first", "@last"

# On a 1×1 kernel these are the SVD again, in more steps.
SVD_ON_MATRICES = frozenset({"spatial_svd", "channel_svd", "tucker2"})

Rank = Annotated[int, Field(ge=1)]
Ranks = Annotated[tuple[Rank, ...], Field(min_length=1)]
RankOrRanks = Annotated[
    Annotated[Rank, Tag("rank")] | Annotated[Ranks, Tag("list")],  # told apart, so that an error is of what was meant
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "rank"),
]
RecipeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
T = TypeVar("T")
Share = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RankRule(_Strict):
    """Which ranks of a method are worth trying on a layer."""

    multiple: Rank = Field(
        default=16,
        description="Ranks are multiples of this; a layer whose largest rank is small uses a finer step, so that there "
        "are at least four.",
    )
    also: tuple[Rank, ...] = Field(
        default=(), description="Ranks to try besides the multiples, where a layer has them."
    )
    minimum: Rank = Field(default=1, description="The smallest rank.")
    maximum: Rank | None = Field(default=None, description="The largest rank; the layer's own maximum when absent.")
    values: tuple[RankOrRanks, ...] | None = Field(
        default=None,
        description="Exactly these ranks, instead of multiples. One beyond a layer's maximum is an error. A list of "
        "ranks is for the methods that take as many; one that fits no method of a layer is an error.",
    )
    kept: tuple[Share, Share] = Field(
        default=(0.03, 0.75),
        description="Smallest and largest share of the layer's dense MACs that an option may keep where latency or "
        "MACs are an objective, of its parameters where those or bytes are; where both are, one of them is enough.",
    )
    aspects: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = Field(
        default=(1.0,),
        description="Of a method of several ranks (tucker2: out, in): how many times its share of its own largest the "
        "first rank is against that of the others. 1: all the same share.",
    )
    per_method: Annotated[int, Field(ge=1)] = Field(
        default=12,
        description="At most this many ranks of a method on a layer, spread evenly; so many of each of its aspects.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "RankRule":
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum is {self.maximum}; it must be at least the minimum, {self.minimum}")
        if self.kept[0] >= self.kept[1]:
            raise ValueError(f"kept is {list(self.kept)}; the first share must be smaller than the second")
        return self


class LayerRule(_Strict):
    """What differs for the layers whose name matches a pattern. A later rule wins over an earlier one."""

    match: str = Field(description="A layer's name or a pattern with * and ?, or @first, @last.")
    dense: bool | None = Field(
        default=None,
        description="Keep these layers dense, or (false) search them although they are the stem or the classifier.",
    )
    methods: tuple[str, ...] | None = Field(default=None, description="Methods to try on these layers.")
    ranks: RankRule | None = Field(default=None, description="Keys of the rank rule that differ for these layers.")


class SpaceConfig(_Strict):
    """A search space: what may become of each layer, and what is optimised."""

    name: str
    description: str = ""
    objectives: tuple[str, ...] = Field(default=("latency", "accuracy"), description=f"Any of {', '.join(OBJECTIVES)}.")
    methods: tuple[str, ...] = Field(
        default=("svd", "spatial_svd", "channel_svd", "tucker2"),
        description="Methods to try on every layer that can take them; the earlier one wins between two of equal cost.",
    )
    ranks: RankRule = RankRule()
    dense: tuple[str, ...] = Field(
        default=(FIRST, LAST),
        description="Layers that stay dense: names, patterns, @first (the stem), @last (the classifier).",
    )
    layers: tuple[LayerRule, ...] = ()
    recipes: Mapping[RecipeName, FinetuneTable] = Field(
        default={},
        description="Ways of training: a name, and what differs from the defaults of --finetune-…; such a flag wins. "
        "Of several, each trial's is searched; the first trains the seeds.",
    )

    @model_validator(mode="after")
    def _known(self) -> "SpaceConfig":
        for methods in (self.methods, *(rule.methods or () for rule in self.layers)):
            _check_words("method", methods, METHODS)
        _check_words("objective", self.objectives, OBJECTIVES)
        if (
            len(set(self.objectives)) < len(self.objectives)
            or "accuracy" not in self.objectives
            or len(self.objectives) < 2
        ):
            raise ValueError(
                f"objectives are {list(self.objectives)}; they must be accuracy and at least one other, each once"
            )
        for rule in self.layers:
            self.rank_rule(rule)  # the merged rule must be one, too
        return self

    def rank_rule(self, rule: LayerRule | None) -> RankRule:
        changed = rule.ranks.model_dump(exclude_unset=True) if rule and rule.ranks else {}
        return RankRule.model_validate(self.ranks.model_dump() | changed)


def _check_words(what: str, words: Sequence[str], allowed: Mapping[str, object]) -> None:
    for word in words:
        if word not in allowed:
            raise ValueError(f"unknown {what} {word!r}{nearest(word, allowed)}; allowed are {', '.join(allowed)}")


def load_space(name: str) -> SpaceConfig:
    """The space of a name in search_spaces/, or of a YAML file. Raises SpaceError, one line saying where and why."""
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = data_folder("search_spaces") / f"{name}.yaml"
    if not path.is_file():
        shipped = sorted(p.stem for p in data_folder("search_spaces").glob("*.yaml"))
        raise SpaceError(
            f"no search space {name!r}{nearest(name, shipped)}; give one of {', '.join(shipped)} or a .yaml file"
        )
    try:
        return SpaceConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpaceError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise SpaceError(f"{path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the file"
    if first["type"] == "extra_forbidden":
        allowed = [*SpaceConfig.model_fields, *RankRule.model_fields, *LayerRule.model_fields]
        return f"unknown key {where!r}{nearest(str(first['loc'][-1]), allowed)}"
    if first["type"] == "unexpected_keyword_argument":
        return f"unknown key {where!r}{nearest(str(first['loc'][-1]), [f.name for f in fields(FinetuneConfig)])}"
    if first["type"] in {"model_type", "missing"}:
        return f"{where}: {first['msg'].lower()}; search_spaces/README.md shows the format"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}" + _got(first)


def _got(error: Mapping[str, Any]) -> str:
    return "" if error["type"] == "value_error" else f" (got {error['input']!r})"


def layer_records(config: SpaceConfig, found: Sequence[FoundLayer]) -> tuple[LayerRecord, ...]:
    """Every layer of the model with its options, or the reason why it has none, in the order of the forward pass.

    Raises SpaceError where a pattern matches no layer, an explicit rank is out of range, or no layer has any option.
    """
    _check_patterns(config, found)
    records = tuple(_record(config, layer, _aliases(found)) for layer in found)
    if not any(record.options for record in records):
        reasons = (
            "; ".join(sorted({f"{r.name}: {r.skipped}" for r in records})[:4]) or "it has no layer of a known kind"
        )
        raise SpaceError(f"space {config.name!r} leaves nothing to search in this model ({reasons}); loosen its rules")
    return records


def _aliases(found: Sequence[FoundLayer]) -> dict[str, str]:
    """Layer name → @first or @last, for the first and the last layer that could be factorized at all."""
    usable = [layer.name for layer in found if layer.shape is not None and layer.skipped is None]
    return {usable[-1]: LAST, usable[0]: FIRST} if usable else {}


def _check_patterns(config: SpaceConfig, found: Sequence[FoundLayer]) -> None:
    names = [layer.name for layer in found]
    for pattern in (*config.dense, *(rule.match for rule in config.layers)):
        if pattern not in (FIRST, LAST) and not any(fnmatchcase(name, pattern) for name in names):
            raise SpaceError(
                f"layer pattern {pattern!r} matches nothing{nearest(pattern, names)}; layers are {', '.join(names)}"
            )


def _record(config: SpaceConfig, layer: FoundLayer, aliases: Mapping[str, str]) -> LayerRecord:
    names = (layer.name, aliases.get(layer.name, layer.name))

    def matches(pattern: str) -> bool:
        return any(fnmatchcase(name, pattern) for name in names)

    rules = [rule for rule in config.layers if matches(rule.match)]
    dense = _last((rule.dense for rule in rules), default=any(matches(p) for p in config.dense))
    methods = _last((rule.methods for rule in rules), default=config.methods)
    ranks = config.rank_rule(_last((rule if rule.ranks else None for rule in rules), default=None))
    options, reason = (), layer.skipped
    if layer.shape is not None and reason is None:
        options, reason = (
            ((), "kept dense by the space") if dense else _options(config, layer.name, layer.shape, methods, ranks)
        )
    return LayerRecord(
        name=layer.name,
        kind=layer.kind,
        shape=str(layer.shape or ""),
        cost=layer.shape.cost() if layer.shape else Cost(parameters=0, macs=0),
        skipped=reason,
        options=options,
    )


def _last(values: Iterator[T | None], default: T) -> T:
    return ([default] + [v for v in values if v is not None])[-1]


def _options(
    config: SpaceConfig, name: str, shape: LayerShape, methods: Sequence[str], rule: RankRule
) -> tuple[tuple[Option, ...], str | None]:
    """The options ordered by cost, dense last; none and a reason where no method has anything to offer."""
    dense = shape.cost()
    by_cost: dict[Cost, Option] = {}
    refusals: list[str] = []
    largest: dict[str, tuple[int, ...]] = {}
    is_matrix = METHODS["svd"].refuses(shape) is None and "svd" in methods
    for method in (METHODS[m] for m in methods if not (is_matrix and m in SVD_ON_MATRICES)):
        if reason := method.refuses(shape):
            refusals.append(f"{method.name}: {reason}")
            continue
        largest[method.name] = method.max_ranks(shape)
        for option in _options_of(config, name, shape, method, rule):
            by_cost.setdefault(option.cost, option)
    _check_values(name, largest, rule)
    if not by_cost:
        return (), "; ".join(refusals) if len(refusals) == len(
            methods
        ) else f"no rank keeps {rule.kept[0]:g} to {rule.kept[1]:g} of its cost"
    ordered = sorted(by_cost.values(), key=lambda o: (*_weights(config, o.cost), o.cost.parameters, str(o.choice)))
    return (*ordered, Option(choice=DENSE, cost=dense)), None


def _options_of(config: SpaceConfig, name: str, shape: LayerShape, method: Method, rule: RankRule) -> list[Option]:
    largest = method.max_ranks(shape)
    grids = [_rank_grid(name, largest, rule, aspect) for aspect in (rule.aspects if len(largest) > 1 else (1.0,))]
    found = [
        _thin([o for o in _made(shape, method, g) if _is_worth(config, o, shape, rule)], rule.per_method) for g in grids
    ]
    return list({option.choice: option for options in found for option in options}.values())


def _made(shape: LayerShape, method: Method, grid: Sequence[tuple[int, ...]]) -> list[Option]:
    return [
        Option(choice=LayerChoice(method=method.name, ranks=ranks), cost=method.cost(shape, ranks)) for ranks in grid
    ]


def _is_worth(config: SpaceConfig, option: Option, shape: LayerShape, rule: RankRule) -> bool:
    """What costs exactly as much as the dense layer has no place beside it."""
    dense = shape.cost()
    return option.cost != dense and _is_kept(_weights(config, option.cost), _weights(config, dense), rule.kept)


def _weights(config: SpaceConfig, cost: Cost) -> tuple[int, ...]:
    """What `kept` is a share of: MACs stand for time, parameters for size."""
    objectives = set(config.objectives)
    macs = (cost.macs,) if {"latency", "macs"} & objectives else ()
    return macs + ((cost.parameters,) if {"parameters", "bytes"} & objectives else ())


def _is_kept(weights: tuple[int, ...], dense: tuple[int, ...], kept: tuple[float, float]) -> bool:
    """One share within bounds, and none above the dense layer's."""
    shares = [weight / whole for weight, whole in zip(weights, dense, strict=True)]
    return any(kept[0] <= share <= kept[1] for share in shares) and max(shares) <= 1


def _rank_grid(name: str, largest: tuple[int, ...], rule: RankRule, aspect: float = 1.0) -> list[tuple[int, ...]]:
    """Rank tuples along a line: every rank the same share of its own maximum, the first `aspect` times that of the
    others, rounded to the step. And those that the rule gives in full."""
    top = max(largest)
    if rule.values is not None:
        steps = sorted({v for v in rule.values if isinstance(v, int)})
        if steps and steps[-1] > top:
            raise SpaceError(f"rank {steps[-1]} is out of range for layer {name!r}; its largest rank is {top}")
    else:
        steps = sorted({*range(_step(rule, top), top + 1, _step(rule, top)), *rule.also})
    steps = [s for s in steps if rule.minimum <= s <= min(rule.maximum or top, top)]
    shares = (min(1.0, aspect), *[min(1.0, 1 / aspect)] * (len(largest) - 1))
    scaled = [tuple(_scaled(step * s, top, m, rule) for s, m in zip(shares, largest, strict=True)) for step in steps]
    return list(dict.fromkeys(scaled + [v for v in _tuples(rule) if _fits(v, largest)]))


def _tuples(rule: RankRule) -> list[tuple[int, ...]]:
    return [v for v in rule.values or () if isinstance(v, tuple)]


def _fits(ranks: tuple[int, ...], largest: tuple[int, ...]) -> bool:
    return len(ranks) == len(largest) and all(r <= most for r, most in zip(ranks, largest, strict=True))


def _check_values(name: str, largest: Mapping[str, tuple[int, ...]], rule: RankRule) -> None:
    """Raises SpaceError where a rank tuple fits none of the methods that take the layer; `largest`: theirs."""
    for ranks in _tuples(rule) if largest else ():
        if not any(_fits(ranks, most) for most in largest.values()):
            allowed = ", ".join(f"{method} up to {list(most)}" for method, most in largest.items())
            raise SpaceError(f"ranks {list(ranks)} fit no method of layer {name!r}; allowed are {allowed}")


def _step(rule: RankRule, top: int) -> int:
    return min(rule.multiple, max(1, top // 4))


def _scaled(step: float, top: int, largest: int, rule: RankRule) -> int:
    if largest == top and step == int(step):
        return int(step)
    unit = _step(rule, largest)
    return min(largest, max(unit, round(step * largest / top / unit) * unit))


def _thin(options: list[Option], count: int) -> list[Option]:
    """At most `count` options, evenly spaced, both ends kept."""
    if len(options) <= count:
        return options
    last = len(options) - 1
    return [options[round(i * last / max(1, count - 1))] for i in range(count)]


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Layers with options, as one ordered integer each: the option's index. And the names of the recipes."""

    layers: tuple[LayerRecord, ...]
    recipes: tuple[str, ...] = (DEFAULT,)

    @classmethod
    def of(cls, study: StudyRecord) -> "SearchSpace":
        return cls(study.layers, tuple(recipe.name for recipe in study.recipes))

    @property
    def searched(self) -> tuple[LayerRecord, ...]:
        return tuple(layer for layer in self.layers if layer.options)

    @property
    def sizes(self) -> dict[str, int]:
        """Layer name → number of options."""
        return {layer.name: len(layer.options) for layer in self.searched}

    @property
    def num_proposals(self) -> int:
        """The dense model is one, whatever the recipe: it is not trained."""
        num_plans = math.prod(self.sizes.values())
        return 1 + (num_plans - 1) * len(self.recipes)

    def proposal(self, plan: Plan, recipe: str) -> Proposal:
        return Proposal(plan=plan, recipe=recipe if plan else self.recipes[0])

    def plan(self, indices: Mapping[str, int]) -> Plan:
        return Plan({layer.name: layer.options[indices[layer.name]].choice for layer in self.searched})

    def indices(self, plan: Plan) -> dict[str, int]:
        """Raises SpaceError on a choice that is not among its layer's options."""
        return {layer.name: self._index(layer, plan.get(layer.name, DENSE)) for layer in self.searched}

    def _index(self, layer: LayerRecord, choice: LayerChoice) -> int:
        for index, option in enumerate(layer.options):
            if option.choice == choice:
                return index
        offered = ", ".join(str(option.choice) for option in layer.options)
        raise SpaceError(f"{choice} is not an option of layer {layer.name!r}; it has {offered}")


if __name__ == "__main__":  # python -m ranksearch.space > search_spaces/schema.json
    import json
    import sys

    json.dump(SpaceConfig.model_json_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")
