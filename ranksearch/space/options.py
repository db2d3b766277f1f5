"""The options of every layer, derived from a space once, when a study is created, and stored with it."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from ranksearch.errors import SpaceError
from ranksearch.factorize import METHODS, LayerShape, Method
from ranksearch.layers import FoundLayer
from ranksearch.records import DENSE, Cost, LayerChoice, LayerRecord, Option, nearest
from ranksearch.space.config import FIRST, LAST, RankRule, SpaceConfig
from ranksearch.space.ranks import check_values, rank_grid

__all__ = ["layer_records"]

# On a 1×1 kernel these are the SVD again, in more steps.
SVD_ON_MATRICES = frozenset({"spatial_svd", "channel_svd", "tucker2"})

T = TypeVar("T")


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
    check_values(name, largest, rule)
    if not by_cost:
        return (), "; ".join(refusals) if len(refusals) == len(
            methods
        ) else f"no rank keeps {rule.kept[0]:g} to {rule.kept[1]:g} of its cost"
    ordered = sorted(by_cost.values(), key=lambda o: (*_weights(config, o.cost), o.cost.parameters, str(o.choice)))
    return (*ordered, Option(choice=DENSE, cost=dense)), None


def _options_of(config: SpaceConfig, name: str, shape: LayerShape, method: Method, rule: RankRule) -> list[Option]:
    largest = method.max_ranks(shape)
    grids = [rank_grid(name, largest, rule, aspect) for aspect in (rule.aspects if len(largest) > 1 else (1.0,))]
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


def _thin(options: list[Option], count: int) -> list[Option]:
    """At most `count` options, evenly spaced, both ends kept."""
    if len(options) <= count:
        return options
    last = len(options) - 1
    return [options[round(i * last / max(1, count - 1))] for i in range(count)]
