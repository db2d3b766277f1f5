"""Where searches meet: one net, the recipes of the default space, and no plan evaluated twice, whoever proposes it.

Evaluations are kept by what decides them (`TrialSpec`). A plan's latency depends neither on the seed nor on how it is
trained, so that it is measured once; its seconds are counted for every trial that needs it, as are those of a trial
that was evaluated before.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.search.kept import Kept
from ranksearch import latency
from ranksearch.evaluate import evaluate
from ranksearch.latency.fresh import measure_fresh
from ranksearch.profile import describe
from ranksearch.profiling import PROBE
from ranksearch.recipes import recipes_of
from ranksearch.records import (
    LayerRecord,
    MeasureConfig,
    Measurement,
    Plan,
    Profile,
    Recipe,
    Timings,
    TrialRecord,
    TrialResult,
    TrialSpec,
    key_of,
)
from ranksearch.space import SearchSpace, layer_records, load_space
from ranksearch.study.profiles import profiled
from ranksearch.study.remeasure import net_of
from ranksearch.tasks import Task
from ranksearch.trial import run, start, train
from ranksearch.workbench import Workbench

__all__ = ["Arena"]

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
MEASURE = MeasureConfig()  # as `run` measures
FRESH = {"half_width": 0.005, "max_seconds": 5.0}  # of measurements in fresh processes


@dataclass
class Arena:
    """`layers`: with all options of the default space. `recipes`: with nothing left open."""

    bench: Workbench
    layers: tuple[LayerRecord, ...]
    recipes: tuple[Recipe, ...]
    measure: MeasureConfig
    study: str
    folder: Path
    is_closed: bool = False  # races are over: what was not tried by then is left out

    @classmethod
    def of(cls, task: Task, folder: Path, cores: int) -> "Arena":
        """What was found for the same net, data, device and recipes before is taken from `folder`."""
        bench, space = Workbench(task, CPU), load_space("default")
        recipes, measure = recipes_of(space.recipes, {}), latency.resolve(MEASURE, CPU)
        what = {**task.fingerprint(), **latency.identity(measure, CPU), "validation": str(len(task.validation))}
        study = key_of({**what, "cores": cores, "measure": measure, "recipes": recipes})
        kept = Kept(folder / study / "recipes.jsonl")
        if kept.get("recipes") is None:
            found = describe(bench, recipes, measure, cores).recipes
            kept.put("recipes", [recipe.to_json() for recipe in found])
        recipes = tuple(Recipe.from_json(recipe) for recipe in kept.get("recipes"))
        return cls(bench, layer_records(space, bench.layers), recipes, measure, study, folder / study)

    def __post_init__(self) -> None:
        self._trials = Kept(self.folder / "trials.jsonl")  # spec -> result
        self._latencies = Kept(self.folder / "latencies.jsonl")  # plan -> measurement and the seconds it took
        self._tests = Kept(self.folder / "tests.jsonl")  # spec -> accuracy
        self._fresh = Kept(self.folder / "fresh.jsonl")  # plan -> latency ratio
        self._profiles = Kept(self.folder / "profiles.jsonl")  # layers -> profile and the seconds it took
        self._races = Kept(self.folder / "races.jsonl")  # searcher, seed, number -> what was tried, and when it ended
        self.num_kept = len(self._trials)

    def note(self, searcher: str, seed: int, trial: TrialRecord, second: float) -> None:
        name = f"{searcher}:{seed}:{trial.number}"
        self._races.put(name, [trial.spec.plan.to_json(), trial.recipe, trial.origin, second])

    def noted(self, searcher: str, seed: int, number: int) -> tuple[Plan, str, str, float] | None:
        """Plan, recipe and origin of a searcher's trial, and the second at which it ended."""
        if (found := self._races.get(f"{searcher}:{seed}:{number}")) is None:
            return None
        plan, recipe, origin, second = found
        return Plan.from_json(plan), recipe, origin, second

    def raced(self) -> list[tuple[Plan, str, int]]:
        """Plan, recipe and seed of every trial of every race."""
        return [
            (Plan.from_json(plan), recipe, int(name.split(":")[-2]))
            for name, (plan, recipe, _, _) in self._races.items()
        ]

    def space(self, layers: Sequence[LayerRecord]) -> SearchSpace:
        return SearchSpace(tuple(layers), tuple(recipe.name for recipe in self.recipes))

    def profile(self, seconds: float) -> tuple[Profile, float]:
        """Of all options, as a new study makes it, and how long that took. `seconds`: for latencies and for losses."""
        name = f"{seconds:g}"
        if self._profiles.get(name) is None:
            start = perf_counter()
            found = profiled(
                self.bench, self.layers, self.measure, self.recipes[0].finetune, seconds, self._nothing_known
            )
            self._profiles.put(name, [found.to_json(), perf_counter() - start])
        profile, took = self._profiles.get(name)
        return Profile.from_json(profile), took

    @property
    def _nothing_known(self) -> Timings:
        return Timings(identity={**latency.identity(self.measure, CPU), "probe": str(PROBE)})

    def evaluate(self, plan: Plan, recipe: str, seed: int, *, number: int, origin: str) -> TrialRecord:
        spec = self._spec(plan, recipe, seed)
        kept = self._trials.get(key_of(spec))
        result = self._run(spec) if kept is None else TrialResult.from_json(kept)
        return TrialRecord(
            number=number,
            origin=origin,
            spec=spec,
            recipe=recipe,
            state=result.state,
            started=datetime.now(UTC).isoformat(),
            result=result,
        )

    def _spec(self, plan: Plan, recipe: str, seed: int) -> TrialSpec:
        finetune = next(found.finetune for found in self.recipes if found.name == recipe)
        return TrialSpec(study=self.study, plan=plan, seed=seed, finetune=finetune, measure=self.measure)

    def _run(self, spec: TrialSpec) -> TrialResult:
        kept = self._latencies.get(key_of(spec.plan))
        if kept is None:
            result = run(spec, self.bench)
            if result.measurement is not None:
                result = replace(result, measurement=replace(result.measurement, samples=None))
                kept = [result.measurement.to_json(), result.seconds["measure"]]  # type: ignore[union-attr]
                self._latencies.put(key_of(spec.plan), kept)
        else:
            measurement, seconds = kept
            result = run(spec, self.bench, Measurement.from_json(measurement))
            result = replace(result, seconds={**result.seconds, "measure": seconds})
        if result.reason:
            log.warning("%s: %s", result.state, result.reason)
        self._trials.put(result.key, result.to_json())
        return result

    def test_accuracy(self, spec: TrialSpec) -> float:
        """The trial's training once more, and its model on the test split."""
        name = key_of(spec)
        if self._tests.get(name) is None:
            task = self.bench.task
            assert task.test is not None
            model = train(start(spec, self.bench), spec, self.bench).model
            self._tests.put(name, evaluate(model, task.test, task.metric, device=CPU).value)
        return self._tests.get(name)

    def fresh_latency(self, spec: TrialSpec) -> float:
        """Its ratio, measured in a process of its own and for longer than in the search."""
        name = key_of(spec.plan)
        if self._fresh.get(name) is None:
            bench, config = self.bench, replace(self.measure, **FRESH)
            found = measure_fresh(
                bench.dense, net_of(spec, bench), bench.example, config, device=CPU, seed=spec.seed, lock=bench.lock
            )
            self._fresh.put(name, found.ratio)
        return self._fresh.get(name)
