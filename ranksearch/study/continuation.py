"""A trial's model trained for longer: a new trial, the child of that one, with the same plan and the same latency.

    start = the parent's trained model
    child = the better of start and train(start), by validation score

It is stored whole, once the training is over; until then a checkpoint beside the study's other files grows, and the
same call goes on from it after a kill.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch

from ranksearch import latency, memory
from ranksearch.database import Database, study_lock
from ranksearch.errors import ConfigError, StudyBusyError
from ranksearch.evaluate import evaluate
from ranksearch.outbox import Outbox
from ranksearch.profile import filled
from ranksearch.records import FinetuneConfig, TrialRecord, TrialResult, TrialSpec, TrialState, key_of
from ranksearch.study.mirror import OptunaMirror
from ranksearch.study.source import now
from ranksearch.study.study import Study, files_folder
from ranksearch.tasks import Task
from ranksearch.trial import Progress, Trained, start, train
from ranksearch.workbench import Workbench

__all__ = ["continue_training", "longer"]

TURN_SECONDS = 5.0  # of training, before others may measure
WAIT_SECONDS = 5.0  # between two looks whether a run has let go of the study


def longer(parent: TrialRecord, given: FinetuneConfig | dict[str, object]) -> FinetuneConfig:
    """How the parent was trained, with what is given over it, and for as long as that says.

    Raises ConfigError where it says no length, or does not go with how the parent was trained.
    """
    if isinstance(given, FinetuneConfig):
        return given
    if not any(given.get(bound) for bound in ("steps", "epochs", "seconds")):
        raise ConfigError("how long to train is not given; say --epochs, --steps or --seconds")
    lengths: dict[str, object] = {"steps": 0, "epochs": 0.0, "seconds": 0.0}
    # What begins anew from the dense weights would lose what the parent has learnt.
    beginnings: dict[str, object] = {"init": "decompose", "reconstruction_steps": 0, "sparsity_until": 0.0}
    try:
        return replace(parent.spec.finetune, **({"allocation": "fixed"} | lengths | beginnings | given))
    except ValueError as error:
        raise ConfigError(f"with the recipe of trial {parent.number} {error}; change the flags") from error


def continue_training(
    study: Study,
    number: int,
    finetune: FinetuneConfig,
    *,
    task: Task,
    device: str,
    on_step: Progress | None = None,
    on_wait: Callable[[str], None] = lambda _: None,
) -> TrialRecord:
    """Trains the model of a complete trial on and stores the result. The same call again gives the same trial.

    on_step: hears how much of the training is done, 0 to 1, and the loss. on_wait: hears why storing has to wait.

    Raises NotFoundError, ConfigError where the trial is not a compressed model that was trained to its end or the
    checkpoint is another's, ModelError where the task is another one, NonFiniteError or DivergedError.
    """
    parent = study.trial(number)
    if parent.state is not TrialState.COMPLETE or not parent.spec.plan:
        what = "the dense model" if not parent.spec.plan else str(parent.state)
        raise ConfigError(f"trial {number} is {what}; choose a complete trial with a smaller model")
    study.check_task(task)
    files = files_folder(study.storage, study.name)
    files.mkdir(parents=True, exist_ok=True)
    bench = Workbench(task, torch.device(device), outbox=Outbox(files))
    spec = replace(parent.spec, finetune=filled(finetune, parent.spec.finetune), parent=key_of(parent.spec))
    if (known := _stored(study, spec)) is not None:
        return known
    started, checkpoint = now(), files / f"{key_of(spec)}.checkpoint"
    result, trained = _train(study, parent, spec, bench, checkpoint, on_step)
    Outbox(files).put_weights(key_of(spec), trained.model)
    record = TrialRecord(
        number=0,
        origin=f"finetune:{number}",
        spec=spec,
        recipe=None,
        state=TrialState.COMPLETE,
        started=started,
        finished=now(),
        result=result,
    )
    stored = _store(study, record, on_wait)
    _score(study, stored, trained, bench)
    checkpoint.unlink(missing_ok=True)
    return stored


def _stored(study: Study, spec: TrialSpec) -> TrialRecord | None:
    with Database.open(study.storage, create=False) as database:
        return next((trial for trial in database.trials(study.name) if trial.spec == spec), None)


def _train(
    study: Study, parent: TrialRecord, spec: TrialSpec, bench: Workbench, checkpoint: Path, on_step: Progress | None
) -> tuple[TrialResult, Trained]:
    assert parent.result is not None
    assert parent.result.measurement is not None
    measured = parent.result.measurement
    begun = perf_counter()
    memory.reset_peak(bench.device)
    with ExitStack() as held:
        held.enter_context(bench.lock.shared())
        candidate = start(spec, bench, study.lineage(parent.number))
        on_step = _taking_turns(held, bench, on_step)
        trained = train(candidate, spec, bench, checkpoint=checkpoint, on_step=on_step)
    result = replace(
        parent.result,  # the same net: what it costs and how fast it is stay
        key=key_of(spec),
        measurement=replace(
            measured, conditions={**measured.conditions, "reused from": f"{study.name}/{parent.number}"}, samples=None
        ),
        score=trained.score,
        oneshot=trained.oneshot,
        reason=trained.note or _no_better(parent, trained),
        seconds={"finetune": perf_counter() - begun},
        peak_memory_bytes=memory.peak(bench.device),
        environment=latency.environment(bench.device),
    )
    return result, trained


def _taking_turns(held: ExitStack, bench: Workbench, on_step: Progress | None) -> Progress:
    """Lets go of the device now and then, so that nobody has to wait with a measurement until all is trained."""
    taken = perf_counter()

    def after_step(done: float, loss: float) -> None:
        nonlocal taken
        if perf_counter() - taken >= TURN_SECONDS:
            held.close()
            held.enter_context(bench.lock.shared())
            taken = perf_counter()
        if on_step:
            on_step(done, loss)

    return after_step


def _no_better(parent: TrialRecord, trained: Trained) -> str | None:
    if trained.score.value > trained.oneshot.value:
        return None
    return f"the longer training is no better on validation than trial {parent.number}"


def _store(study: Study, record: TrialRecord, on_wait: Callable[[str], None]) -> TrialRecord:
    """Under the study's lock: a run that goes on numbers its trials by itself."""
    with Database.open(study.storage) as database:
        while True:
            try:
                with study_lock(database, study.name):
                    stored = database.add_trial(study.name, record)
                    mirror = OptunaMirror(database, study.record)
                    try:
                        mirror.catch_up(database.trials(study.name))
                    finally:
                        mirror.close()
                    return stored
            except StudyBusyError as error:
                on_wait(str(error))
                time.sleep(WAIT_SECONDS)


def _score(study: Study, record: TrialRecord, trained: Trained, bench: Workbench) -> None:
    if bench.task.test is None:
        return
    score = evaluate(trained.model, bench.task.test, bench.task.metric, device=bench.device)
    with Database.open(study.storage) as database:
        database.add_score(study.name, record.number, "test", score)
