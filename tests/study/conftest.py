"""A study whose trials are pretended: plans have costs, results are made up, the database is real."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ranksearch.database import Database
from ranksearch.outbox import Outbox
from ranksearch.pruning import StoppedError, Watch
from ranksearch.records import (
    DENSE,
    ONE_SHOT,
    Bar,
    Cost,
    Environment,
    FinetuneConfig,
    LayerChoice,
    LayerRecord,
    MeasureConfig,
    Measurement,
    Option,
    Recipe,
    Score,
    SeedPlan,
    StudyRecord,
    TrialResult,
    TrialSpec,
    TrialState,
    key_of,
)
from ranksearch.space import SearchSpace
from ranksearch.study.creation import seeds_of
from ranksearch.study.mirror import OptunaMirror
from ranksearch.study.sampler import make_sampler
from ranksearch.study.source import StudySource

IDENTITY = {"device": "test"}
ENVIRONMENT = Environment(
    device="cpu", device_model="test", host="here", python="3", torch="2", ranksearch="0", cores=2
)


def layer(name: str, num_ranks: int = 5) -> LayerRecord:
    options = [
        Option(
            choice=LayerChoice(method=method, ranks=(16 * r,)),
            cost=Cost(parameters=160 * r + i, macs=1600 * r + i),
        )
        for r in range(1, num_ranks + 1)
        for i, method in enumerate(("spatial_svd", "channel_svd"))
    ]
    dense = Cost(parameters=1600, macs=16000)
    return LayerRecord(
        name=name, kind="Conv2d", shape="64→64 3×3", cost=dense, options=(*options, Option(choice=DENSE, cost=dense))
    )


FINETUNE = FinetuneConfig(precision="float32", layout="contiguous", threads=1)


def study_record(num_layers: int = 4, name: str = "toy", recipes: tuple[str, ...] = ("default",)) -> StudyRecord:
    layers = tuple(layer(f"layer{i}") for i in range(num_layers))
    ways = tuple(Recipe(name=recipe, finetune=replace(FINETUNE, steps=20 + i)) for i, recipe in enumerate(recipes))
    return StudyRecord(
        name=name,
        created="2026-01-01T00:00:00.000+00:00",
        fingerprint={"model": "m", "device": "test"} | {f"latency {part}": of for part, of in IDENTITY.items()},
        objectives=("latency", "accuracy"),
        layers=layers,
        seeds=seeds_of(layers, ways),
        recipes=ways,
        measure=MeasureConfig(batch_size=8),
        seed=3,
        environment=ENVIRONMENT,
        settings={"model": "toy"},
    )


def measurement(ratio: float) -> Measurement:
    return Measurement(
        protocol=1,
        identity=IDENTITY,
        conditions={"load": 0.1},
        batch_size=8,
        ratio=ratio,
        ratio_low=0.99 * ratio,
        ratio_high=1.01 * ratio,
        dense_p50_ms=2.0,
        p50_ms=2.0 * ratio,
        p90_ms=2.1 * ratio,
        p95_ms=None,
        p99_ms=None,
        num_blocks=10,
        num_samples=100,
        num_dropped_blocks=0,
        warmup_seconds=0.1,
        seconds=0.5,
    )


def pretend(spec: TrialSpec, study: StudyRecord, bar: Bar | None = None) -> TrialResult:
    """Fewer MACs are faster and less accurate, with some noise that the plan decides. A bar stops as in a trial."""
    space = SearchSpace.of(study)
    indices = space.indices(spec.plan)
    kept = sum(lay.options[indices[lay.name]].cost.macs / lay.cost.macs for lay in space.searched) / len(space.searched)
    noise = int(key_of(spec), 16) % 1000 / 100_000
    share = sum(choice.method == "channel_svd" for choice in spec.plan.values()) / len(space.searched)
    short = (20 / spec.finetune.steps) ** 0.25
    accuracy = 0.95 - 0.3 * short * (1 - kept) ** 2 - 0.2 * share - noise  # spatial_svd is the better method
    scores = [Score(value=a, low=a - 0.01, high=a + 0.01, num_examples=1000) for a in (accuracy, 2 * accuracy - 0.95)]
    result = TrialResult(
        key=key_of(spec),
        state=TrialState.COMPLETE,
        score=scores[0],
        oneshot=scores[1],
        measurement=measurement(0.2 + 0.8 * kept + noise),
        parameters=100,
        macs=1000,
        bytes=400,
        peak_memory_bytes=10**6,
        seconds={"finetune": 0.1, "measure": 0.2},
        environment=ENVIRONMENT,
    )
    try:
        if bar is not None:
            Watch(bar, {"latency": result.value_of("latency")}).look(ONE_SHOT, scores[1])
    except StoppedError as stopped:
        seconds = {"finetune": 0.0, "measure": 0.2}
        return replace(
            result,
            state=TrialState.PRUNED,
            score=None,
            reason=str(stopped),
            expected=stopped.expected,
            seconds=seconds,
        )
    return result


class Killed(BaseException):
    """The driver is gone: nothing may run after this, not even an `except Exception`."""


@dataclass
class Bench:
    """One database, driven by as many drivers as a test likes."""

    folder: Path
    study: StudyRecord
    told: list = field(default_factory=list)
    max_failures: int = 10
    in_driver: bool = False
    prune_below: float = 0.0
    longer: int = 0
    weights_limit_bytes: int = 2**31

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'toy.db'}"

    @property
    def outbox(self) -> Outbox:
        return Outbox(self.folder)

    def database(self) -> Database:
        return Database.open(self.url)

    def source(self, database: Database, budget: int, extras: Sequence[SeedPlan] = ()) -> StudySource:
        """As a driver starts: read the study, catch up, adopt orphans."""
        study = database.load_study(self.study.name)
        if study is None:
            database.save_study(self.study)
            study = self.study
        trials = database.trials(study.name)
        mirror = OptunaMirror(database, study)
        mirror.catch_up(trials)
        source = StudySource(
            database=database,
            mirror=mirror,
            study=study,
            trials=trials,
            make_sampler=lambda history: make_sampler(
                "tpe", SearchSpace.of(study), study.objectives, seed=0, history=history
            ),
            budget=budget,
            outbox=self.outbox,
            max_failures=self.max_failures,
            in_driver=self.in_driver,
            on_trial=self.told.append,
            extras=extras,
            prune_below=self.prune_below,
            longer=self.longer,
            weights_limit_bytes=self.weights_limit_bytes,
        )
        source.adopt_orphans()
        return source

    def drive(self, budget: int, *, concurrent: int = 1, outcome=None) -> None:
        """Run to the end, `concurrent` jobs at a time; the oldest finishes first."""
        with self.database() as database:
            source = self.source(database, budget)
            running: deque = deque()
            while True:
                while len(running) < concurrent and (job := source.suggest()) is not None:
                    running.append(job)
                if not running:
                    assert source.exhausted
                    return
                job = running.popleft()
                result = outcome(job.spec, self.study) if outcome else pretend(job.spec, self.study, job.bar)
                source.complete(job, result)


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path, study_record())
