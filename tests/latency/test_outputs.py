import re
from collections import OrderedDict

import pytest
import torch

from ranksearch.errors import MeasurementError, NonFiniteError
from ranksearch.latency.outputs import check_outputs

ONE, TWO = torch.ones(1, 3), torch.ones(2, 3)
NAN = torch.full((1, 3), float("nan"))


@pytest.mark.parametrize(
    "output",
    [
        ONE,
        (ONE, TWO),
        [ONE, (TWO, None)],
        {"logits": ONE, "size": 3},
        OrderedDict(a=ONE),
        torch.ones(1, dtype=torch.long),
    ],
)
def test_like_outputs_pass(output):
    check_outputs(output, output)


@pytest.mark.parametrize(
    ("dense", "candidate", "message"),
    [
        (ONE, TWO, "output is of shape (2, 3), the dense model's of shape (1, 3)"),
        ((ONE, ONE), (ONE,), "output[1] is missing, the dense model's of shape (1, 3)"),
        (ONE, (ONE,), "output is missing"),
        ({"a": ONE}, {"a": ONE, "b": ONE}, "output['b'] is of shape (1, 3), the dense model's missing"),
        ({"a": {"b": [ONE]}}, {"a": {"b": [TWO]}}, "output['a']['b'][0] is of shape (2, 3)"),
        ((ONE, None), (ONE, 3), "output[1] is a int, the dense model's a NoneType"),
    ],
)
def test_unlike_outputs_are_named(dense, candidate, message):
    with pytest.raises(MeasurementError, match=re.escape(message)):
        check_outputs(dense, candidate)


def test_an_output_without_a_tensor_cannot_be_compared():
    with pytest.raises(MeasurementError, match="returns a str without a tensor"):
        check_outputs("cat", "cat")


@pytest.mark.parametrize(
    ("dense", "candidate", "whose"),
    [(ONE, NAN, "candidate's output"), (NAN, ONE, "dense model's output"), ([ONE, ONE], [ONE, -ONE / 0], r"output\[1")],
)
def test_what_is_not_finite_is_refused(dense, candidate, whose):
    with pytest.raises(NonFiniteError, match=whose):
        check_outputs(dense, candidate)
