import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from ranksearch.errors import ConfigError
from ranksearch.tasks.classification import cross_entropy, distillation
from ranksearch.tasks.metrics import accuracy, find_metric
from tests.tasks.usage import refuses


def logits(seed, *shape):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 8))
@settings(max_examples=25, deadline=None)
def test_distillation_is_the_scaled_divergence(seed, temperature):
    student, teacher = logits(seed, 5, 7).double(), logits(seed + 1, 5, 7).double()
    p, q = (scipy.special.softmax(x.numpy() / temperature, axis=1) for x in (teacher, student))
    expected = temperature**2 * scipy.special.rel_entr(p, q).sum(1).mean()
    assert distillation(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-6)
    assert distillation(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-9)


def test_its_gradient_goes_to_the_student_and_does_not_shrink_with_temperature():
    student, teacher = logits(0, 6, 4).requires_grad_(), logits(1, 6, 4).requires_grad_()
    sizes = []
    for temperature in (1.0, 10.0):
        (gradient,) = torch.autograd.grad(distillation(student, teacher.detach(), temperature), student)
        sizes.append(gradient.norm().item())
    assert 0.2 < sizes[1] / sizes[0] < 5


def test_maps_of_logits_are_averaged_over_places():
    student, teacher = logits(0, 2, 5, 3, 3), logits(1, 2, 5, 3, 3)
    flat = [x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (student, teacher)]
    torch.testing.assert_close(distillation(student, teacher, 2.0), distillation(*flat, 2.0))


def test_cross_entropy_is_sklearns():
    outputs, targets = logits(0, 20, 4), torch.arange(20) % 4
    expected = log_loss(targets, scipy.special.softmax(outputs.double().numpy(), axis=1))
    assert cross_entropy(outputs, targets).item() == pytest.approx(expected, rel=1e-5)


def test_accuracy_is_one_score_an_example():
    outputs, targets = logits(0, 50, 4), torch.arange(50) % 4
    expected = (np.argmax(outputs.numpy(), axis=1) == targets.numpy()).astype(float)
    assert accuracy(outputs, targets).tolist() == expected.tolist()


def test_metrics_by_name(user_folder):
    (user_folder / "scores.py").write_text("def top2(outputs, targets): return 0.5\n")
    assert find_metric(None) == find_metric("accuracy") == (accuracy, "accuracy")
    for text in ("scores:top2", "scores.py:top2"):
        metric, name = find_metric(text)
        assert (metric(None, None), name) == (0.5, text)

    def own(outputs, targets):
        return 0.25

    assert find_metric(own)[0] is own
    assert "own" in find_metric(own)[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scores:top3", ["scores has no 'top3'", "did you mean 'top2'?"]),
        ("acuracy", ["'acuracy'", "did you mean 'accuracy'?", "module:function"]),
    ],
)
def test_unknown_metrics(user_folder, text, words):
    (user_folder / "scores.py").write_text("def top2(outputs, targets): return 0.5\n")
    with refuses(ConfigError, *words):
        find_metric(text)
