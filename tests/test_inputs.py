import pytest
import torch
from torch import nn

from ranksearch.inputs import forward, num_examples, select, take, to_device


class Sum(nn.Module):
    def forward(self, a, b=None, c=None):
        return a if b is None else a + 10 * b + (0 if c is None else 100 * c)


ONE, TWO = torch.ones(1), torch.full((1,), 2.0)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [(TWO, 2), ((ONE, TWO), 21), ({"a": ONE, "b": TWO}, 21), ({"b": ONE, "a": TWO, "c": ONE}, 112)],
)
def test_a_tuple_is_positional_and_a_dict_is_keywords(inputs, expected):
    assert forward(Sum(), inputs).item() == expected


def test_a_list_is_one_argument():
    assert forward(Sum(), [ONE, TWO]) == [ONE, TWO]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_select_repeats_or_cuts_every_tensor_alike(batch_size):
    inputs = {"a": torch.arange(3), "b": (torch.arange(6).view(3, 2), "word", torch.tensor(5))}
    chosen = select(inputs, batch_size)
    rows = [i % 3 for i in range(batch_size)]
    assert chosen["a"].tolist() == rows
    assert chosen["b"][0].tolist() == [[2 * i, 2 * i + 1] for i in rows]
    assert chosen["b"][1:] == ("word", torch.tensor(5))
    assert num_examples(chosen) == batch_size


def test_num_examples_needs_a_batch():
    with pytest.raises(ValueError, match="batch dimension"):
        num_examples({"a": torch.tensor(3)})


def test_to_device_casts_floats_alone_and_lays_out_images_alone():
    inputs = (torch.rand(2, 3, 4, 4), torch.rand(2, 3), torch.arange(2), "word")
    image, vector, index, word = to_device(inputs, "cpu", layout="channels_last", dtype=torch.bfloat16)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert not image.is_contiguous()
    assert vector.is_contiguous()
    assert [t.dtype for t in (image, vector, index)] == [torch.bfloat16, torch.bfloat16, torch.int64]
    assert word == "word"
    assert to_device(inputs, "cpu")[0] is inputs[0]


def test_take_keeps_structure():
    assert take([torch.arange(4)], torch.tensor([3, 1]))[0].tolist() == [3, 1]
