from collections import namedtuple

import pytest
import torch
from torch import nn

from ranksearch.errors import DataError
from ranksearch.latency import prepare, prepare_inputs, resolve, resolve_batch_size
from ranksearch.records import MeasureConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
Pair = namedtuple("Pair", "image mask")


@pytest.mark.parametrize(("asked", "device", "batch_size"), [(0, CPU, 8), (0, CUDA, 32), (3, CPU, 3), (3, CUDA, 3)])
def test_batch_size_zero_is_the_devices_default(asked, device, batch_size):
    config = MeasureConfig(batch_size=asked, threads=2)
    assert resolve_batch_size(config, device) == batch_size
    assert resolve(config, device) == MeasureConfig(batch_size=batch_size, threads=2)


def model():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prepared_model_is_a_copy_in_the_configs_form(dtype, layout):
    original = model().train()
    prepared = prepare(original, MeasureConfig(dtype=dtype, layout=layout), CPU)
    assert original.training
    assert all(p.requires_grad and p.dtype is torch.float32 for p in original.parameters())
    assert not any(m.training for m in prepared.modules())
    assert not any(p.requires_grad for p in prepared.parameters())
    assert {p.dtype for p in prepared.parameters()} == {getattr(torch, dtype)}
    assert prepared[0].weight.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    assert prepared[0].weight.data_ptr() != original[0].weight.data_ptr()
    assert prepared[1].num_batches_tracked.dtype is torch.long


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_prepared_inputs_are_the_example_repeated(layout):
    image, token = torch.randn(1, 2, 5, 6), torch.tensor([[1, 2, 3]])
    config = MeasureConfig(batch_size=4, dtype="bfloat16", layout=layout)
    example = {"image": image, "rest": (token, [torch.tensor(2.0), "text"])}
    prepared = prepare_inputs(example, config, CPU)
    assert torch.equal(prepared["image"], image.bfloat16().expand(4, -1, -1, -1))
    assert prepared["image"].is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    assert torch.equal(prepared["rest"][0], token.expand(4, -1))
    assert prepared["rest"][0].dtype is torch.long
    assert prepared["rest"][1] == [torch.tensor(2.0), "text"]


def test_prepared_inputs_keep_their_type():
    prepared = prepare_inputs(Pair(torch.zeros(1, 2), torch.zeros(1)), MeasureConfig(), CPU)
    assert isinstance(prepared, Pair)
    assert prepared.mask.shape == (8,)


def test_an_example_of_several_is_refused():
    with pytest.raises(DataError, match=r"shape \(4, 2\); its first dimension must be 1"):
        prepare_inputs((torch.zeros(4, 2),), MeasureConfig(), CPU)
