"""The whole job: look at the model, fix the study, run trials until the budget is spent, conclude.

Running it again with the same arguments resumes; a larger budget extends.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ranksearch.database import Database, study_lock
from ranksearch.errors import ConfigError, FingerprintError, NotFoundError
from ranksearch.layers import find_layers
from ranksearch.outbox import Outbox
from ranksearch.profile import Description, describe
from ranksearch.recipes import recipes_of
from ranksearch.records import (
    FinetuneConfig,
    LayerRecord,
    MeasureConfig,
    Recipe,
    SeedPlan,
    StudyRecord,
    TrialRecord,
    key_of,
    nearest,
)
from ranksearch.space import SearchSpace, SpaceConfig, layer_records, load_space
from ranksearch.study.creation import complete
from ranksearch.study.finale import conclude
from ranksearch.study.mirror import OptunaMirror
from ranksearch.study.sampler import SAMPLERS, make_sampler
from ranksearch.study.source import StudySource, now
from ranksearch.study.study import DEFAULT_STORAGE, Study, files_folder
from ranksearch.tasks import Task
from ranksearch.workers.executor import ClusterConfig, Executor, WorkerSetup
from ranksearch.workers.inline import InlineExecutor

__all__ = ["Listener", "SearchConfig", "device_of", "run_search"]

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,119}")


class Listener(Protocol):
    """Hears of a run's progress: stages, and every trial twice, when it starts and when it ends. Called from the
    driver's thread."""

    def on_stage(self, text: str) -> None: ...
    def on_start(self, study: StudyRecord, trials: list[TrialRecord], budget: int) -> None: ...
    def on_trial(self, trial: TrialRecord) -> None: ...


class Quiet:
    def on_stage(self, text: str) -> None:
        pass

    def on_start(self, study: StudyRecord, trials: list[TrialRecord], budget: int) -> None:
        pass

    def on_trial(self, trial: TrialRecord) -> None:
        pass


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    budget: int = 200
    study: str | None = None  # None: <model>-<data>-<device>
    storage: str = DEFAULT_STORAGE
    space: SpaceConfig = field(default_factory=lambda: load_space("default"))
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda
    finetune: FinetuneConfig | Mapping[str, Any] = field(default_factory=dict[str, Any])  # as `recipes_of` takes it
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    sampler: str = "additive"  # additive | tpe | nsga2 | gp | random
    profile_seconds: float = 60.0  # for latencies and for losses, each, of a new study; 0: uniform plans are its seeds
    max_drop: float | None = None  # of accuracy below the dense model's, that proposals keep to
    min_speedup: float | None = None
    prune_below: float = 0.05  # a trial is stopped that joins the front with a smaller probability; 0: none is
    longer: int = 4  # times as long the front's plans are trained in the last of the budget; 0: they are not
    executor: str = "ray"  # ray | inline
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    trial_timeout_seconds: float | None = None
    max_failures: int | None = None  # None: a tenth of the budget, at least 10
    weights_limit_mb: float = 2048  # MiB beside the database; the front's weights are kept in any case
    settings: Mapping[str, str] = field(default_factory=dict[str, str])  # how model and data were named

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ConfigError(f"budget is {self.budget}; it must be 1 or more trials")
        if self.study is not None and not STUDY_NAME.fullmatch(self.study):
            rule = "up to 120 letters, digits and . _ + -, the first a letter or digit"
            raise ConfigError(f"study name is {self.study!r}; use {rule}")
        for name, got, allowed in (
            ("device", self.device, ("auto", "cpu", "cuda")),
            ("executor", self.executor, ("ray", "inline")),
            ("sampler", self.sampler, SAMPLERS),
        ):
            if got not in allowed:
                raise ConfigError(f"{name} is {got!r}{nearest(got, allowed)}; it must be one of {', '.join(allowed)}")
        if self.profile_seconds < 0:
            raise ConfigError(f"profile seconds are {self.profile_seconds:g}; they must be 0 (no profile) or more")
        if not 0 <= self.prune_below < 1:
            raise ConfigError(f"prune below is {self.prune_below:g}; it must be 0 (no trial) or a probability below 1")
        if self.longer < 0 or self.longer == 1:
            raise ConfigError(f"longer is {self.longer}; it must be 0 (no longer training) or 2 or more times as long")
        if self.trial_timeout_seconds is not None and self.trial_timeout_seconds <= 0:
            raise ConfigError(f"trial timeout is {self.trial_timeout_seconds:g} s; it must be more than 0")

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """Raises ConfigError."""
        return recipes_of(self.space.recipes, self.finetune)


def run_search(task: Task, config: SearchConfig, listener: Listener | None = None) -> Study:
    """Search until the study has `config.budget` finished trials, then measure its front again and score it on the test
    split.

    Raises UsageError before anything is written where the arguments cannot be used, FingerprintError where the study
    exists with another model, data set, space, objective or device.
    """
    listener = listener or Quiet()
    layers = layer_records(config.space, find_layers(task.model, task.example_input))
    device = device_of(config)
    name = config.study or default_name(task, device)
    intent = _fingerprint(task, config)
    existing = resumable(config.storage, name, intent)
    files = files_folder(config.storage, name)
    listener.on_stage("starting workers")
    executor = _executor(config, WorkerSetup(task, device, files, config.trial_timeout_seconds))
    try:
        listener.on_stage("looking at the model on a worker")
        known = existing or config  # what a study has resolved is not probed again
        description = executor.call(describe, known.recipes, known.measure, executor.cores)
        with Database.open(config.storage) as database, study_lock(database, name):
            study = database.load_study(name)
            if study is None:
                draft = _draft(name, config, layers, description, intent)
                study = complete(
                    draft, database, executor,
                    seconds=config.profile_seconds, budget=config.budget, on_stage=listener.on_stage,
                )  # fmt: skip
                database.save_study(study)
            _compare(name, study.fingerprint, intent | _device_fingerprint(description))
            files.mkdir(parents=True, exist_ok=True)

            def run_trials(extras: Sequence[SeedPlan] = ()) -> None:
                _run_trials(database, study, config, executor, Outbox(files), listener, extras)

            run_trials()
            conclude(database, study, executor, listener.on_stage, run_trials)
    finally:
        executor.close()
    return Study.open(name, config.storage, task=task)


def default_name(task: Task, device: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{task.model_name}-{task.data_name}-{device}").strip("-")[:120]


def device_of(config: SearchConfig) -> str:
    """The driver's node may have no GPU: with Ray, asking for GPUs is asking for CUDA."""
    if config.device != "auto":
        return config.device
    wanted = config.cluster.gpus_per_trial
    return "cuda" if (wanted if wanted is not None else torch.cuda.is_available()) else "cpu"


def _executor(config: SearchConfig, setup: WorkerSetup) -> Executor:
    if config.executor == "inline":
        return InlineExecutor(setup, config.cluster.cpus_per_trial)
    from ranksearch.workers.tune import TuneExecutor  # seconds to import; not needed inline

    return TuneExecutor(setup, config.cluster)


# --- what a study fixes ----------------------------------------------------------------------------------------------


def _fingerprint(task: Task, config: SearchConfig) -> dict[str, str]:
    """What the arguments alone decide. The device's identity joins once a worker has looked."""
    return task.fingerprint() | {
        "space": key_of(config.space.model_dump(mode="json")),
        "objectives": ", ".join(config.space.objectives),
        "seed": str(config.seed),
        "finetune": key_of({"recipes": config.recipes}),
        "measure": key_of(config.measure),
    }


def resumable(storage: str, name: str, fingerprint: Mapping[str, str]) -> StudyRecord | None:
    """The stored study of that name, if there is one. Raises FingerprintError where it is another; writes nothing."""
    try:
        with Database.open(storage, create=False) as database:
            existing = database.load_study(name)
    except NotFoundError:
        return None
    if existing is not None:
        _compare(name, existing.fingerprint, fingerprint)
    return existing


def _compare(name: str, existing: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    different = "; ".join(
        f"{part} (it has {_short(existing.get(part, 'none'))}, this run {_short(value)})"
        for part, value in wanted.items()
        if existing.get(part) != value
    )
    if different:
        raise FingerprintError(
            f"study {name!r} exists with another {different}; choose another --study or restore what changed"
        )


def _short(value: str) -> str:
    """A hash by its beginning; other values as they are."""
    return value[:12] if re.fullmatch("[0-9a-f]{16,}", value) else value


def _device_fingerprint(description: Description) -> dict[str, str]:
    identity = {f"latency {k}": v for k, v in description.identity.items()}
    return {"device": description.environment.device_model} | identity


def _draft(
    name: str,
    config: SearchConfig,
    layers: tuple[LayerRecord, ...],
    description: Description,
    intent: dict[str, str],
) -> StudyRecord:
    """What is known before options are profiled; what was left to the machine to decide, a worker has decided."""
    return StudyRecord(
        name=name,
        created=now(),
        fingerprint=intent | _device_fingerprint(description),
        objectives=config.space.objectives,
        layers=layers,
        seeds=(),
        recipes=description.recipes,
        measure=description.measure,
        seed=config.seed,
        environment=description.environment,
        settings=dict(config.settings),
    )


# --- the run ---------------------------------------------------------------------------------------------------------


def _run_trials(
    database: Database,
    study: StudyRecord,
    config: SearchConfig,
    executor: Executor,
    outbox: Outbox,
    listener: Listener,
    extras: Sequence[SeedPlan],
) -> None:
    mirror = OptunaMirror(database, study)
    try:
        trials = database.trials(study.name)
        mirror.catch_up(trials)
        space = SearchSpace.of(study)
        source = StudySource(
            database=database,
            mirror=mirror,
            study=study,
            trials=trials,
            make_sampler=lambda history: make_sampler(
                config.sampler,
                space,
                study.objectives,
                seed=study.seed,
                history=history,
                profile=study.profile,
                max_drop=config.max_drop,
                min_speedup=config.min_speedup if "latency" in study.objectives else None,
            ),
            budget=config.budget,
            outbox=outbox,
            weights_limit_bytes=int(config.weights_limit_mb * 2**20),
            max_failures=config.max_failures if config.max_failures is not None else max(10, config.budget // 10),
            in_driver=config.executor == "inline",
            on_trial=listener.on_trial,
            extras=extras,
            prune_below=config.prune_below,
            longer=config.longer,
        )
        listener.on_start(study, trials, config.budget)
        source.adopt_orphans()
        if not source.exhausted:
            executor.run(source)
    finally:
        mirror.close()
