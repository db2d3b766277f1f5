"""One trial: compress → measure → re-estimate → fine-tune → evaluate. A plain function of a `TrialSpec`.

    candidate = compress(dense, plan)
    latency   = measure(dense, candidate)          the device to itself; does not depend on trained weights
    one-shot  = evaluate(re-estimate(candidate))
    tuned     = evaluate(re-estimate(finetune(reconstruct(candidate))))
    the better of the two is the trial's model

Knows nothing of Ray, Optuna or SQL. What is computed once per worker lives in `Workbench`.
"""

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from ranksearch import latency, memory
from ranksearch.calibrate import reestimate_batchnorm
from ranksearch.compress import compress, plan_cost
from ranksearch.errors import DivergedError, NonFiniteError
from ranksearch.factorize.rebuilt import ContractibleLayer
from ranksearch.finetune import finetune, from_scratch, memory_format, reconstruct
from ranksearch.forwards import choose_forwards
from ranksearch.inherit import inherit
from ranksearch.pruning import RUNGS, StoppedError, Watch, worth_a_look
from ranksearch.records import (
    ONE_SHOT,
    Bar,
    FinetuneConfig,
    Measurement,
    Score,
    TrialResult,
    TrialSpec,
    TrialState,
    key_of,
)
from ranksearch.workbench import Workbench

__all__ = ["Progress", "Trained", "restored", "run", "run_the_faster_way", "start", "train"]

Progress: TypeAlias = Callable[[float, float], None]  # the part that is done, 0 to 1, and the loss
Look: TypeAlias = Callable[[nn.Module], None]  # at a copy of the model, which it may change


class _Phases:
    """Seconds spent in each named phase, sub-phases of one name added up; one within another counts for itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within = 0.0  # the phase that is open

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start, before, self._within = perf_counter(), self._within, 0.0
        try:
            yield
        finally:
            taken = perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + taken - self._within
            self._within = before + taken


def run(
    spec: TrialSpec,
    bench: Workbench,
    measured: Measurement | None = None,
    bar: Bar | None = None,
    ancestors: Sequence[TrialSpec] = (),
) -> TrialResult:
    """Run one trial. Never raises for what a trial does wrong: the result then is `failed`, with the reason.

    `measured` is the plan's latency where it is known already; it is not measured then. A trial that will hardly pass
    the `bar` is stopped, and `pruned`; what becomes of one that is not stopped does not depend on it.
    `ancestors`: as `start` takes them.
    """
    start = perf_counter()
    phase = _Phases()
    memory.reset_peak(bench.device)
    failure: dict[str, Any] = {}
    found: dict[str, Any] = {}
    try:
        for name, value in _steps(spec, bench, phase, measured, bar, ancestors):
            found |= {name: value}  # at once: what was found before a failure is kept
    except Exception as error:  # noqa: BLE001 - one bad trial must not end the run, whatever it raised
        reason, details = _one_line(error), traceback.format_exc(limit=-8)
        failure = {"state": TrialState.FAILED, "reason": reason, "details": details}
    found = {"state": TrialState.COMPLETE} | found | failure
    phase.seconds["overhead"] = perf_counter() - start - sum(phase.seconds.values())
    return TrialResult(
        key=key_of(spec),
        peak_memory_bytes=memory.peak(bench.device),
        seconds=phase.seconds,
        environment=latency.environment(bench.device),
        **found,
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


def _steps(
    spec: TrialSpec,
    bench: Workbench,
    phase: _Phases,
    measured: Measurement | None,
    bar: Bar | None,
    ancestors: Sequence[TrialSpec],
) -> Iterator[tuple[str, Any]]:
    """The fields of the result, each as soon as it is known, so that a failed trial keeps what it had."""
    with bench.lock.shared(), phase("compress"):
        candidate = start(spec, bench, ancestors)
        cost = plan_cost(bench.layers, spec.plan, bench.dense_cost)
    yield "parameters", cost.parameters
    yield "macs", cost.macs
    yield "bytes", (num_bytes := memory.tensor_bytes(candidate.state_dict()))
    if any(isinstance(module, ContractibleLayer) for module in candidate.modules()):
        with phase("compress"):
            run_the_faster_way(candidate, spec, bench)
    if measured is None:
        with phase("measure"):
            measured = _measure(candidate, spec, bench)
        if bench.outbox is not None:  # a retry need not measure again, should this worker be lost
            so_far = TrialResult(key=key_of(spec), state=TrialState.RUNNING, measurement=measured)
            bench.outbox.put_result(so_far)
    yield "measurement", measured
    known = {"latency": measured.ratio, "parameters": cost.parameters, "macs": cost.macs, "bytes": num_bytes}
    watch = bar and Watch(bar, known, in_percent=bench.task.metric_name == "accuracy")
    with bench.lock.shared():
        try:
            trained = train(candidate, spec, bench, phase, watch=watch)
        except StoppedError as stopped:
            yield from _stopped(watch, stopped)
            return
        yield "oneshot", trained.oneshot
        yield "score", trained.score
        yield "reason", trained.note
        yield "rungs", trained.rungs
        if bench.outbox is not None:
            with phase("store"):
                bench.outbox.put_weights(key_of(spec), trained.model)


def _stopped(watch: Watch | None, stopped: StoppedError) -> Iterator[tuple[str, Any]]:
    assert watch is not None
    yield "oneshot", watch.oneshot
    yield "rungs", watch.rungs
    yield "expected", stopped.expected
    yield "reason", str(stopped)
    yield "state", TrialState.PRUNED


def restored(bench: Workbench, lineage: Sequence[TrialSpec]) -> nn.Module:
    """The trained model of a finished trial: from its kept weights, or trained again where they are not here.

    lineage: the trial's spec last, before it those whose models it goes on from.
    """
    *before, spec = lineage
    weights = bench.outbox.weights(key_of(spec)) if bench.outbox is not None else None
    if weights is None:
        return train(start(spec, bench, before), spec, bench).model
    candidate = bench.compress(spec.plan)
    candidate.load_state_dict(weights)
    return candidate.eval()


def start(spec: TrialSpec, bench: Workbench, ancestors: Sequence[TrialSpec] = ()) -> nn.Module:
    """The model that is trained: the dense one compressed, or a net of that form that was never trained; with the
    weights of the last of `ancestors`, the spec's parent, where the plans agree."""
    if ancestors:
        candidate = bench.compress(spec.plan, bench.metrics(spec.finetune))
        inherit(candidate, restored(bench, ancestors).state_dict(), ancestors[-1].plan, spec.plan)
        return candidate
    if spec.finetune.init == "decompose" or not spec.plan:
        return bench.compress(spec.plan, bench.metrics(spec.finetune))
    torch.manual_seed(spec.seed)
    return from_scratch(compress(bench.dense, spec.plan, layers=bench.layers, init="random"))


def run_the_faster_way(candidate: nn.Module, spec: TrialSpec, bench: Workbench) -> None:
    """Layers that can run in two ways run the one that is faster where latency is measured."""
    config = latency.resolve(spec.measure, bench.device)
    with bench.lock.shared():
        _, inputs = bench.measuring(config)
        prepared = latency.prepare(candidate, config, bench.device)
    torch.set_num_threads(config.threads)
    with bench.lock.exclusive():
        for name, contracted in choose_forwards(prepared, inputs, bench.forwards).items():
            cast("ContractibleLayer", candidate.get_submodule(name)).contracted = contracted


def _measure(candidate: nn.Module, spec: TrialSpec, bench: Workbench) -> Measurement:
    config = latency.resolve(spec.measure, bench.device)
    with bench.lock.shared():
        dense, inputs = bench.measuring(config)
        prepared = latency.prepare(candidate, config, bench.device)
    torch.set_num_threads(config.threads)
    return latency.measure(dense, prepared, inputs, config, device=bench.device, seed=spec.seed, lock=bench.lock)


@dataclass(frozen=True, slots=True)
class Trained:
    model: nn.Module
    score: Score
    oneshot: Score
    note: str | None = None
    rungs: Mapping[str, Score] = field(default_factory=dict)


def train(
    candidate: nn.Module,
    spec: TrialSpec,
    bench: Workbench,
    phase: Any = None,
    checkpoint: Path | None = None,
    on_step: Progress | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Re-estimate, fine-tune, re-estimate; keep the better by validation score. The dense model is left as it is.

    `checkpoint`, a file, lets a killed fine-tuning go on where it was: call again with the same candidate and spec.
    `on_step` hears of the fine-tuning after every step. `watch` looks at the scores on the way: raises StoppedError
    where it stops the trial, and changes nothing where it does not.
    """
    phase = phase or _Phases()
    torch.manual_seed(spec.seed)
    torch.set_num_threads(spec.finetune.threads)  # sums depend on it: the same spec must give the same accuracy
    candidate = candidate.to(memory_format=memory_format(spec.finetune.layout))
    if spec.plan:
        with phase("recalibrate"):
            reestimate_batchnorm(candidate, bench.calibration(spec.finetune))
    with phase("evaluate"):
        oneshot = bench.validated(candidate)
        config = spec.finetune.allocated(bench.lost(oneshot) if spec.plan else 0.0)
    if not spec.plan or not _is_trained(config, bench):
        return Trained(candidate, oneshot, oneshot)
    if watch:
        watch.look(ONE_SHOT, oneshot)
    before = copy.deepcopy(candidate.state_dict())
    try:
        _improve(candidate, spec, config, bench, phase, checkpoint, on_step, _looks(watch, spec, config, bench, phase))
        with phase("recalibrate"):
            reestimate_batchnorm(candidate, bench.calibration(spec.finetune))
        with phase("evaluate"):
            tuned = bench.validated(candidate)
    except (NonFiniteError, DivergedError) as error:
        candidate.load_state_dict(before)
        return Trained(
            candidate.eval(), oneshot, oneshot, note=f"fine-tuning diverged, the re-estimated model is kept: {error}"
        )
    if tuned.value < oneshot.value:
        candidate.load_state_dict(before)
    best = max(tuned, oneshot, key=lambda s: s.value)
    return Trained(candidate, best, oneshot, rungs=watch.rungs if watch else {})


def _looks(
    watch: Watch | None, spec: TrialSpec, config: FinetuneConfig, bench: Workbench, phase: Any
) -> dict[float, Look]:
    """At which parts of the fine-tuning the trial is looked at, and how: none where that would cost too much, where the
    clock ends the training, or where the model is not itself before the end."""
    task = bench.task
    num_steps = config.num_steps(len(task.train))
    if watch is None or not num_steps or config.seconds or config.atcd == "project" or config.sparsity_until:
        return {}

    def look(stage: str, model: nn.Module) -> None:
        devices = [bench.device] if bench.device.type == "cuda" else []
        with phase("rungs"), torch.random.fork_rng(devices), suppress(NonFiniteError):
            reestimate_batchnorm(model, bench.calibration(spec.finetune))
            watch.look(stage, bench.validated(model))

    num_examples = len(task.validation) + config.calibration_examples
    parts = [part for part in RUNGS if worth_a_look(part, num_steps, config.batch_size, num_examples)]
    return {part: partial(look, RUNGS[part]) for part in parts}


def _is_trained(config: FinetuneConfig, bench: Workbench) -> bool:
    return config.num_steps(len(bench.task.train)) != 0 or config.reconstruction_steps > 0


def _improve(
    candidate: nn.Module,
    spec: TrialSpec,
    config: FinetuneConfig,
    bench: Workbench,
    phase: Any,
    checkpoint: Path | None,
    on_step: Progress | None,
    looks: Mapping[float, Look],
) -> None:
    """Layer by layer, unless a checkpoint says that this is done, then end to end; as long as `config` says, by batches
    that all trials of the spec's recipe share."""
    plan, layers = spec.plan, bench.layers
    if config.reconstruction_steps and not (checkpoint and checkpoint.exists()):
        with phase("reconstruct"):
            inputs = bench.calibration(spec.finetune)
            reconstruct(candidate, bench.dense, plan, layers, inputs, steps=config.reconstruction_steps, seed=spec.seed)
    with phase("finetune"):
        batches = bench.batches(spec.finetune, spec.seed)
        finetune(
            candidate, batches, bench.task, config, bench.device,
            plan=plan, layers=layers, dense=bench.dense, checkpoint=checkpoint, on_step=on_step, looks=looks,
        )  # fmt: skip
