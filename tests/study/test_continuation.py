"""A trial's model trained on: a child with its plan and its latency, stored once, resumable, no trial of the search."""

from dataclasses import replace

import optuna
import pytest
import torch

from ranksearch.database import Database, study_lock
from ranksearch.errors import ConfigError, ModelError, NotFoundError
from ranksearch.finetune import loop
from ranksearch.latency import DeviceLock
from ranksearch.records import MeasureConfig, key_of
from ranksearch.study import continuation
from ranksearch.study.continuation import continue_training, longer
from ranksearch.study.search import SearchConfig, run_search
from ranksearch.study.study import files_folder
from tests.toy import ToyNet, toy_task

BUDGET = 5


@pytest.fixture(autouse=True)
def _quick_measurements(monkeypatch):
    """Nobody looks at these latencies."""
    monkeypatch.setattr("ranksearch.latency.protocol.MAX_WARMUP_SECONDS", 0.05)


@pytest.fixture
def config(tmp_path):
    return SearchConfig(
        budget=BUDGET,
        study="toy",
        storage=f"sqlite:///{tmp_path}/ranksearch.db",
        executor="inline",
        profile_seconds=0,
        finetune={"steps": 2, "precision": "float32", "layout": "contiguous", "threads": 1},
        measure=MeasureConfig(batch_size=2, max_seconds=0.05, min_blocks=2, iterations_per_block=2),
    )


@pytest.fixture
def task():
    return toy_task()


@pytest.fixture
def study(config, task):
    return run_search(task, config)


@pytest.fixture
def go_on(study, task):
    def run(number=3, **given):
        on_step, on_wait = given.pop("on_step", None), given.pop("on_wait", pytest.fail)
        finetune = longer(study.trial(number), {"steps": 12, **given})
        return continue_training(study, number, finetune, task=task, device="cpu", on_step=on_step, on_wait=on_wait)

    return run


def same(a, b) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def test_a_child_has_its_parent_s_plan_and_latency_and_is_no_worse(study, config, go_on):
    child, parent = go_on(), study.trial(3)
    assert child == study.trial(BUDGET)
    assert (child.origin, child.recipe, child.spec.parent) == ("finetune:3", None, key_of(parent.spec))
    assert child.spec.plan == parent.spec.plan
    measured = parent.result.measurement
    conditions = {**measured.conditions, "reused from": "toy/3"}
    assert child.result.measurement == replace(measured, conditions=conditions)
    assert child.result.oneshot == parent.result.score
    assert child.result.score.value >= parent.result.score.value
    mirrored = optuna.load_study(study_name="toy", storage=config.storage).get_trials()
    assert [trial.number for trial in mirrored] == list(range(BUDGET + 1))
    row = study.trials().loc[BUDGET]
    assert (row.parent, row.test_accuracy > 0) == (3, True)


def test_the_model_of_a_child_is_loaded_and_made_again_from_its_lineage(study, config, go_on, task):
    grandchild = go_on(go_on(learning_rate=0.01).number, steps=5)
    assert [spec.parent is None for spec in study.lineage(grandchild.number)] == [True, False, False]
    kept = study.load(grandchild.number, task=task)
    for file in files_folder(config.storage, "toy").glob("*.safetensors"):
        file.unlink()
    assert same(study.load(grandchild.number, task=task), kept)


def test_the_same_call_again_gives_the_same_trial(study, go_on):
    assert go_on() == go_on()
    assert len(study.trials()) == BUDGET + 1
    assert go_on(steps=13).number == BUDGET + 1


class Killed(BaseException):
    pass


def test_a_killed_one_goes_on_where_it_was(study, config, go_on, task, monkeypatch):
    uninterrupted = go_on()
    weights = study.load(uninterrupted.number, task=task)
    monkeypatch.setattr(continuation, "_stored", lambda *_: None)  # as if it had never been done
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)

    def kill(done, _):
        if done > 0.5:
            raise Killed

    with pytest.raises(Killed):
        go_on(on_step=kill)
    assert len(study.trials()) == BUDGET + 1  # nothing half-written
    heard = []
    again = go_on(on_step=lambda done, _: heard.append(done))
    assert heard[0] > 0.5
    assert heard[-1] == 1
    assert same(study.load(again.number, task=task), weights)
    assert not list(files_folder(config.storage, "toy").glob("*.checkpoint"))


def test_a_search_goes_on_as_if_there_were_no_child(study, config, task, go_on):
    child = go_on().number
    run_search(task, replace(config, budget=BUDGET + 2))
    trials = study.trials()
    assert list(trials.index) == list(range(BUDGET + 3))
    assert (trials.origin == "sampler").sum() + trials.origin.str.startswith("seed").sum() == BUDGET + 1
    mirrored = optuna.load_study(study_name="toy", storage=config.storage).get_trials()
    assert [trial.user_attrs["origin"] for trial in mirrored] == list(trials.origin)
    assert mirrored[child].params == mirrored[3].params


def test_it_waits_for_a_run_to_let_go_before_it_stores(study, config, go_on, monkeypatch):
    monkeypatch.setattr(continuation, "WAIT_SECONDS", 0.0)
    with Database.open(config.storage) as database:
        lock = study_lock(database, "toy")
        lock.__enter__()
        waited = []

        def on_wait(why):
            assert len(study.trials()) == BUDGET
            waited.append(why)
            lock.__exit__(None, None, None)

        assert go_on(on_wait=on_wait).number == BUDGET
    assert len(waited) == 1
    assert "is being run" in waited[0]


def test_others_may_measure_meanwhile(go_on, monkeypatch):
    """The device's lock is let go of between steps, and taken again."""
    taken, shared = [], DeviceLock.shared
    monkeypatch.setattr(DeviceLock, "shared", lambda self: taken.append(self) or shared(self))
    go_on()
    before = len(taken)
    monkeypatch.setattr(continuation, "TURN_SECONDS", 0.0)
    go_on(steps=13)
    assert len(taken) >= before + 13


def test_what_cannot_be_trained_on(study, go_on, task):
    with pytest.raises(ConfigError, match="trial 0 is the dense model"):
        go_on(0)
    with pytest.raises(NotFoundError, match="99"):
        go_on(99)
    with pytest.raises(ConfigError, match="--epochs, --steps or --seconds"):
        longer(study.trial(3), {"learning_rate": 0.1})
    with pytest.raises(ConfigError, match="with the recipe of trial 3 correlation_weight is 1"):
        longer(study.trial(3), {"steps": 1, "atcd": "project", "correlation_weight": 1.0})
    other = replace(task, model=ToyNet(16))
    with pytest.raises(ModelError, match="another model"):
        continue_training(study, 3, longer(study.trial(3), {"steps": 1}), task=other, device="cpu")


def test_longer_is_the_parent_s_recipe_but_for_its_length_and_start(study):
    parent = study.trial(3)
    parent = replace(parent, spec=replace(parent.spec, finetune=replace(
        parent.spec.finetune, init="random", reconstruction_steps=9, sparsity_until=0.5, seconds=3, ema=0.5
    )))  # fmt: skip
    found = longer(parent, {"epochs": 2.0})
    assert (found.epochs, found.steps, found.seconds, found.reconstruction_steps) == (2, 0, 0, 0)
    assert (found.init, found.sparsity_until, found.ema) == ("decompose", 0, 0.5)
