"""The link: monotone, its slope its derivative, found again from what it made."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.study.additive.link import POWERS, Link

links = st.builds(
    Link, plateau=st.floats(-0.05, 0.05), midpoint=st.floats(0.01, 100), power=st.sampled_from(POWERS.tolist())
)


@given(links)
def test_more_damage_loses_more_but_hardly_more_than_everything(link):
    u = np.linspace(-1, 50, 400)
    lost = link(u * link.midpoint)
    assert link(np.zeros(1)) == pytest.approx(link.plateau)
    assert np.all(np.diff(lost) > 0)
    assert np.all(lost < link.plateau + 1.05)


@given(links)
def test_the_slope_is_the_derivative_below_zero_and_above(link):
    u = np.array([-0.5, 0.0, 0.03, 0.049, 0.051, 0.2, 1.0, 5.0])
    step = 1e-6
    finite = (link((u + step) * link.midpoint) - link((u - step) * link.midpoint)) / (2 * step * link.midpoint)
    np.testing.assert_allclose(link.slope(u * link.midpoint), finite, rtol=1e-4)


@pytest.mark.parametrize("true", [Link(0.01, 2.0, 2.1), Link(-0.01, 0.3, 1.0), Link(0.0, 30.0, 1.45)])
def test_fit_finds_the_link_that_made_the_data(true):
    rng = np.random.default_rng(0)
    damage = true.midpoint * rng.uniform(-0.02, 1.5, 200)
    lost = true(damage) + rng.normal(0, 0.002, 200)
    found = Link.fit(damage, lost, np.full(200, 0.002**2))
    assert found.power == true.power
    assert found.plateau == pytest.approx(true.plateau, abs=0.003)
    np.testing.assert_allclose(found(damage), true(damage), atol=0.02)


def test_nearly_dense_trials_set_the_plateau():
    """A gain by training shows as a plateau below 0, a loss as one above, whatever damaged trials say."""
    damage = np.concatenate([np.full(20, 0.01), np.linspace(0.5, 3, 10)])
    for plateau in (-0.015, 0.015):
        lost = Link(plateau, 2.0, 1.75)(damage)
        noise = 0.0026**2 + (0.1 * np.maximum(lost, 0)) ** 2
        assert Link.fit(damage, lost, noise)(np.array([0.01])).item() == pytest.approx(plateau, abs=0.002)


def test_one_trial_without_damage_is_no_obstacle():
    assert Link.fit(np.zeros(1), np.zeros(1), np.full(1, 1e-5)).plateau == pytest.approx(0, abs=0.01)
