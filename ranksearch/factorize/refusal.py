"""Refusal: why a layer is not one that a method can take, to be read after the method's name, and what to use instead.

Each gives None where nothing is wrong, so that a method joins those that concern it by `or`.
"""

from ranksearch.factorize.shape import LayerShape

__all__ = ["no_convolution", "no_kernel", "nothing_to_mix"]


def no_convolution(shape: LayerShape, instead: str = "svd") -> str | None:
    return None if shape.is_convolution else f"it is no convolution; use {instead}"


def no_kernel(shape: LayerShape) -> str | None:
    return "its kernel is 1×1; use svd" if shape.taps == 1 else None


def nothing_to_mix(shape: LayerShape) -> str | None:
    if not shape.is_depthwise:
        return None
    splits = len(shape.kernel_size) == 2
    return "it is depthwise: a group has no channels to mix" + ("; use spatial_svd" if splits else "")
