"""How much each layer by itself bears: what the network loses and gains when one layer alone becomes smaller.

The table that compression papers print layer by layer: accuracy change, speed-up of the whole network, share of the
layer's weights kept. Every row is a trial without fine-tuning: latency paired with the dense model's, accuracy after
BatchNorm re-estimation.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ranksearch.compress import plan_cost
from ranksearch.errors import SpaceError, TrialError
from ranksearch.factorize import method_named
from ranksearch.records import FinetuneConfig, LayerChoice, MeasureConfig, Plan, Record, TrialResult, TrialSpec
from ranksearch.space import RankRule, SpaceConfig, layer_records
from ranksearch.trial import run
from ranksearch.workbench import Workbench

__all__ = ["LayerRow", "layer_choices", "layer_table"]

log = logging.getLogger(__name__)

LEAST_KEPT = 1e-9  # a share that any rank keeps


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow(Record):
    """One layer, or all layers of a pattern, made smaller while the others stay dense.

    accuracy is the task's metric on the validation split with its 95 % interval, accuracy_change its distance from the
    dense model's; latency_ratio is this network's over the dense one's with its 95 % interval, speedup its inverse;
    weights_kept is the share of parameters that the layers concerned keep.
    """

    layer: str
    plan: Plan
    weights_kept: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    accuracy_change: float
    speedup: float
    latency_ratio: float
    latency_ratio_low: float
    latency_ratio_high: float


def layer_choices(
    bench: Workbench, *, methods: Sequence[str] = ("svd", "spatial_svd"), kept: float = 0.5, match: str = "*"
) -> dict[str, LayerChoice]:
    """For each matching layer that one of the methods takes, what keeps most of its parameters, but at most `kept`.

    Layers of which no rank keeps so little are left out. Raises SpaceError for a share outside (0, 1], an unknown
    method, and where no layer is left.
    """
    if not LEAST_KEPT < kept <= 1:
        raise SpaceError(f"kept is {kept:g}; it must be a share above 0 and at most 1")
    config = SpaceConfig(
        name="per-layer",
        objectives=("parameters", "accuracy"),
        methods=tuple(method_named(method).name for method in methods),
        ranks=RankRule(multiple=1, kept=(LEAST_KEPT, kept), per_method=2),  # of all ranks the smallest and the largest
        dense=(),
    )
    records = layer_records(config, bench.layers)
    found = {r.name: r.options[-2].choice for r in records if r.options and fnmatchcase(r.name, match)}
    if not found:
        raise SpaceError(f"no layer matches {match!r} and can keep {kept:g} of its weights by {', '.join(methods)}")
    return found


def layer_table(
    bench: Workbench,
    choices: Mapping[str, LayerChoice],
    *,
    together: Sequence[str] = (),
    measure: MeasureConfig | None = None,
    calibration_examples: int = 512,
    seed: int = 0,
) -> list[LayerRow]:
    """A row for each layer of `choices`, then one for each pattern of `together` with all its layers changed at once.

    calibration_examples: what BatchNorm is re-estimated from. Raises SpaceError for a pattern that matches none of the
    layers, TrialError where a network cannot be measured or scored.
    """
    plans = {name: Plan({name: choice}) for name, choice in choices.items()}
    plans |= {pattern: _matching(choices, pattern) for pattern in together}
    untrained = FinetuneConfig(
        steps=0, calibration_examples=calibration_examples, precision="float32", layout="contiguous", threads=1
    )
    spec = TrialSpec(study="per-layer", plan=Plan(), seed=seed, finetune=untrained, measure=measure or MeasureConfig())
    dense = _result(spec, bench, "the dense model")
    rows: list[LayerRow] = []
    for number, (name, plan) in enumerate(plans.items(), 1):
        log.info("%s (%d of %d)", name, number, len(plans))
        rows.append(_row(name, plan, _result(replace(spec, plan=plan), bench, name), dense, bench))
    return rows


def _matching(choices: Mapping[str, LayerChoice], pattern: str) -> Plan:
    plan = Plan({name: choice for name, choice in choices.items() if fnmatchcase(name, pattern)})
    if not plan:
        raise SpaceError(f"pattern {pattern!r} matches none of the layers that change: {', '.join(choices)}")
    return plan


def _result(spec: TrialSpec, bench: Workbench, name: str) -> TrialResult:
    result = run(spec, bench)
    if result.score is None or result.measurement is None:
        raise TrialError(f"{name}: {result.reason}")
    return result


def _row(name: str, plan: Plan, result: TrialResult, dense: TrialResult, bench: Workbench) -> LayerRow:
    score, measured = result.score, result.measurement
    assert score is not None
    assert measured is not None
    return LayerRow(
        layer=name,
        plan=plan,
        weights_kept=_weights_kept(plan, bench),
        accuracy=score.value,
        accuracy_low=score.low,
        accuracy_high=score.high,
        accuracy_change=score.value - dense.value_of("accuracy"),
        speedup=1 / measured.ratio,
        latency_ratio=measured.ratio,
        latency_ratio_low=measured.ratio_low,
        latency_ratio_high=measured.ratio_high,
    )


def _weights_kept(plan: Plan, bench: Workbench) -> float:
    before = sum(layer.shape.cost().parameters for layer in bench.layers if layer.shape and layer.name in plan)
    saved = bench.dense_cost.parameters - plan_cost(bench.layers, plan, bench.dense_cost).parameters
    return 1 - saved / before
