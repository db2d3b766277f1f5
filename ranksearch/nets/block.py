"""What most networks here are made of: a convolution, BatchNorm, ReLU."""

from torch import nn

__all__ = ["conv_block", "widened"]


def widened(channels: int, width: float) -> int:
    """A share of a layer's channels, at least 4: a multiple of 8 where there are as many."""
    wanted = max(4, round(channels * width))
    return wanted if wanted < 8 else 8 * round(wanted / 8)


def conv_block(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    """(N, inputs, H, W) -> (N, outputs, H', W'). `padding` None keeps the size at stride 1."""
    padding = kernel // 2 if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
