"""Proposals of the additive sampler, through plain Optuna."""

import itertools

import numpy as np
import optuna
import pytest
from optuna._hypervolume import compute_hypervolume
from optuna.trial import TrialState

from ranksearch.errors import ConfigError
from ranksearch.study.additive import AdditiveSampler
from ranksearch.study.mirror import distributions
from tests.study.additive.conftest import OBJECTIVES, World

MINIMIZE = {"latency": "minimize", "accuracy": "maximize", "parameters": "minimize"}


def study_of(world: World, objectives=OBJECTIVES, **options) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = AdditiveSampler(world.space, objectives, **options)
    return optuna.create_study(directions=[MINIMIZE[o] for o in objectives], sampler=sampler)


def drive(study: optuna.Study, world: World, num: int) -> None:
    for _ in range(num):
        trial = study.ask(distributions(world.space))
        study.tell(trial, world.values(trial.params))


def plans(study: optuna.Study) -> list[tuple]:
    return [tuple(trial.params.values()) for trial in study.trials]


def area(study: optuna.Study) -> float:
    found = [(t.values[0], -t.values[1]) for t in study.trials if t.values]
    return compute_hypervolume(np.minimum(np.array(found), [1.0, -0.45]), np.array([1.0, -0.45]))


def test_plain_optuna_optimizes_with_it():
    world = World()
    study = study_of(world, profile=world.profile())

    def objective(trial):
        params = {name: trial.suggest_int(name, 0, 10) for name in world.space.sizes}
        trial.suggest_float("of another space", 0, 1)
        return world.values(params)

    study.optimize(objective, n_trials=20)
    assert len({tuple(trial.params[name] for name in world.space.sizes) for trial in study.trials}) == 20
    assert study.trials[0].values == [1.0, 0.9]  # the dense model first
    assert all("of another space" in trial.params for trial in study.trials)


def test_it_beats_random_draws_with_a_profile_and_without():
    areas = {"profile": [], "none": [], "random": []}
    for seed in range(3):
        world = World(num_layers=6, seed=seed)
        for name, profile in (("profile", world.profile()), ("none", None)):
            study = study_of(world, profile=profile, seed=seed)
            drive(study, world, 30)
            areas[name].append(area(study))
        study = study_of(world)
        study.sampler = optuna.samplers.RandomSampler(seed=seed)
        drive(study, world, 30)
        areas["random"].append(area(study))
    assert np.all(np.array(areas["profile"]) >= np.array(areas["none"]) * 0.99)
    assert np.all(np.array(areas["none"]) > np.array(areas["random"]) * 1.05)


def test_the_whole_front_of_a_small_space_is_found_first():
    """121 plans without noise: the true front is there after a quarter of them."""
    world = World(num_layers=2)
    study = study_of(world, profile=world.profile(spread=0.05))
    drive(study, world, 30)
    every = [world.values({"layer0": a, "layer1": b}) for a, b in itertools.product(range(11), repeat=2)]
    best = study_of(world)
    best.add_trials([optuna.trial.create_trial(values=values) for values in every])
    assert area(study) > 0.995 * area(best)


@pytest.mark.parametrize(("num_layers", "recipes", "num"), [(1, ("a",), 11), (1, ("a", "b"), 21), (2, ("a",), 121)])
def test_all_of_a_space_is_proposed_once(num_layers, recipes, num):
    world = World(num_layers, recipes)
    study = study_of(world)
    drive(study, world, num)
    assert len(set(plans(study))) == num


def test_running_failed_and_pruned_trials_are_not_proposed_again():
    world = World()
    study = study_of(world)
    drive(study, world, 8)
    for state in (TrialState.FAIL, TrialState.PRUNED, None) * 5:
        trial = study.ask(distributions(world.space))
        if state is not None:
            study.tell(trial, state=state)
    assert len(set(plans(study))) == 23


class Blind(AdditiveSampler):
    """Does not see what runs, but that it must not be proposed again."""

    def _read(self, trials, current):
        super()._read(trials, current)
        return []


def test_parallel_proposals_spread():
    """Eight proposals at once lie farther apart than eight that know nothing of each other, and gain more together."""
    gains, spreads = ({AdditiveSampler: 0.0, Blind: 0.0} for _ in range(2))
    for seed, kind in itertools.product(range(4), gains):
        world = World(num_layers=6, seed=seed)
        study = study_of(world, profile=world.profile())
        drive(study, world, 4)
        before = area(study)
        study.sampler = kind(world.space, OBJECTIVES, profile=world.profile())
        trials = [study.ask(distributions(world.space)) for _ in range(8)]
        for trial in trials:
            study.tell(trial, world.values(trial.params))
        gains[kind] += area(study) - before
        spreads[kind] += float(np.std([trial.values[0] for trial in study.trials[-8:]]))
    assert gains[AdditiveSampler] > 1.2 * gains[Blind]
    assert spreads[AdditiveSampler] > 1.2 * spreads[Blind]


def test_the_same_study_and_seed_propose_the_same():
    world = World(noise=0.01, recipes=("a", "b"))
    first, second = (study_of(world, seed=4) for _ in range(2))
    for study in (first, second):
        drive(study, world, 40)
    assert plans(first) == plans(second)
    other = study_of(world, seed=5)
    drive(other, world, 40)
    assert plans(other) != plans(first)


def test_a_resumed_study_goes_on_as_the_one_that_was_not_interrupted():
    world = World(num_layers=5)
    study = study_of(world, seed=2)
    drive(study, world, 50)
    resumed = study_of(world, seed=2)
    resumed.add_trials(study.trials[:40])
    drive(resumed, world, 10)
    assert plans(resumed) == plans(study)


def test_one_sampler_serves_one_study_after_the_other():
    world = World()
    first, fresh = study_of(world), study_of(world)
    drive(first, world, 12)
    again = optuna.create_study(directions=first.directions, sampler=first.sampler)
    for study in (again, fresh):
        drive(study, world, 12)
    assert plans(again) == plans(fresh)


@pytest.mark.parametrize("limit", [{"max_drop": 0.05}, {"min_speedup": 3.0}, {"max_drop": 0.2, "min_speedup": 1.5}])
def test_most_proposals_meet_the_constraints_once_the_model_knows(limit):
    world = World(num_layers=6)
    met, free = (share_met(world, limit, limits) for limits in (limit, {}))
    assert met >= 0.75
    assert met > free + 0.15


def share_met(world, limit, options) -> float:
    study = study_of(world, profile=world.profile(spread=0.05), **options)
    drive(study, world, 45)
    values = [trial.values for trial in study.trials[15:]]
    met = [
        0.9 - acc <= limit.get("max_drop", 1) and ratio <= 1 / limit.get("min_speedup", 0.1) for ratio, acc in values
    ]
    return sum(met) / len(met)


def test_the_better_recipe_is_found():
    world = World(recipes=("a", "worse", "best"))
    world.recipe = np.array([0.0, 0.5, -0.5])
    study = study_of(world, profile=world.profile())
    drive(study, world, 60)
    last = [trial.params["@recipe"] for trial in study.trials[30:]]
    assert last.count("best") > 15
    assert last.count("worse") < 5


@pytest.mark.parametrize("objectives", [("latency", "accuracy", "parameters"), ("parameters", "accuracy")])
def test_other_objectives_are_searched(objectives):
    world = World(num_layers=5)

    def value(params, objective):
        kept = [lay.options[params[lay.name]].cost.parameters for lay in world.space.layers]
        return {"parameters": 999 + sum(kept), **dict(zip(OBJECTIVES, world.values(params), strict=True))}[objective]

    def outcome(sampler, num=35):
        study = study_of(world, objectives)
        study.sampler = sampler or study.sampler
        for _ in range(num):
            trial = study.ask(distributions(world.space))
            study.tell(trial, [value(trial.params, o) for o in objectives])
        signs = np.array([-1 if o == "accuracy" else 1 for o in objectives])
        worst = np.array([{"latency": 1.0, "accuracy": -0.45, "parameters": 999 + 5 * 1600}[o] for o in objectives])
        points = np.array([trial.values for trial in study.trials]) * signs
        assert len(set(plans(study))) == num or sampler
        return compute_hypervolume(points[(points < worst).all(1)], worst)

    assert outcome(None) > 1.1 * outcome(optuna.samplers.RandomSampler(seed=0))


def test_a_speed_up_without_latency_is_refused():
    with pytest.raises(ConfigError, match="min speedup is 2, but the objectives are accuracy, macs; add latency"):
        AdditiveSampler(World().space, ("accuracy", "macs"), min_speedup=2.0)
