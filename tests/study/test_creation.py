"""What a new study fixes: its profile, the options that are left, its seeds."""

import logging
from dataclasses import replace
from itertools import count

import pytest

from ranksearch.allocate import uniform_sweep
from ranksearch.database import Database
from ranksearch.errors import MeasurementError
from ranksearch.profiling.latencies import PROBE
from ranksearch.records import MeasureConfig, OptionProfile, Plan, Profile, Recipe
from ranksearch.space import SearchSpace
from ranksearch.study import creation, profiles
from ranksearch.study.creation import NUM_SEEDS, complete, seeds_of
from ranksearch.study.search import SearchConfig, run_search
from tests.study.conftest import FINETUNE, study_record
from tests.toy import toy_task


def made_up(layers, study, useless=()) -> Profile:
    """channel_svd loses twice as much as spatial_svd and is no faster; useless layers save no time."""
    options = []
    for layer in layers:
        for option in layer.options:
            saved = 1 - option.cost.macs / layer.cost.macs
            worse = 2.0 if option.choice.method == "channel_svd" else 1.0
            options.append(
                OptionProfile(
                    layer=layer.name,
                    choice=option.choice,
                    cost=option.cost,
                    latency=0.01 if layer.name in useless and saved else -0.2 * saved,
                    latency_deviation=0.001,
                    layer_ms=0.4 * (1 - saved),
                    error=saved**2,
                    loss=worse * saved**2,
                )
            )
    return Profile(
        identity=study.identity | {"probe": str(PROBE)},
        dense_ms=2.0,
        options=tuple(options),
        shapes={layer.name: layer.shape for layer in layers},
    )


class Worker:
    """An executor whose worker makes profiles up, and counts which layers it was asked for."""

    def __init__(self, study, error=None, useless=()):
        self.study, self.error, self.useless, self.asked, self.told = study, error, useless, [], []
        self.cores = 2

    def call(self, function, layers, measure, finetune, seconds, known):
        assert function is profiles.profiled
        assert finetune.threads >= 1
        self.asked.append([layer.name for layer in layers])
        self.told.append(known)
        if self.error:
            raise self.error
        return made_up(layers, self.study, self.useless)


@pytest.fixture
def draft():
    return replace(study_record(), seeds=())


@pytest.fixture
def database(tmp_path):
    with Database.open(f"sqlite:///{tmp_path}/ranksearch.db") as opened:
        yield opened


def completed(draft, database, worker, seconds=1.0, budget=200):
    stages = []
    return complete(draft, database, worker, seconds=seconds, budget=budget, on_stage=stages.append), stages


def test_what_is_beaten_is_left_out_and_the_knapsack_gives_the_first_seeds(draft, database):
    worker = Worker(draft)
    study, stages = completed(draft, database, worker)
    assert worker.asked == [[layer.name for layer in draft.layers]]
    assert stages == ["profiling 44 options of 4 layers"]
    for layer in study.layers:
        assert {option.choice.method for option in layer.options} == {"spatial_svd", "dense"}
        assert layer.options[-1].choice.is_dense
    assert study.profile is not None
    assert len(study.profile.options) == 44
    origins = [seed.origin for seed in study.seeds]
    assert origins[0] == "dense"
    num = sum(origin.startswith("seed:knapsack") for origin in origins)
    assert 5 <= num <= NUM_SEEDS
    assert all(origin.startswith("seed:knapsack") for origin in origins[1 : num + 1])
    assert all(origin.startswith("seed:uniform") for origin in origins[num + 1 :])
    assert len({seed.plan for seed in study.seeds}) == len(study.seeds)
    database.save_study(study)
    assert database.load_study(study.name) == study


def test_a_short_search_tries_fewer_uniform_plans(draft, database):
    long, short = (completed(draft, database, Worker(draft), budget=budget)[0] for budget in (200, 20))
    assert set(short.seeds) < set(long.seeds)


def test_a_layer_where_nothing_is_faster_stays_dense_and_says_why(draft, database):
    study, _ = completed(draft, database, Worker(draft, useless=["layer1"]))
    assert [layer.name for layer in study.layers if not layer.options] == ["layer1"]
    assert "faster" in study.layers[1].skipped


def test_where_nothing_at_all_is_faster_everything_is_searched(draft, database, caplog):
    names = [layer.name for layer in draft.layers]
    study, _ = completed(draft, database, Worker(draft, useless=names))
    assert study.layers == draft.layers
    assert study.seeds == seeds_of(draft.layers, draft.recipes)
    assert "no option of any layer" in caplog.text


def test_what_another_study_has_profiled_is_not_profiled_again(draft, database):
    first, _ = completed(draft, database, Worker(draft))
    database.save_study(first)
    worker = Worker(draft)
    again, stages = completed(replace(draft, name="again"), database, worker)
    assert (worker.asked, stages) == ([], [])
    assert (again.layers, again.seeds, again.profile) == (first.layers, first.seeds, first.profile)
    known = tuple(option for option in first.profile.options if option.layer != "layer2")
    partial = replace(first, name="partial", profile=replace(first.profile, options=known))
    other = {**first.fingerprint, "data": "other"}
    database.save_study(replace(partial, fingerprint=other))
    lacking, _ = completed(replace(draft, fingerprint=other), database, worker)
    assert worker.asked == [["layer2"]]
    assert lacking.profile.options == first.profile.options


def test_another_net_is_told_what_is_known_of_layers_by_themselves(draft, database):
    worker = Worker(draft)
    first, _ = completed(draft, database, worker)
    other = replace(draft, fingerprint={**draft.fingerprint, "model": "other"})
    elsewhere = replace(draft, fingerprint={**draft.fingerprint, "latency device_model": "other"})
    for study in (other, elsewhere):
        completed(study, database, worker)
    assert worker.told[0].layers == worker.told[2].layers == ()
    assert set(worker.told[1].layers) == set(first.profile.timings.layers)
    assert len(worker.told[1].layers) >= 10


@pytest.mark.parametrize("why", ["no time", "no latency", "slow methods"])
def test_without_a_profile_uniform_plans_are_the_seeds(draft, database, why, monkeypatch):
    worker = Worker(draft)
    if why == "no latency":
        draft = replace(draft, objectives=("parameters", "accuracy"))
    if why == "slow methods":
        monkeypatch.setattr(creation.METHODS["spatial_svd"], "is_sliced", False, raising=False)
    study, _ = completed(draft, database, worker, seconds=0.0 if why == "no time" else 1.0)
    assert worker.asked == []
    assert study.profile is None
    assert study.layers == draft.layers
    assert [seed.plan for seed in study.seeds] == [Plan(), *(seed.plan for seed in uniform_sweep(draft.layers))]


def test_a_profile_that_cannot_be_made_is_said_and_done_without(draft, database, caplog):
    with caplog.at_level(logging.WARNING):
        study, _ = completed(draft, database, Worker(draft, MeasurementError("no kernel")))
    assert study.profile is None
    assert "no profile: no kernel" in caplog.text


def test_every_recipe_is_tried_by_some_seeds(draft, database):
    recipes = tuple(Recipe(name=name, finetune=replace(FINETUNE, steps=i)) for i, name in enumerate("abc"))
    study, _ = completed(replace(draft, recipes=recipes), database, Worker(draft))
    tried = {seed.recipe for seed in study.seeds}
    assert tried == {None, "b", "c"}


def test_a_real_run_profiles_searches_what_is_left_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("ranksearch.latency.protocol.MAX_WARMUP_SECONDS", 0.05)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    task, calls = toy_task(), count()
    config = SearchConfig(
        budget=4,
        study="toy",
        storage=f"sqlite:///{tmp_path}/ranksearch.db",
        executor="inline",
        profile_seconds=1.0,
        finetune={"steps": 2, "precision": "float32", "layout": "contiguous", "threads": 1, "factors": "fisher"},
        measure=MeasureConfig(batch_size=2, max_seconds=0.05, min_blocks=2, iterations_per_block=2),
    )
    original = profiles.profiled
    monkeypatch.setattr(profiles, "profiled", lambda *given: (next(calls), original(*given))[1])
    first = run_search(task, config).record
    assert first.profile is not None
    assert {o.layer for o in first.profile.options} >= {layer.name for layer in first.layers if layer.options}
    num_plans = SearchSpace.of(first).num_proposals  # few may be left of this small net
    assert len(run_search(task, replace(config, budget=6)).trials()) == min(6, num_plans)
    assert next(calls) == 1
