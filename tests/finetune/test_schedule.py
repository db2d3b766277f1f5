"""Learning rates begin at the config's and go where the schedule's name says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, lr_scheduler

from ranksearch.finetune.schedule import learning_rate
from ranksearch.records import FinetuneConfig

STEPS = 20
THEIRS = {
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
    "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, STEPS),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "step": lambda o: lr_scheduler.StepLR(o, 6),  # 0.3 of 20
}


@pytest.mark.parametrize("schedule", THEIRS)
def test_rates_are_those_of_the_schedulers_of_torch(schedule):
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = THEIRS[schedule](optimizer)
    config = FinetuneConfig(learning_rate=0.5, schedule=schedule, decay_every=0.3)
    for step in range(STEPS):
        assert learning_rate(config, step / STEPS) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        scheduler.step()


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(list(THEIRS)))
def test_rates_never_rise(a, b, schedule):
    config = FinetuneConfig(schedule=schedule)
    assert learning_rate(config, min(a, b)) >= learning_rate(config, max(a, b)) >= 0
