"""A training that will not recover is ended; one that only had a bad moment is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.errors import DivergedError, NonFiniteError
from ranksearch.finetune.divergence import Watch


def watched(losses: list[float], smaller_at: int | None = None) -> int:
    """How many losses were seen before it was ended; all of them where it was not."""
    watch = Watch()
    for step, loss in enumerate(losses):
        if step == smaller_at:
            watch.begin_again()
        try:
            watch.look(loss, step / len(losses))
        except DivergedError:
            return step
    return len(losses)


def test_worse_for_more_than_half_of_it_ends_it():
    assert 500 < watched([1.0] * 50 + [1.2] * 950) <= 560


@pytest.mark.parametrize("start", [1.0, -1.0])
def test_a_little_worse_is_not_worse(start):
    assert watched([start] * 50 + [start + 0.09] * 950) == 1000
    assert watched([start] * 50 + [start + 0.12] * 950) < 600


def test_worse_for_less_than_half_of_it_does_not():
    assert watched([1.0] * 50 + [1.2] * 450 + [0.5] * 500) == 1000


def test_being_worse_must_not_be_interrupted():
    assert watched(([1.0] * 10 + [1.2] * 390 + [0.1] * 100) * 4) == 2000


def test_a_short_training_is_not_ended_early():
    assert watched([1.0] * 10 + [5.0] * 90) == 100


@given(st.lists(st.floats(0, 1), min_size=10, max_size=400))
def test_losses_below_the_first_never_end_it(losses):
    assert watched([1.0] * 10 + losses) == len(losses) + 10


def test_a_model_that_was_made_smaller_is_measured_by_what_it_is_since():
    assert watched([0.1] * 300 + [1.2] * 700, smaller_at=300) == 1000
    assert 820 < watched([0.1] * 300 + [1.2] * 20 + [1.5] * 680, smaller_at=300) <= 880
    assert watched([0.1] * 10 + [1.2] * 390 + [1.3] * 10 + [1.5] * 400 + [0.1] * 190, smaller_at=400) == 1000


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_it_at_once(loss):
    watch = Watch()
    watch.look(1.0, 0.0)
    with pytest.raises(NonFiniteError, match="step 2"):
        watch.look(loss, 0.1)
