"""Each layer with two forwards keeps the faster one, and the choice travels with the weights."""

import copy
import time

import pytest
import torch
from torch import nn

from ranksearch.compress import compress
from ranksearch.factorize import METHODS, LayerShape
from ranksearch.factorize.rebuilt import ContractibleLayer
from ranksearch.forwards import choose_forwards
from ranksearch.records import LayerChoice, Plan

SECONDS = 3e-3


def layer_of(method: str = "tt_linear", sizes: tuple[int, int] = (16, 24)) -> ContractibleLayer:
    torch.manual_seed(0)
    dense = nn.Linear(*sizes)
    shape = LayerShape.of(dense)
    return METHODS[method].build(shape, (2, 2, 2)).eval()


class Slow:
    """A forward that takes its time, on top of what it does."""

    def __init__(self, forward):
        self.forward = forward

    def __call__(self, *args):
        time.sleep(SECONDS)
        return self.forward(*args)


def slowed(layer: ContractibleLayer, contracted: bool) -> ContractibleLayer:
    name = "contract" if contracted else "_weight"
    setattr(layer, name, Slow(getattr(layer, name)))
    return layer


@pytest.mark.parametrize("slow", [False, True])
def test_the_faster_forward_is_kept_and_computes_the_same(slow):
    layer = slowed(layer_of(), contracted=slow)
    model = nn.Sequential(nn.Identity(), layer)
    x = torch.randn(3, 16)
    with torch.no_grad():
        before = model(x)
        assert choose_forwards(model, x) == {"1": not slow}
        torch.testing.assert_close(model(x), before)


def test_what_is_known_is_not_timed_again():
    model, x = nn.Sequential(layer_of()), torch.randn(3, 16)
    known = {}
    found = choose_forwards(model, x, known)
    (key,) = known
    known[key] = not found["0"]
    assert choose_forwards(copy.deepcopy(model), x, known) == {"0": not found["0"]}
    choose_forwards(model, torch.randn(5, 16), known)
    assert len(known) == 2


def test_two_layers_of_one_form_are_timed_once_and_others_by_themselves():
    model = nn.Sequential(layer_of(), nn.Linear(24, 16), layer_of(), layer_of(sizes=(24, 16)))
    known = {}
    choose_forwards(model, torch.randn(2, 16), known)
    assert len(known) == 2
    assert (
        len({choice for name, choice in choose_forwards(model, torch.randn(2, 16), known).items() if name != "3"}) == 1
    )


def test_a_model_without_such_layers_is_not_run():
    class Never(nn.Module):
        def forward(self, x):
            pytest.fail("ran")

    assert choose_forwards(Never(), torch.zeros(1)) == {}


@pytest.mark.parametrize("contracted", [False, True])
def test_the_choice_is_in_the_state_dict(contracted):
    dense = nn.Sequential(nn.Linear(16, 24))
    plan = Plan({"0": LayerChoice(method="tt_linear", ranks=(2, 2, 2))})
    small, other = compress(dense, plan), compress(dense, plan, init="random")
    small[0].contracted, other[0].contracted = contracted, not contracted
    other.load_state_dict(small.state_dict())
    assert other[0].contracted is contracted
    assert all(isinstance(value, torch.Tensor) for value in small.state_dict().values())
