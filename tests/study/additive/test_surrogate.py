"""What is predicted of trials: from the prior alone, from an additive world, resumed."""

from dataclasses import replace

import numpy as np
import pytest

from ranksearch.errors import ConfigError
from ranksearch.study.additive.coding import Coding
from ranksearch.study.additive.prior import damage_prior, latency_prior
from ranksearch.study.additive.surrogate import SMALL, Surrogate, _last_fit
from tests.study.additive.conftest import OBJECTIVES, World


def draws(coding: Coding, num: int, seed: int = 0):
    codes = np.random.default_rng(seed).integers(coding.sizes_V, size=(num, len(coding.sizes_V)))
    codes[0] = coding.dense
    return coding.canonical(codes)


def taught(world: World, num: int, profile=None, objectives=OBJECTIVES) -> Surrogate:
    coding = Coding(world.space)
    surrogate = Surrogate(coding, objectives, profile)
    for codes in draws(coding, num):
        surrogate.observe(codes, world.values(coding.decode(codes)))
        surrogate.refresh()
    return surrogate


def errors(world: World, surrogate: Surrogate) -> np.ndarray:
    coding = Coding(world.space)
    codes = draws(coding, 100, seed=9)
    codes = codes[~coding.is_dense(codes)]
    true = np.array([world.values(coding.decode(code)) for code in codes])
    true[:, 1] = (0.9 - true[:, 1]) / 0.9
    return np.abs(surrogate.predict(codes)[0] - true).max(0)


@pytest.mark.parametrize("has_profile", [True, False])
@pytest.mark.parametrize("recipes", [("a",), ("a", "b", "c")])
def test_an_additive_world_is_predicted_exactly_in_the_end(has_profile, recipes):
    world = World(recipes=recipes)
    profile = world.profile() if has_profile else None
    early, late = (errors(world, taught(world, num, profile)) for num in (5, 300))
    assert np.all(late < [1e-6, 0.025])
    assert np.all(late < early / 4)


def test_a_profile_is_worth_trials():
    world = World(num_layers=6)
    assert np.all(errors(world, taught(world, 12, world.profile())) < errors(world, taught(world, 12)))


def test_what_was_learnt_is_the_same_after_a_resume():
    world = World(noise=0.01)
    coding = Coding(world.space)
    step_by_step, resumed = taught(world, 70), Surrogate(coding, OBJECTIVES, None)
    for codes in draws(coding, 70):
        resumed.observe(codes, world.values(coding.decode(codes)))
    resumed.refresh()
    assert _last_fit(70) != 70  # updates are compared, too
    for name in ("latency", "accuracy"):
        np.testing.assert_array_equal(resumed.effects[name].mean, step_by_step.effects[name].mean)
        np.testing.assert_array_equal(resumed.effects[name].covariance, step_by_step.effects[name].covariance)
    assert resumed.link == step_by_step.link


def test_fits_grow_rarer_but_never_rarer_than_an_eighth():
    fits = [_last_fit(num) for num in range(3000)]
    assert fits[: SMALL + 1] == list(range(SMALL + 1))
    assert all(fit <= num < fit * 1.125 + 1 for num, fit in enumerate(fits))
    assert all(_last_fit(fit) == fit for fit in fits)
    assert len(set(fits)) < 75


@pytest.mark.parametrize("objective", ["parameters", "macs", "bytes"])
def test_costs_are_known_after_one_trial_and_exact_after_two(objective):
    world, per_unit, rest = World(), {"bytes": 2.0}.get(objective, 1.0), 777.0
    coding = Coding(world.space)
    surrogate = Surrogate(coding, ("accuracy", objective), None)
    name = "macs" if objective == "macs" else "parameters"

    def cost(codes):
        options = [each.options[code] for each, code in zip(world.space.layers, codes, strict=True)]
        return rest + per_unit * sum(getattr(option.cost, name) for option in options)

    codes = draws(coding, 20)
    for num in (1, 2):
        surrogate.observe(codes[num - 1], (0.9, cost(codes[num - 1])))
        if num == 2 or objective != "bytes":
            mean, sd = surrogate.predict(codes)
            np.testing.assert_allclose(mean[:, 1], [cost(code) for code in codes])
            assert not sd[:, 1].any()


def test_the_dense_model_needs_no_prediction():
    surrogate = taught(World(), 40)
    np.testing.assert_allclose(surrogate.reference(), [1.0, 0.5])
    assert surrogate.dense_accuracy == 0.9


def test_negative_losses_count():
    """An option that the profile finds better than dense is predicted better than the rest."""
    world = World()
    profile = world.profile(spread=0.0)
    first = profile.options[0]
    better = replace(profile, options=(replace(first, loss=-0.5), *profile.options[1:]))
    coding = Coding(world.space)
    only_first = coding.dense.copy()
    only_first[0] = 0
    (lost,) = Surrogate(coding, OBJECTIVES, better).predict(only_first[None])[0][:, 1]
    assert lost < 0


def test_a_missing_loss_is_the_error_in_the_layer_s_units():
    world = World()
    full = world.profile(spread=0.0)
    partial = replace(full, options=tuple(replace(o, loss=None) if i % 2 else o for i, o in enumerate(full.options)))
    coding = Coding(world.space)
    wanted = damage_prior(coding, full).mean
    np.testing.assert_allclose(damage_prior(coding, partial).mean, wanted)
    without = damage_prior(coding, world.profile(spread=0.0, with_losses=False)).mean
    np.testing.assert_allclose(without, wanted / (3 + coding.variable))


def test_the_share_lost_is_as_uncertain_as_its_damage_makes_it():
    surrogate = taught(World(noise=0.01), 40)
    coding = Coding(World().space)
    codes = draws(coding, 20, seed=5)[1:]
    damage, doubt = surrogate.effects["accuracy"].predict(coding.columns(codes))
    _, sd = surrogate.predict(codes)
    np.testing.assert_allclose(2 * sd[:, 1], surrogate.link(damage + doubt) - surrogate.link(damage - doubt))


def test_priors_know_what_dense_and_the_first_recipe_do():
    world = World(recipes=("a", "b"))
    coding = Coding(world.space)
    dense = coding.columns(coding.dense)
    for prior in (latency_prior(coding, None), damage_prior(coding, world.profile())):
        assert not prior.mean[dense].any()
        assert not prior.covariance[dense].any()
    is_known = np.diag(damage_prior(coding, None).covariance) == 0
    assert is_known.sum() == len(dense)
    assert np.linalg.eigvalsh(damage_prior(coding, world.profile()).covariance).min() > -1e-9


def test_a_profile_of_another_space_is_refused():
    world = World()
    profile = world.profile()
    with pytest.raises(ConfigError, match="lacks channel_svd:80 of layer 'layer3'"):
        Surrogate(Coding(world.space), OBJECTIVES, replace(profile, options=profile.options[:-1]))
