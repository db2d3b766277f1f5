"""The fit of what a predicted loss costs."""

import numpy as np
import pytest

from benchmarks.half_loss import fitted, off
from ranksearch.allocate.seeds import POWER


@pytest.mark.parametrize("half", [1.3, 4.7, 20.0])
def test_the_half_loss_that_made_the_points_is_found_again(half: float) -> None:
    random = np.random.default_rng(0)
    losses = random.lognormal(0, 1.5, 300)
    kept = half**POWER / (half**POWER + losses**POWER) + 0.01 * random.standard_normal(300)
    found = fitted(losses, kept)
    assert found == pytest.approx(half, rel=0.05)
    assert off(losses, kept, found) == pytest.approx(0.01, rel=0.2)
    assert off(losses, kept, 2 * half) > 2 * off(losses, kept, found)
