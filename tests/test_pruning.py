"""Who is stopped: hardly ever a trial that would have joined the front, and the others unchanged by being looked at."""

import dataclasses
import math
import random

import pytest
import torch

from ranksearch.pruning import MIN_TRIALS, StoppedError, Watch, forecast, worth_a_look
from ranksearch.records import ONE_SHOT, Bar, FinetuneConfig, Score, TrialState
from ranksearch.trial import run, start, train
from ranksearch.workbench import Workbench
from tests.study.conftest import measurement
from tests.test_trial import CPU, NARROW, PLAN, spec


def score(value: float) -> Score:
    return Score(value=value, low=value, high=value, num_examples=1000)


def bar(*, front, finished, below=0.05, objectives=("latency", "accuracy")) -> Bar:
    return Bar(below=below, dense_accuracy=1.0, objectives=objectives, front=front, finished=finished)


HELPED = {ONE_SHOT: tuple((lost / 20, lost / 40) for lost in range(1, 20))}  # training makes good a half


def is_stopped(found: Bar, lost: float, latency: float, stage: str = ONE_SHOT) -> bool:
    try:
        Watch(found, {"latency": latency}, scores={ONE_SHOT: score(1 - lost)}).look(stage, score(1 - lost))
    except StoppedError:
        return True
    return False


def test_what_cannot_come_near_the_front_is_stopped_and_says_why():
    found = bar(front=((0.5, 0.9),), finished=HELPED)
    with pytest.raises(StoppedError) as error:
        Watch(found, {"latency": 0.6}).look(ONE_SHOT, score(0.4))
    assert error.match(r"one-shot 40\.0 %: with .* % probability above the 90\.0 % that its latency would need")
    assert error.value.expected.value == pytest.approx(0.7, abs=0.01)
    assert not is_stopped(found, 0.6, latency=0.4), "faster than all of the front"
    assert not is_stopped(found, 0.15, latency=0.6), "likely to be better in the end"
    assert not is_stopped(found, 0.01, latency=0.6), "better than all that is known"
    assert not is_stopped(dataclasses.replace(found, below=0.0), 0.6, latency=0.6)
    assert not is_stopped(found, 0.6, latency=0.6, stage="1/2"), "nobody was looked at then"


def test_every_other_objective_counts():
    found = bar(front=((0.5, 0.9, 100.0), (0.7, 0.8, 50.0)), finished={}, objectives=("latency", "accuracy", "bytes"))
    assert found.needed({"latency": 0.6, "bytes": 100}) == 0.9
    assert found.needed({"latency": 0.8, "bytes": 60}) == 0.8
    assert found.needed({"latency": 0.8, "bytes": 200}) == 0.9
    assert found.needed({"latency": 0.6, "bytes": 99}) is None


def test_few_trials_stop_nothing():
    few = HELPED[ONE_SHOT][: MIN_TRIALS - 1]
    assert forecast(0.3, few) is None
    assert forecast(0.3, HELPED[ONE_SHOT][:MIN_TRIALS]) is not None


def test_fewer_trials_leave_more_to_chance():
    noisy = [(x / 40, x / 80 + 0.01 * (-1) ** x) for x in range(1, 41)]
    few, many = forecast(0.45, noisy[13:23]), forecast(0.45, noisy)
    assert len(few.misses) < len(many.misses)
    assert few.chance(0.20) > many.chance(0.20) > 0


# --- the promise, on made-up trials --------------------------------------------------------------------------------


def steep(lost, rng):
    """Little loss is made good, much is not, and is less certain."""
    return min(lost, max(0.0, lost**2 * (1.1 + 0.4 * rng.gauss(0, 1)) + 0.005 * rng.gauss(0, 1)))


def lucky(lost, rng):
    """Now and then a training makes good nearly everything."""
    return lost * (0.2 if rng.random() < 0.1 else 0.6) + 0.004 * rng.gauss(0, 1)


def even(lost, rng):
    return 0.5 * lost + 0.01 * rng.gauss(0, 1)


@pytest.mark.parametrize("end_of", [steep, lucky, even], ids=lambda f: f.__name__)
@pytest.mark.parametrize("below", [0.05, 0.2])
def test_of_the_stopped_the_share_that_would_have_joined_is_as_stated(end_of, below):
    """Searches of 60 trials, front and finished trials as they grow; what a stopped one would have come to is known."""
    num_stopped = num_wrong = num_trials = 0
    for seed in range(60):
        rng = random.Random(seed)
        front, pairs = [(1.0, 1.0)], []
        for _ in range(60):
            latency, excess = rng.uniform(0.3, 1), abs(rng.gauss(0, 0.12))
            lost = (1 - latency) ** 1.5 + excess
            end = end_of(lost, rng)
            held = bar(front=tuple(front), finished={ONE_SHOT: tuple(pairs)}, below=below)
            joins = not any(ratio <= latency and accuracy >= 1 - end for ratio, accuracy in front)
            num_trials += 1
            if is_stopped(held, lost, latency):
                num_stopped += 1
                num_wrong += joins
                continue
            pairs.append((lost, end))
            if joins:
                front = [p for p in front if not (p[0] >= latency and p[1] <= 1 - end)] + [(latency, 1 - end)]
    assert num_stopped > 0.1 * num_trials, "it would be safe to stop nothing"
    by_chance = 2 * math.sqrt(below * (1 - below) / num_stopped)
    assert num_wrong / num_stopped <= below + by_chance


# --- in a trial ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(task) -> Workbench:
    return Workbench(dataclasses.replace(task, validation=small(task.validation)), CPU)


def small(split):
    return type(split)(split.inputs[:64], split.targets[:64], [0.0], [1.0])


def never(**parts) -> Bar:
    return bar(**{"below": 0.0, "front": ((0.0, 2.0),), "finished": {}} | parts)


@pytest.mark.parametrize("strategy", [{}, {"ema": 0.8}, {"optimizer": "adamw"}], ids=str)
def test_looking_changes_nothing(bench, strategy):
    long = spec(NARROW, **{"steps": 8, "calibration_examples": 64} | strategy)
    torch.manual_seed(3)
    alone = train(start(long, bench), long, bench)
    torch.manual_seed(4)
    watch = Watch(never(), {"latency": 1.0})
    seen = train(start(long, bench), long, bench, watch=watch)
    assert set(seen.rungs) == {"1/4", "1/2"}
    assert set(watch.scores) == {ONE_SHOT, "1/4", "1/2"}
    assert (seen.score, seen.oneshot) == (alone.score, alone.oneshot)
    theirs = alone.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in seen.model.state_dict().items())


def test_a_rung_sees_the_model_as_if_training_were_over(bench):
    """The averaged weights, BatchNorm re-estimated: at a constant rate, what a training of half the steps gives."""
    half, whole = (spec(NARROW, steps=n, ema=0.8, schedule="constant", calibration_examples=64) for n in (10, 20))
    watch = Watch(never(), {"latency": 1.0})
    train(start(whole, bench), whole, bench, watch=watch)
    short = train(start(half, bench), half, bench)
    assert short.score.value > short.oneshot.value
    assert watch.scores["1/2"] == short.score


def test_a_pruned_trial_has_its_latency_its_scores_and_the_reason(bench):
    hopeless = bar(front=((0.0, 2.0, 1.0),), finished=HELPED, objectives=("latency", "accuracy", "parameters"))
    result = run(spec(NARROW), bench, measurement(0.5), hopeless)
    assert (result.state, result.score) == (TrialState.PRUNED, None)
    assert "one-shot" in result.reason
    assert "latency and parameters" in result.reason
    assert result.measurement == measurement(0.5)
    assert result.oneshot is not None
    assert result.expected.value < 2.0
    assert "finetune" not in result.seconds
    no_rival = dataclasses.replace(hopeless, front=())
    assert run(spec(PLAN), bench, measurement(0.5), no_rival).state is TrialState.COMPLETE


def test_a_trial_is_stopped_half_way(bench):
    hopeless = bar(front=((0.0, 2.0),), finished={"1/2": HELPED[ONE_SHOT]})
    result = run(spec(NARROW, steps=8, calibration_examples=64), bench, measurement(0.5), hopeless)
    assert result.state is TrialState.PRUNED, result.reason
    assert result.reason.startswith("1/2 ")
    assert set(result.rungs) == {"1/4", "1/2"}
    assert result.seconds["overhead"] >= 0


def test_a_look_must_be_cheap_beside_what_is_left():
    default = FinetuneConfig()
    assert not worth_a_look(0.25, default.steps, default.batch_size, 5000 + 512)
    assert worth_a_look(0.25, 700 * 5, default.batch_size, 5000 + 512)
    assert not worth_a_look(0.99, 700 * 5, default.batch_size, 5000 + 512)
