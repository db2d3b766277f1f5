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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from ranksearch.records import FinetuneConfig, Measurement, Score, TrialResult, TrialSpec, TrialState, key_of
from ranksearch.workbench import Workbench

__all__ = ["Progress", "Trained", "run", "run_the_faster_way", "start", "train"]

Progress: TypeAlias = Callable[[float, float], None]  # the part that is done, 0 to 1, and the loss


class _Phases:
    """Seconds spent in each named phase, sub-phases of one name added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start


def run(spec: TrialSpec, bench: Workbench, measured: Measurement | None = None) -> TrialResult:
    """Run one trial. Never raises for what a trial does wrong: the result then is `failed`, with the reason.

    `measured` is the plan's latency where it is known already; it is not measured then.
    """
    start = perf_counter()
    phase = _Phases()
    memory.reset_peak(bench.device)
    failure: dict[str, Any] = {}
    found: dict[str, Any] = {}
    try:
        for name, value in _steps(spec, bench, phase, measured):
            found |= {name: value}  # at once: what was found before a failure is kept
    except Exception as error:  # noqa: BLE001 - one bad trial must not end the run, whatever it raised
        failure = {"reason": _one_line(error), "details": traceback.format_exc(limit=-8)}
    state = TrialState.FAILED if failure else TrialState.COMPLETE
    phase.seconds["overhead"] = perf_counter() - start - sum(phase.seconds.values())
    return TrialResult(
        key=key_of(spec),
        state=state,
        peak_memory_bytes=memory.peak(bench.device),
        seconds=phase.seconds,
        environment=latency.environment(bench.device),
        **found | failure,
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


def _steps(
    spec: TrialSpec, bench: Workbench, phase: _Phases, measured: Measurement | None
) -> Iterator[tuple[str, Any]]:
    """The fields of the result, each as soon as it is known, so that a failed trial keeps what it had."""
    with bench.lock.shared(), phase("compress"):
        candidate = start(spec, bench)
        cost = plan_cost(bench.layers, spec.plan, bench.dense_cost)
    yield "parameters", cost.parameters
    yield "macs", cost.macs
    yield "bytes", memory.tensor_bytes(candidate.state_dict())
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
    with bench.lock.shared():
        trained = train(candidate, spec, bench, phase)
        yield "oneshot", trained.oneshot
        yield "score", trained.score
        yield "reason", trained.note
        if bench.outbox is not None:
            with phase("store"):
                bench.outbox.put_weights(key_of(spec), trained.model)


def start(spec: TrialSpec, bench: Workbench) -> nn.Module:
    """The model that is trained: the dense one compressed, or a net of that form that was never trained."""
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


def train(
    candidate: nn.Module,
    spec: TrialSpec,
    bench: Workbench,
    phase: Any = None,
    checkpoint: Path | None = None,
    on_step: Progress | None = None,
) -> Trained:
    """Re-estimate, fine-tune, re-estimate; keep the better by validation score. The dense model is left as it is.

    `checkpoint`, a file, lets a killed fine-tuning go on where it was: call again with the same candidate and spec.
    `on_step` hears of the fine-tuning after every step.
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
    before = copy.deepcopy(candidate.state_dict())
    try:
        _improve(candidate, spec, config, bench, phase, checkpoint, on_step)
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
    return Trained(candidate, max(tuned, oneshot, key=lambda s: s.value), oneshot)


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
            plan=plan, layers=layers, dense=bench.dense, checkpoint=checkpoint, on_step=on_step,
        )  # fmt: skip
