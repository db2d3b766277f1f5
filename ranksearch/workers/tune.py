"""Trials on a Ray cluster, or on a private one started for the run. Ray Tune executes; the study remains the record.

Tune asks our `Searcher` for work and hands results back to it; a worker is one reused actor that keeps its workbench.
Nothing that Tune writes is ever read back, so it writes to a throw-away folder.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

# Tune reads these when it is imported.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")  # small /dev/shm, as in containers: disk will do
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets any other process starve a measurement
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import cloudpickle
import psutil
import ray
import ray.cloudpickle
import ray.exceptions
from ray import tune
from ray.tune.search import Searcher

from ranksearch.errors import ConfigError, RanksearchError
from ranksearch.records import Bar, Measurement, TrialResult, TrialSpec, key_of
from ranksearch.trial import run
from ranksearch.workbench import Workbench
from ranksearch.workers.executor import ClusterConfig, Job, TrialSource, WorkerSetup, left_behind
from ranksearch.workers.watchdog import watchdog

__all__ = ["TuneExecutor", "check_room"]

# A private cluster's folder is named by its driver. Short: the paths of sockets have about a hundred characters.
TEMPORARY = "ranksearch-ray-"

P = ParamSpec("P")
R = TypeVar("R")


class TuneExecutor:
    def __init__(self, setup: WorkerSetup, cluster: ClusterConfig) -> None:
        _ship_user_code()
        _clear_leftovers()
        self._temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{os.getpid()}-"))
        _connect(cluster.address, self._temporary, _task_bytes(setup))
        self.gpus = _gpus_per_trial(setup, cluster)
        self.cores = cluster.cpus_per_trial or _cores_per_trial(self.gpus)
        check_room(self.cores, self.gpus)
        self.max_concurrent = cluster.max_concurrent or _room(self.cores, self.gpus)
        self._setup = ray.put(setup)

    def call(self, function: Callable[Concatenate[Workbench, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        task = ray.remote(num_cpus=self.cores, num_gpus=self.gpus, max_retries=1, max_calls=8)(_call)
        try:
            return cast("R", ray.get(task.remote(self._setup, function, args, kwargs)))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, RanksearchError) else error) from None

    def run(self, source: TrialSource) -> None:
        searcher = _SourceSearcher(source, cast("WorkerSetup", ray.get(self._setup)))
        trainable = tune.with_resources(tune.with_parameters(_TrialWorker, setup=self._setup), self._placement())
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=self.max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"run-{time.time_ns()}",
                storage_path=str(self._temporary / "tune"),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                callbacks=[searcher.listener],
            ),
        ).fit()
        if searcher.error is not None:
            raise searcher.error

    def _placement(self) -> tune.PlacementGroupFactory:
        bundle = {"CPU": float(self.cores)} | ({"GPU": float(self.gpus)} if self.gpus else {})
        return tune.PlacementGroupFactory([bundle], strategy="SPREAD")  # one trial a node before two on one

    def close(self) -> None:
        ray.shutdown()
        shutil.rmtree(self._temporary, ignore_errors=True)


# --- the cluster -----------------------------------------------------------------------------------------------------


def _connect(address: str | None, temporary: Path, task_bytes: int) -> None:
    """Raises ConfigError where no cluster answers at `address`."""
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if address is None:
        # A private cluster: loopback only, no dashboard, its own folder (leftovers of a killed run then do no harm).
        store = max(128 * 2**20, 2 * task_bytes)
        ray.init(include_dashboard=False, _temp_dir=str(temporary), object_store_memory=store, **quiet)
        with suppress(OSError):
            (Path.home() / ".ray" / "auth_token").chmod(0o600)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address!r}; start one with `ray start --head`, or leave --address out"
        ) from error


def _clear_leftovers() -> None:
    """Remove what killed drivers left: their Ray's logs and sockets."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        pid = folder.name.removeprefix(TEMPORARY).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _ship_user_code() -> None:
    """Ray pickles with a copy of cloudpickle of its own, which must hear, too, what workers cannot import."""
    for name in cloudpickle.list_registry_pickle_by_value():
        ray.cloudpickle.register_pickle_by_value(sys.modules[name])


def _task_bytes(setup: WorkerSetup) -> int:
    return len(ray.cloudpickle.dumps(setup))  # pyright: ignore[reportPrivateImportUsage]


def _gpus_per_trial(setup: WorkerSetup, cluster: ClusterConfig) -> float:
    if setup.device == "cpu":
        return 0
    return cluster.gpus_per_trial if cluster.gpus_per_trial is not None else 1


def _nodes(gpus: float) -> list[dict[str, float]]:
    """Resources of the live nodes that trials may run on."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [n for n in nodes if n.get("CPU", 0) >= 1 and n.get("GPU", 0) >= gpus]


def _cores_per_trial(gpus: float) -> int:
    """All of a node for a trial on CPUs, since it measures with the node to itself; else a GPU's share of its node."""
    shares = [n["CPU"] / (n["GPU"] / gpus if gpus else 1) for n in _nodes(gpus)]
    return max(1, int(min(shares, default=1)))


def _room(cores: int, gpus: float) -> int:
    per_node = [min(n["CPU"] // cores, n["GPU"] // gpus if gpus else n["CPU"]) for n in _nodes(gpus)]
    return max(1, int(sum(per_node)))


def check_room(cores: int, gpus: float) -> None:
    """Raises ConfigError where a trial fits on no node; it would wait for ever."""
    nodes = _nodes(gpus)
    if not any(n["CPU"] >= cores for n in nodes):
        offered = ", ".join(
            f"{n['Resources'].get('CPU', 0):g} CPUs + {n['Resources'].get('GPU', 0):g} GPUs"
            for n in ray.nodes()
            if n["Alive"]
        )
        raise ConfigError(
            f"a trial asks for {cores} CPUs and {gpus:g} GPUs; the cluster's nodes have {offered}; "
            "lower --cpus-per-trial or --gpus-per-trial"
        )


# --- in a worker -----------------------------------------------------------------------------------------------------


def _call(setup: WorkerSetup, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(setup.workbench(), *args, **kwargs)


class _TrialWorker(tune.Trainable):
    """One actor, many trials: Tune resets it with the next trial's config."""

    def setup(self, config: dict[str, Any], setup: Any = None) -> None:
        self._setup: WorkerSetup = ray.get(setup) if isinstance(setup, ray.ObjectRef) else setup
        self._bench = self._setup.workbench()
        self._config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        *ancestors, spec = map(TrialSpec.from_json, json.loads(self._config["lineage"]))
        measured, bar = self._config["measurement"], self._config["bar"]
        with watchdog(self._setup.trial_timeout_seconds, key_of(spec), self._bench.outbox):
            result = run(
                spec,
                self._bench,
                measured and Measurement.from_json(json.loads(measured)),
                bar and Bar.from_json(json.loads(bar)),
                ancestors,
            )
        if self._bench.outbox is not None:
            self._bench.outbox.put_result(result)
        return {"result": json.dumps(result.to_json()), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        pass

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass


# --- in the driver ---------------------------------------------------------------------------------------------------


class _SourceSearcher(Searcher):
    """Tune's view of the study: `suggest` asks it for a job, `on_trial_complete` tells it what came of one."""

    def __init__(self, source: TrialSource, setup: WorkerSetup) -> None:
        super().__init__()
        self._source = source
        self._outbox = setup.outbox()
        self._jobs: dict[str, Job] = {}
        self.listener = _Listener()
        self.error: Exception | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.error is not None:
            return Searcher.FINISHED
        job = self._guard(self._source.suggest)
        if job is None:
            return Searcher.FINISHED if self.error or self._source.exhausted else None
        self._jobs[trial_id] = job
        known = {"measurement": job.measurement, "bar": job.bar}
        lineage = [spec.to_json() for spec in (*job.ancestors, job.spec)]
        return {"lineage": json.dumps(lineage), "number": job.number} | {
            name: record and json.dumps(record.to_json()) for name, record in known.items()
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        job = self._jobs.pop(trial_id, None)
        if job is None or self.error is not None:
            return
        answer = None if error or result is None else result.get("result")
        self._guard(lambda: self._source.complete(job, self._outcome(trial_id, job, answer)))

    def _outcome(self, trial_id: str, job: Job, answer: str | None) -> TrialResult:
        return TrialResult.from_json(json.loads(answer)) if answer else self._lost(trial_id, job)

    def _lost(self, trial_id: str, job: Job) -> TrialResult:
        """The worker did not answer; it may have left a word before it went."""
        reason = f"the worker was lost: {self.listener.errors.pop(trial_id, 'its process ended')}"
        return left_behind(self._outbox, key_of(job.spec), reason)

    def _guard(self, action: Callable[[], R]) -> R | None:
        """An error of ours must end the run, and Tune swallows some that a searcher raises."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001
            self.error = error
            return None

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher for snapshots that nobody reads; a study holds a database


class _Listener(tune.Callback):
    """Keeps the reason why a trial's actor was lost, which Tune does not hand to a searcher."""

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        error = trial.get_pickled_error()
        if error is not None:
            self.errors[trial.trial_id] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
