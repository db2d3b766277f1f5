"""A new study: what every later run reads back instead of deriving it again.

Where latency counts, a worker measures what every option of every layer does by itself, as far as no other study of the
database has done so for the same net, weights, data, factors and identity; of layers that other nets have, too,
latencies are taken over (profiles.py). Options that something beats in all that the study
optimises are left out, and the exact knapsack of what is left gives the seeds. Where methods decompose anew for every
rank (cp, rank1, linearconv), that would take longer than a search: there the seeds are uniform plans.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from statistics import median

from ranksearch.allocate import knapsack_seeds, undominated, uniform_sweep
from ranksearch.allocate.seeds import HALF_LOSS
from ranksearch.database import Database
from ranksearch.errors import TrialError
from ranksearch.factorize import METHODS
from ranksearch.profiling import PROBE
from ranksearch.records import (
    LayerChoice,
    LayerRecord,
    Plan,
    Profile,
    Recipe,
    SeedPlan,
    StudyRecord,
)
from ranksearch.study.profiles import made_profile
from ranksearch.workers.executor import Executor

__all__ = ["complete", "noise_of", "seeds_of"]

log = logging.getLogger(__name__)

NOISE = 2.0  # standard errors of an option's latency: what changes it by less is as fast as the dense layer
NUM_SEEDS = 14  # of the knapsack, over the whole range of latencies
HALF_ERROR = 0.5  # of each layer: at so much weighted error a net is taken to keep half of its accuracy
LONG = 100  # trials: a search of as many can spare some for all uniform plans, others try every third


def complete(
    draft: StudyRecord,
    database: Database,
    executor: Executor,
    *,
    seconds: float,
    budget: int,
    on_stage: Callable[[str], None],
) -> StudyRecord:
    """`draft`, of all layers with all options, with its profile, the options that are left and the seeds.

    seconds: what measuring latencies and what measuring losses may take, each; 0: no profile. Raises as
    `executor.call` does.
    """
    profile = _profile(draft, database, executor, seconds, on_stage) if seconds and _is_quick(draft) else None
    if profile is None:
        return replace(draft, seeds=seeds_of(draft.layers, draft.recipes))
    layers = undominated(draft.layers, profile, draft.objectives, noise_of(profile))
    if not any(layer.options for layer in layers):
        log.warning("no option of any layer is measurably faster than the dense layer; all of them are searched")
        return replace(draft, seeds=seeds_of(draft.layers, draft.recipes), profile=profile)
    return replace(
        draft, layers=layers, profile=profile, seeds=seeds_of(layers, draft.recipes, profile, draft.objectives, budget)
    )


def noise_of(profile: Profile) -> float:
    """A change of the latency ratio that means nothing."""
    return NOISE * median(option.latency_deviation for option in profile.options)


def _is_quick(draft: StudyRecord) -> bool:
    methods = {option.choice.method for layer in draft.layers for option in layer.options[:-1]}
    return "latency" in draft.objectives and all(METHODS[method].is_sliced for method in methods)


def _profile(
    draft: StudyRecord, database: Database, executor: Executor, seconds: float, on_stage: Callable[[str], None]
) -> Profile | None:
    """Of every option, in order; layers that others have profiled whole are taken over. None where it cannot be made,
    which is said."""
    others = [found for found in database.find_profiles(draft) if found.identity.get("probe") == str(PROBE)]
    known = {(option.layer, option.choice): option for found in reversed(others) for option in found.options}
    lacking = [layer for layer in draft.layers if any(point not in known for point in _points(layer))]
    newest = others[:1]
    if lacking:
        on_stage(f"profiling {sum(len(layer.options) for layer in lacking)} options of {len(lacking)} layers")
        try:
            newest = [
                made_profile(
                    lacking, draft.identity, draft.measure, draft.recipes[0].finetune,
                    database=database, executor=executor, seconds=seconds,
                )
            ]  # fmt: skip
        except TrialError as error:
            log.warning("no profile: %s; the search starts from uniform plans", error)
            return None
        known |= {(option.layer, option.choice): option for option in newest[0].options}
    options = tuple(known[point] for layer in draft.layers for point in _points(layer))
    shapes = {layer: shape for found in (*reversed(others), newest[0]) for layer, shape in found.shapes.items()}
    return replace(newest[0], options=options, shapes=shapes, seconds=newest[0].seconds if lacking else {})


def _points(layer: LayerRecord) -> list[tuple[str, LayerChoice]]:
    return [(layer.name, option.choice) for option in layer.options]


# --- seeds -----------------------------------------------------------------------------------------------------------


def seeds_of(
    layers: Sequence[LayerRecord],
    recipes: Sequence[Recipe],
    profile: Profile | None = None,
    objectives: Sequence[str] = (),
    budget: int = 0,
) -> tuple[SeedPlan, ...]:
    """The dense model and then plans by the first recipe, the best first: with a profile those of the knapsack, and
    uniform ones to tell the gain by. A few by every other recipe, lest a sampler that has never seen a recipe should
    never try it."""
    uniform = uniform_sweep(layers)
    if profile is None:
        plans = uniform
    else:
        plans = (*_knapsack(layers, profile, objectives), *(uniform if budget >= LONG else uniform[1::3]))
    others = (replace(seed, recipe=recipe.name) for recipe in recipes[1:] for seed in plans[2:12:4])
    found: dict[tuple[Plan, str | None], SeedPlan] = {}
    for seed in (*plans, *others):
        if seed.plan:
            found.setdefault((seed.plan, seed.recipe), seed)
    return (SeedPlan(origin="dense", plan=Plan()), *found.values())


def _knapsack(layers: Sequence[LayerRecord], profile: Profile, objectives: Sequence[str]) -> list[SeedPlan]:
    """For each of latency, parameters and MACs that is an objective, in turns."""
    wanted = [cost for cost in ("latency", "parameters", "macs") if cost in objectives]
    half = HALF_LOSS if all(option.loss is not None for option in profile.options) else HALF_ERROR * len(layers)
    each = [knapsack_seeds(layers, profile, NUM_SEEDS // len(wanted), cost, half) for cost in wanted]
    return [seed for turn in zip_longest(*each) for seed in turn if seed is not None]
