"""Where searches meet: one net, one trial recipe, and no plan evaluated twice, whoever proposes it.

Evaluations are kept in a file by what decides them (`TrialSpec`), so that a killed benchmark goes on where it was.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch

from ranksearch.evaluate import evaluate
from ranksearch.profile import describe
from ranksearch.profiling import profile_options
from ranksearch.records import (
    FinetuneConfig,
    LayerRecord,
    MeasureConfig,
    Plan,
    Profile,
    Recipe,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TrialState,
    key_of,
)
from ranksearch.space import layer_records, load_space
from ranksearch.tasks import Task
from ranksearch.trial import run
from ranksearch.workbench import Workbench

__all__ = ["Arena"]

RECIPE = "default"


@dataclass
class Arena:
    """`options`: of the default space, by layer. `seconds`: of every evaluation, whoever asked for it first."""

    bench: Workbench
    options: tuple[LayerRecord, ...]
    spec: TrialSpec
    file: Path

    @classmethod
    def of(cls, name: str, task: Task, seed: int, folder: Path, cores: int) -> "Arena":
        bench = Workbench(task, torch.device("cpu"))
        finetune = FinetuneConfig(ema=0.9, factors="fisher")
        description = describe(bench, [Recipe(name=RECIPE, finetune=finetune)], MeasureConfig(), cores)
        spec = TrialSpec(
            study=key_of({"net": name, **task.fingerprint()}),
            plan=Plan(),
            seed=seed,
            finetune=description.recipes[0].finetune,
            measure=description.measure,
        )
        folder.mkdir(parents=True, exist_ok=True)
        return cls(bench, layer_records(load_space("default"), bench.layers), spec, folder / f"{key_of(spec)}.jsonl")

    def __post_init__(self) -> None:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self._known = {(found := TrialResult.from_json(json.loads(line))).key: found for line in lines}

    def profile(self, seconds: float) -> tuple[Profile, float]:
        """And how long it took."""
        start = perf_counter()
        torch.set_num_threads(self.spec.finetune.threads)
        budget = {"latencies": seconds, "losses": seconds}
        metrics = self.bench.metrics(self.spec.finetune)
        found = profile_options(self.bench, self.options, self.spec.measure, seconds=budget, metrics=metrics)
        return found, perf_counter() - start

    def evaluate(self, plan: Plan, number: int, origin: str) -> TrialRecord:
        spec = replace(self.spec, plan=plan)
        result = self._known.get(key_of(spec))
        if result is None:
            result = run(spec, self.bench)
            self._known[result.key] = result = replace(
                result, measurement=result.measurement and replace(result.measurement, samples=None)
            )
            with self.file.open("a") as file:
                file.write(json.dumps(result.to_json()) + "\n")
        return TrialRecord(
            number=number, origin=origin, spec=spec, recipe=RECIPE, state=result.state, started="", result=result
        )

    def test_accuracy(self, plan: Plan) -> float:
        """The trial's training once more, and its model on the test split."""
        from ranksearch.trial import start, train

        assert self.bench.task.test is not None
        spec = replace(self.spec, plan=plan)
        model = train(start(spec, self.bench), spec, self.bench).model
        return evaluate(model, self.bench.task.test, self.bench.task.metric, device=self.bench.device).value


def points(trials: Sequence[TrialRecord]) -> list[tuple[float, float]]:
    """(latency ratio, accuracy) of those that are complete."""
    return [
        (trial.result.value_of("latency"), trial.result.value_of("accuracy"))
        for trial in trials
        if trial.state is TrialState.COMPLETE and trial.result is not None
    ]


def seconds_of(trial: TrialRecord) -> float:
    return sum(trial.result.seconds.values()) if trial.result else 0.0
