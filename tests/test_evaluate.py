import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import nn

from ranksearch.errors import NonFiniteError, TrialError
from ranksearch.evaluate import evaluate, wilson
from ranksearch.tasks.metrics import accuracy
from ranksearch.tasks.split import ArraySplit


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Dropout(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ]
    return nn.Sequential(*layers)


@pytest.fixture
def split():
    return ArraySplit(torch.randn(101, 3, 6, 6, generator=generator()), torch.arange(101) % 4)


def outputs_of(net, split):
    with torch.no_grad():
        return net.eval()(split.inputs)


@pytest.mark.parametrize("batch_size", [1, 10, 101, 1000])
def test_accuracy_is_sklearns_whatever_the_batch_size(net, split, batch_size):
    expected = accuracy_score(split.targets, outputs_of(net, split).argmax(1))
    score = evaluate(net.train(), split, accuracy, device="cpu", batch_size=batch_size)
    assert score.value == pytest.approx(expected, abs=1e-12)
    assert score.num_examples == 101


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (1, 3), (17, 101), (1940, 2000)])
def test_wilson_is_scipys(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_scores_of_zero_and_one_get_wilsons_interval(net, split):
    score = evaluate(net, split, accuracy)
    expected = stats.binomtest(round(score.value * 101), 101).proportion_ci(method="wilson")
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def minus_square(outputs, targets):
    return -(outputs[:, 0] - targets).square()


def test_other_scores_get_a_bootstrap_of_their_mean(net, split):
    score = evaluate(net, split, minus_square)
    scores = minus_square(outputs_of(net, split), split.targets).double().numpy()
    assert score.value == pytest.approx(scores.mean(), rel=1e-6)
    expected = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    width = expected.high - expected.low
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high), abs=0.1 * width)
    assert score.low < score.value < score.high
    assert evaluate(net, split, minus_square) == score


def auc(outputs, targets):
    return roc_auc_score(targets == 0, outputs[:, 0])


@pytest.mark.parametrize("batch_size", [7, 200])
def test_a_metric_of_all_examples_sees_all_of_them(net, split, batch_size):
    score = evaluate(net, split, auc, batch_size=batch_size)
    outputs = outputs_of(net, split)
    assert score.value == pytest.approx(auc(outputs, split.targets), abs=1e-12)
    expected = stats.bootstrap(
        (outputs[:, 0].numpy(), (split.targets == 0).numpy()),
        lambda logits, labels: roc_auc_score(labels, logits),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=400,
        rng=1,
    ).confidence_interval
    width = expected.high - expected.low
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high), abs=0.2 * width)


class TwoHeads(nn.Module):
    """A nest of outputs."""

    def forward(self, x):
        return {"mean": x.mean((1, 2, 3)), "pair": (x.amax((1, 2, 3)), x.amin((1, 2, 3)))}


def test_nested_outputs_are_joined(split):
    def span(outputs, targets):
        assert len(outputs["mean"]) == len(targets)
        return float((outputs["pair"][0] - outputs["pair"][1]).mean() + outputs["mean"].mean())

    images = split.inputs
    expected = (images.amax((1, 2, 3)) - images.amin((1, 2, 3)) + images.mean((1, 2, 3))).mean().item()
    assert evaluate(TwoHeads(), split, span, batch_size=30).value == pytest.approx(expected, rel=1e-5)


class Boxes(nn.Module):
    """As a detector: a list with one entry, of any size, for each image."""

    def forward(self, x):
        return [image.flatten()[: i + 1] for i, image in enumerate(x)]


def test_lists_are_joined_one_entry_an_example(split):
    seen = []

    def total(outputs, targets):
        seen.append((len(outputs), len(targets)))
        return float(sum(entry.sum() for entry in outputs))

    expected = sum(image.flatten()[: i % 40 + 1].sum().item() for i, image in enumerate(split.inputs))
    assert evaluate(Boxes(), split, total, batch_size=40).value == pytest.approx(expected, rel=1e-4)
    assert set(seen[1:]) == {(101, 101)}


class Padded(nn.Module):
    """Batches of different width, as padded text gives."""

    def forward(self, x):
        return x.flatten(1)[:, : len(x)]


def test_batches_that_cannot_be_joined_come_as_a_list(split):
    def widest(outputs, targets):
        if isinstance(outputs, torch.Tensor):
            return float(outputs.shape[1])
        assert len(outputs) == len(targets)
        return float(max(batch.shape[1] for batch in outputs))

    score = evaluate(Padded(), split, widest, batch_size=40)
    assert (score.value, score.num_examples) == (40, 101)
    assert score.low <= score.value <= score.high


def test_resamples_on_which_a_metric_is_undefined_do_not_count():
    targets = torch.zeros(20, dtype=torch.int64)
    targets[0] = 1

    def undefined_without_positives(outputs, targets):
        return float(outputs[targets == 1].mean())

    score = evaluate(nn.Identity(), ArraySplit(torch.ones(20), targets), undefined_without_positives)
    assert (score.value, score.low, score.high) == (1, 1, 1)


def test_a_metric_undefined_on_every_resample_has_no_width():
    def defined_in_order(outputs, targets):
        return 0.5 if targets.equal(torch.arange(20)) else math.nan

    score = evaluate(nn.Identity(), ArraySplit(torch.ones(20), torch.arange(20)), defined_in_order)
    assert (score.value, score.low, score.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outputs_must_be_finite(net, split, bad):
    split.inputs[57, 0, 0, 0] = bad
    with pytest.raises(NonFiniteError, match="output") as caught:
        evaluate(net, split, accuracy, batch_size=10)
    assert isinstance(caught.value, TrialError)


@pytest.mark.parametrize(
    "metric", [lambda o, t: o[:, 0] / 0, lambda o, t: math.nan, lambda o, t: torch.tensor(math.inf)]
)
def test_scores_must_be_finite(net, split, metric):
    with pytest.raises(NonFiniteError, match="metric"):
        evaluate(net, split, metric)


def test_the_model_is_left_as_it_was(net, split):
    net.train()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    evaluate(net, split, accuracy)
    assert [module.training for module in net.modules()] == modes
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    with pytest.raises(NonFiniteError):
        evaluate(net, split, lambda o, t: math.nan)
    assert [module.training for module in net.modules()] == modes


def test_no_gradients_are_recorded(net, split):
    def recorded(outputs, targets):
        return torch.full((len(targets),), float(outputs.requires_grad))

    assert evaluate(net, split, recorded).value == 0


class Spy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.seen = []

    def forward(self, x):
        y = self.conv(x)
        self.seen.append((x.is_contiguous(memory_format=torch.channels_last), y.dtype))
        return y.mean((2, 3))


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize(("layout", "is_last"), [("contiguous", False), ("channels_last", True)])
def test_precision_and_layout_reach_the_model(split, precision, dtype, layout, is_last):
    def in_float32(outputs, targets):
        assert outputs.dtype == torch.float32
        return accuracy(outputs, targets)

    spy = Spy()
    evaluate(spy, split, in_float32, precision=precision, layout=layout)
    assert set(spy.seen) == {(is_last, dtype)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_a_gpu(net, split):
    expected = evaluate(net, split, minus_square)
    found = evaluate(net.cuda(), split, minus_square, device="cuda", layout="channels_last")
    assert found.value == pytest.approx(expected.value, rel=1e-3)
