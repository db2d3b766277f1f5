"""Finds the low-rank versions of a trained PyTorch model that nothing else beats, on your own hardware.

import ranksearch as rs

study = rs.search(model, data, budget=200)
front = study.pareto(max_drop=0.01)         # a pandas.DataFrame
small = study.load(front.index[0])          # a torch.nn.Module
rs.compress(model, plan)                    # a plan applied without a search
rs.load("small/", model=make_net())         # an exported trial
"""

import importlib
from typing import TYPE_CHECKING, Any

# Eagerly, and torch with it: the function has its module's name, and importing that later would hide the function.
from ranksearch.compress import compress
from ranksearch.errors import (
    ConfigError,
    DataError,
    DivergedError,
    FingerprintError,
    InfeasibleError,
    MeasurementError,
    ModelError,
    NonFiniteError,
    NotFoundError,
    PreemptedError,
    RanksearchError,
    SelfTestError,
    SpaceError,
    StorageError,
    StudyBusyError,
    TooManyFailuresError,
    TrialError,
    TrialTimeoutError,
    UsageError,
)
from ranksearch.factorize import METHODS
from ranksearch.records import FinetuneConfig, LayerChoice, MeasureConfig, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from ranksearch.bundle import load
    from ranksearch.calibrate import fisher_loss, gather_metrics
    from ranksearch.space import SpaceConfig
    from ranksearch.study.search import Listener
    from ranksearch.study.study import Study
    from ranksearch.tasks import Task
    from ranksearch.tasks.metrics import Metric
    from ranksearch.workers.executor import ClusterConfig

    __version__: str

__all__ = [
    "METHODS",
    "ClusterConfig",
    "ConfigError",
    "DataError",
    "DivergedError",
    "FinetuneConfig",
    "FingerprintError",
    "InfeasibleError",
    "LayerChoice",
    "MeasureConfig",
    "MeasurementError",
    "ModelError",
    "NonFiniteError",
    "NotFoundError",
    "Plan",
    "PreemptedError",
    "RanksearchError",
    "SelfTestError",
    "SpaceError",
    "StorageError",
    "Study",
    "StudyBusyError",
    "Task",
    "TooManyFailuresError",
    "TrialError",
    "TrialTimeoutError",
    "UsageError",
    "__version__",
    "compress",
    "fisher_loss",
    "gather_metrics",
    "load",
    "search",
]

# name -> its module, imported when the name is first used: the database and the data sets take a second
_LATER = {
    "ClusterConfig": "ranksearch.workers.executor",
    "Study": "ranksearch.study.study",
    "Task": "ranksearch.tasks",
    "fisher_loss": "ranksearch.calibrate",
    "gather_metrics": "ranksearch.calibrate",
    "load": "ranksearch.bundle",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _LATER:
        raise AttributeError(f"module 'ranksearch' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ranksearch")
    except PackageNotFoundError:  # a checkout that was not installed
        return "source"


def search(
    model: "nn.Module | Task",
    data: Any = None,
    *,
    metric: "str | Metric | None" = None,
    normalize: str = "dataset",
    budget: int = 200,
    study: str | None = None,
    storage: str = "sqlite:///ranksearch.db",
    space: "str | SpaceConfig" = "default",
    sampler: str = "additive",
    profile_seconds: float = 60.0,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    seed: int = 0,
    device: str = "auto",
    finetune: "FinetuneConfig | Mapping[str, Any] | None" = None,
    measure: MeasureConfig | None = None,
    executor: str = "ray",
    cluster: "ClusterConfig | None" = None,
    trial_timeout_seconds: float | None = None,
    max_failures: int | None = None,
    listener: "Listener | None" = None,
) -> "Study":
    """What `ranksearch run` does, for a model in hand. The same call again resumes the study.

    model: a trained classifier, or a `Task` that brings its own data, loss and metric.
    data: text as for `--data`, or (train, validation) or (train, validation, test) of data sets, loaders or pairs of
        tensors (inputs, targets).
    metric: (outputs, targets) -> one score an example or one for all, higher is better; accuracy by default.
    budget: finished trials that the study shall have. study: its name; <model>-<data>-<device> by default.
    space: a name in search_spaces/, a YAML file, or a SpaceConfig. device: auto, cpu or cuda.
    sampler: additive, tpe, nsga2, gp or random. profile_seconds: for measuring what options do by themselves, before a
        new study's first trial; 0: not at all. max_drop, min_speedup: what proposals keep to.
    finetune: fields of FinetuneConfig that win over the recipes of the space, or a whole one that takes their place.
    executor: ray, or inline: in this process, one trial after the other.
    max_failures: failed trials after which the search stops; a tenth of the budget, at least 10, by default.
    listener: hears of progress.

    Raises UsageError before anything is written where an argument cannot be used, FingerprintError where the study
    exists with another model, data set, space, objective or device, TooManyFailuresError, StorageError.
    """
    from ranksearch.settings import check_writable
    from ranksearch.space import load_space
    from ranksearch.study.search import SearchConfig, run_search
    from ranksearch.tasks import task_from
    from ranksearch.workers.executor import ClusterConfig

    check_writable(storage)
    config = SearchConfig(
        budget=budget,
        study=study,
        storage=storage,
        space=load_space(space) if isinstance(space, str) else space,
        sampler=sampler,
        profile_seconds=profile_seconds,
        max_drop=max_drop,
        min_speedup=min_speedup,
        seed=seed,
        device=device,
        finetune=finetune or {},
        measure=measure or MeasureConfig(),
        executor=executor,
        cluster=cluster or ClusterConfig(),
        trial_timeout_seconds=trial_timeout_seconds,
        max_failures=max_failures,
    )
    return run_search(task_from(model, data, metric, normalize=normalize, seed=seed), config, listener)
