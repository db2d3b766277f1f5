import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from ranksearch.tasks.detection.boxes import decode, encode, overlaps, to_centres, to_corners
from ranksearch.tasks.detection.ssd import prior_boxes


def boxes(num: int, seed: int) -> torch.Tensor:
    """(num, 4) corners, of every size and place."""
    low, high = torch.rand(2, num, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort(0).values
    return torch.cat([low, high], 1)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_overlaps_are_torchvisions(seed):
    some, others = boxes(7, seed), boxes(5, seed + 1)
    assert torch.allclose(overlaps(some, others), box_iou(some, others))
    assert torch.allclose(overlaps(some.expand(3, -1, -1), others.expand(3, -1, -1))[2], box_iou(some, others))


def test_a_box_without_area_overlaps_nothing():
    empty = torch.zeros(1, 4)
    assert overlaps(empty, torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 0]])).tolist() == [[0, 0]]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_decoding_undoes_encoding(seed):
    priors = prior_boxes(96).double()
    objects = boxes(len(priors), seed).expand(2, -1, -1)
    assert torch.allclose(decode(encode(objects, priors), priors), objects)
    assert torch.allclose(to_corners(to_centres(objects)), objects)


@pytest.mark.parametrize(
    ("box", "offsets"),
    [
        ((0.2, 0.2, 0.6, 0.4), (0, 0, 0, 0)),  # the prior itself
        ((0.24, 0.18, 0.64, 0.38), (1, -1, 0, 0)),  # a tenth of its width to the right, of its height up
        ((0.0, 0.2, 0.8, 0.4), (0, 0, 3.4657, 0)),  # twice as wide: ln 2 / 0.2
    ],
)
def test_offsets_are_in_the_priors_own_unit(box, offsets):
    prior = torch.tensor([[0.2, 0.2, 0.6, 0.4]])
    assert torch.allclose(encode(torch.tensor([box]), prior), torch.tensor([offsets]).float(), atol=1e-4)
